"""`shoal-agent doctor`: checks of clock, disk, certificate, network, feeds, runtime and model."""

import contextlib
import datetime
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from shoal.address import host_port
from shoal.agent.feeds.io.runner import FeedPorts, Feeds
from shoal.agent.host.io.config import Settings
from shoal.agent.host.io.folder import CA, CERTIFICATE, JOURNAL, KEY, MODELS
from shoal.agent.host.ports import RESERVE
from shoal.agent.identity.io.renewal import DUE, SPREAD, life_s
from shoal.agent.installed.io.journal import read_records
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.peers.io.listener import listen
from shoal.agent.peers.io.protocol import connect
from shoal.agent.serving.io.runtime import OrtLoader
from shoal.connection_errors import explain, validity_fault
from shoal.errors import SettingError, ShoalError
from shoal.profile import profile

_TIMEOUT_S, _BUILT = 5.0, 1_750_000_000
#: Seconds in which a server that refuses the certificate says so.
_REFUSAL_S = 0.5


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One check. hint: what to do, "" when it passed."""

    check: str
    passed: bool
    detail: str
    hint: str = ""


def examine(folder: Path, settings: Settings) -> list[Finding]:
    """Every check; none of them changes anything."""
    broker, artifacts = settings.controller.broker, settings.controller.artifacts
    runtime = _run("runtime", _runtime)
    return [
        _clock(),
        check_disk(folder),
        _run("certificate", lambda: _certificate(folder)),
        _reach("broker", broker, folder),
        _reach("artifacts", artifacts, folder),
        _run("peers", lambda: _peers(folder, settings)),
        _run("feeds", lambda: _feeds(folder, settings)),
        runtime,
        *([_run("model", lambda: _self_inference(folder, settings))] if runtime.passed else []),
    ]


def _peers(folder: Path, settings: Settings) -> str:
    """Whether the port for peers is this device's, or free."""
    peers = settings.peers
    if not peers.enabled:
        return "downloads are not shared: [peers] is not enabled"
    try:
        connect(
            (peers.host or "localhost", peers.port), settings.device.name, folder, time.time()
        ).close()
        return f"this device answers on port {peers.port}"
    except ConnectionRefusedError:
        pass  # the port is free
    except (OSError, ShoalError) as error:
        raise SettingError(
            f"another program has port {peers.port}: {error}", "choose another [peers] port"
        ) from error
    try:
        listen(peers.host, peers.port).close()
    except OSError as error:
        raise SettingError(
            f"{host_port(peers.host, peers.port)}: {error.strerror}", "choose another [peers] port"
        ) from error
    return f"port {peers.port} is free"


def _feeds(folder: Path, settings: Settings) -> str:
    """Build sources and sinks with their libraries, without starting them."""
    ports = FeedPorts(
        folder=folder,
        serving=dict,
        fault=lambda fault: None,
        wall=time.time,
        monotonic=time.monotonic,
        random=random.Random(0),
    )
    feeds = Feeds(settings.all_sources(), settings.sinks, ports)
    return f"{len(feeds.sources)} sources and {len(feeds.sinks)} sinks can be built"


def _clock() -> Finding:
    now = time.time()
    shown = datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat(timespec="seconds")
    hint = "" if now > _BUILT else "set the date, or enable time synchronisation"
    return Finding(check="clock", passed=not hint, detail=shown, hint=hint)


def check_disk(folder: Path) -> Finding:
    """Free space of a folder's disk, and whether it takes writes."""
    free, left = shutil.disk_usage(folder).free / 2**20, RESERVE / 2**20
    hint = "" if free > left else f"make room: an update leaves {left:.0f} MB free beside its size"
    room = f": room for a release of up to {free - left:.0f} MB" if free > left else ""
    detail = f"{free:.0f} MB free{room}"
    if not os.access(folder, os.W_OK):
        detail += f"; {folder} cannot be written"
        hint = (
            "mount the disk writable: a committed release serves, nothing else works; or run the "
        )
        hint += "doctor as the agent's user"
    return Finding(check="disk", passed=not hint, detail=detail, hint=hint)


def _certificate(folder: Path) -> str:
    now_s = time.time()
    if fault := validity_fault(folder / CERTIFICATE, now_s):
        raise SettingError(fault)
    begin, end = life_s(folder)
    until = datetime.datetime.fromtimestamp(end, datetime.UTC)
    detail = f"valid for {(end - now_s) / 86_400:.0f} days, until {until:%Y-%m-%d}"
    if now_s > begin + (DUE + SPREAD) * (end - begin):
        raise SettingError(
            f"{detail}: it was not renewed when it was due",
            "let this device reach the controller's console port, or enrol it again",
        )
    return detail


def _reach(name: str, url: str, folder: Path) -> Finding:
    """Resolve the name, connect by TCP, then by TLS with the device's certificate."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 8883
    step, hint = "name", f"is {host!r} right, and does the DNS server answer?"
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        step, hint = "TCP", f"is anything listening on port {port}, and no firewall between?"
        with socket.create_connection((host, port), timeout=_TIMEOUT_S) as plain:
            step, hint = "TLS", _tls_hint(folder)
            context = ssl.create_default_context(cafile=str(folder / CA))
            context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
            with context.wrap_socket(plain, server_hostname=host) as wrapped:
                wrapped.settimeout(_REFUSAL_S)
                with contextlib.suppress(TimeoutError):
                    wrapped.recv(1)  # a refusal of the certificate comes after the handshake
                return Finding(check=name, passed=True, detail=f"{url}, {wrapped.version()}")
    except OSError as error:
        why = explain(error, name)
        return Finding(check=name, passed=False, detail=f"{url}: {step}: {why}", hint=hint)


def _tls_hint(folder: Path) -> str:
    if validity_fault(folder / CERTIFICATE, time.time()):
        return "mend what the certificate's line says: every server refuses it until then"
    return "is the clock right, and was the controller set up again?"


def _run(check: str, work: Callable[[], str]) -> Finding:
    try:
        return Finding(check=check, passed=True, detail=work())
    except ShoalError as error:
        return Finding(check=check, passed=False, detail=error.message, hint=error.hint)
    except ImportError as error:
        hint = "install the agent again: pip install 'shoal[agent]'"
        return Finding(check=check, passed=False, detail=str(error), hint=hint)


def _check_import() -> None:
    """Load onnxruntime in a process of its own: on a CPU that it is not built for it ends there."""
    command = [sys.executable, "-c", "import onnxruntime"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode < 0:
        name = signal.Signals(-run.returncode).name
        why = (run.stderr.strip().splitlines() or ["its build needs what this CPU has not"])[-1]
        raise SettingError(
            f"onnxruntime ends with {name} as soon as it is loaded: {why[:200]}",
            "install another version of onnxruntime beside the agent; until then nothing serves",
        )


def _runtime() -> str:
    _check_import()
    found = OrtLoader(lambda model, slot: Path()).runtime
    return f"onnxruntime {found.ort}, ONNX opset up to {found.newest()}"


def _self_inference(folder: Path, settings: Settings) -> str:
    """Load the serving releases in this process, and run each once."""
    if not (folder / JOURNAL).exists():
        return "no release yet"
    slots = DiskSlots(folder / MODELS)
    loader, found = OrtLoader(slots.path), []
    for record in read_records(folder / JOURNAL).values():
        if record.active is not None:
            slots.verify(record.active, settings.device.profile)
            loader.load(record.active, profile(settings.device.profile))
            found.append(f"{record.active.release} ({record.active.variant}) answers")
    return ", ".join(found) or "no release yet"
