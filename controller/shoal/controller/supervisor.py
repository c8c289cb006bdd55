"""`serve`: runs every part of the controller in its own process and restarts it when it ends."""

import fcntl
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from shoal.address import url_of
from shoal.controller.broker.io.nats import find_binary
from shoal.controller.fleet.io.ca import Authority
from shoal.controller.host.io.lifetime import stop_event
from shoal.controller.host.io.probes import check_broker, check_https, is_free
from shoal.controller.host.io.processes import Child, print_on_stderr
from shoal.controller.host.settings import Settings
from shoal.errors import ConflictError, LinkError, SettingError

STOP_TIMEOUT_S = 15.0
#: Children of a killed predecessor need a moment to release their ports.
PORT_TIMEOUT_S = 5.0
_TICK_S, _DAY_S = 0.2, 86_400.0
#: Logged by shoal.mqtt when the engine is connected and subscribed.
_CONNECTED = re.compile(r"\bshoal\.mqtt broker \S+: connected$")


class Part(NamedTuple):
    """A child process and its health check, which raises LinkError."""

    child: Child
    check: Callable[[], object]


class Supervisor:
    """Starts the parts of the controller in `folder`, restarts them, stops them.

    report   prints the ready line; warn: prints warnings
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        report: Callable[[str], None],
        warn: Callable[[str], None] = print_on_stderr,
    ) -> None:
        self._folder, self._settings, self._report, self._warn = folder, settings, report, warn
        self._stopping = threading.Event()
        self._parts = self._plan()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. SettingError, ConflictError if it cannot start."""
        with folder_lock(self._folder):
            self._stopping = stop_event()
            if not self._settings.network.broker:
                find_binary(os.environ)
            self._renew()
            self._wait_for_ports()
            try:
                self._supervise()
            finally:
                self._end()

    def _plan(self) -> list[Part]:
        network, pki = self._settings.network, self._folder / "pki"
        own = bool(network.tls_certificate)
        checks: dict[str, Callable[[], object]] = {
            "broker": lambda: check_broker(network, pki),
            "artifacts": lambda: check_https(network, network.artifacts, pki),
            "web": lambda: check_https(network, network.port, pki, own_certificate=own),
            "engine": self._check_engine,
        }
        if network.broker:
            del checks["broker"]
        return [Part(self._child(name), check) for name, check in checks.items()]

    def _child(self, name: str) -> Child:
        argv = [sys.executable, "-m", "shoal.controller", name, "--folder", str(self._folder)]
        log = self._folder / "log" / f"{name}.log"
        return Child(name, argv, log, self._warn, _CONNECTED if name == "engine" else None)

    def _supervise(self) -> None:
        (self._folder / "log").mkdir(exist_ok=True)
        for part in self._parts:
            part.child.start(time.monotonic())
        waiting, renew_at = list(self._parts), time.monotonic() + _DAY_S
        while not self._stopping.wait(_TICK_S):
            if time.monotonic() > renew_at:
                renew_at += _DAY_S
                self._restart_if(self._renew())
            for part in self._parts:
                part.child.restart_if_ended(time.monotonic())
            if waiting:
                waiting = [part for part in waiting if not _is_healthy(part)]
                if not waiting:
                    self._report(self._ready())

    def _renew(self) -> bool:
        """Renew server and controller certificates that expire soon; whether any was."""
        authority = Authority.open(self._folder / "pki")
        renewed = authority.renew_own(self._settings.network.names, time.time())
        if renewed:
            self._warn(f"new certificate: {', '.join(renewed)}")
        return bool(renewed)

    def _restart_if(self, renewed: bool) -> None:
        """Children read their certificate at start: terminate them, the loop restarts them."""
        if renewed:
            for part in self._parts:
                part.child.terminate()

    def _check_engine(self) -> None:
        child = next(part.child for part in self._parts if part.child.name == "engine")
        if not child.pid or not child.ready:
            raise LinkError("engine is not connected to the broker yet")

    def _ready(self) -> str:
        network = self._settings.network
        name = network.names[0]
        broker = network.broker or url_of("mqtts", name, network.mqtt)
        return (
            f"ready: {url_of('https', name, network.port)} "
            f"(artifacts {url_of('https', name, network.artifacts)}, broker {broker})"
        )

    def _wait_for_ports(self) -> None:
        end = time.monotonic() + PORT_TIMEOUT_S
        while (taken := taken_ports(self._settings)) and time.monotonic() < end:
            if self._stopping.wait(_TICK_S):
                return
        if taken:
            where = self._folder / "controller.toml"
            listing = ", ".join(
                f"port {port} on {self._settings.network.host} ([network] {setting})"
                for setting, port in taken.items()
            )
            raise SettingError(
                f"taken by another program: {listing}",
                f"end that program, or change the setting in {where}",
            )

    def _end(self) -> None:
        """Stop the engine first and the broker last: messages in flight are still delivered."""
        end = time.monotonic() + STOP_TIMEOUT_S
        for part in reversed(self._parts):
            part.child.terminate()
            part.child.end(end - time.monotonic())


def taken_ports(settings: Settings) -> dict[str, int]:
    """Setting -> port in use by another program; SettingError if two settings have the same."""
    network = settings.network
    ports = {"port": network.port, "artifacts": network.artifacts}
    if not network.broker:
        ports["mqtt"] = network.mqtt
    if len(set(ports.values())) < len(ports):
        raise SettingError(f"[network] {', '.join(ports)} must differ", "change controller.toml")
    return {name: port for name, port in ports.items() if not is_free(network.host, port)}


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock of the controller's folder; ConflictError if another `serve` holds it."""
    with (folder / "serve.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            pid = file.read().strip()
            raise ConflictError(
                f"{folder} is served already, by process {pid}", f"end it first: kill {pid}",
                pid=pid,
            ) from error  # fmt: skip
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _is_healthy(part: Part) -> bool:
    try:
        part.check()
    except LinkError:
        return False
    return True
