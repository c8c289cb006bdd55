"""A real agent process, on a folder with an installed release."""

import contextlib
import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self, TypeVar

from bench.releases import MODEL, Release, install
from shoal.agent.host.io import config
from shoal.agent.host.io.folder import (
    ADDRESS,
    CA,
    CERTIFICATE,
    DIRECTOR,
    JOURNAL,
    KEY,
    MODELS,
    ROOT,
    SETTINGS,
)
from shoal.agent.installed.io.journal import SqliteJournal
from shoal.agent.installed.record import Record, State

PATIENCE_S = 30.0
BYTECODE = Path(__file__).parents[2] / "build" / "bytecode"
T = TypeVar("T")
_IMPORT_ALL = """
import importlib, onnxruntime, pkgutil, shoal.agent
for module in pkgutil.walk_packages(shoal.agent.__path__, "shoal.agent."):
    importlib.import_module(module.name)
"""


def seed_folder(folder: Path, release: Release) -> None:
    """An agent folder with an unreachable controller, and a release that was committed."""
    folder.mkdir(parents=True)
    settings = config.Settings(
        device=config.Device(name="bench-1", site="here", profile="generic"),
        controller=config.Controller(broker="mqtts://127.0.0.1:9"),
        log_level="ERROR",
    )
    (folder / SETTINGS).write_text(config.dump(settings))
    for name in (CA, CERTIFICATE, KEY, ROOT, DIRECTOR):
        (folder / name).write_text("{}")
    journal = SqliteJournal(folder / JOURNAL)
    journal.save(Record(model=MODEL, serving=install(release, folder / MODELS), state=State.IDLE))
    journal.close()


class Device:
    """`shoal-agent run` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.began = time.perf_counter()
        self._log = (folder / "bench.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "shoal.agent", "run", "--folder", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=with_bytecode() | {"PYTHONNODEBUGRANGES": "1"},  # as the service has it
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def address(self) -> tuple[str, int]:
        """Host and port of the endpoint, once the model serves; TimeoutError."""
        host, port = self.until(self._read_address).removeprefix("http://").rsplit(":", 1)
        with connect((host, int(port))) as connection:
            self.until(lambda: is_ready(connection))
        return host, int(port)

    def _read_address(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / ADDRESS).read_text()
        return ""

    def until(self, look: Callable[[], T]) -> T:
        """What `look` sees once it is something; TimeoutError with the agent's log."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and self._process.poll() is None:
            if seen := look():
                return seen
            time.sleep(0.001)
        log = (self.folder / "bench.log").read_text()[-1_000:]
        raise TimeoutError(f"the agent does not serve: {log}")


@functools.cache
def with_bytecode() -> dict[str, str]:
    """Environment of a process with compiled modules, as from a wheel."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPYCACHEPREFIX": str(BYTECODE)}
    subprocess.run([sys.executable, "-c", _IMPORT_ALL], env=environment, check=True)
    return environment


def is_ready(connection: socket.socket) -> bool:
    """Whether the endpoint reports that its model is ready."""
    connection.sendall(f"GET /v2/models/{MODEL}/ready HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return connection.recv(4096).startswith(b"HTTP/1.1 200")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Device]:
    """An agent while it runs; removes the endpoint file of an earlier one."""
    (folder / ADDRESS).unlink(missing_ok=True)
    with Device(folder) as device:
        yield device


def resident_mb(pid: int) -> dict[str, float]:
    """Rss, Pss and Private (2**20 bytes each) of a process, as Linux counts them."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kb = {line.split()[0].rstrip(":"): int(line.split()[1]) for line in text.splitlines()[1:]}
    private = kb["Private_Clean"] + kb["Private_Dirty"]
    return {"rss": kb["Rss"] / 1024, "pss": kb["Pss"] / 1024, "private": private / 1024}


def connect(address: tuple[str, int] | Path) -> socket.socket:
    """A connection to a TCP address or a Unix socket, without Nagle's delay."""
    if isinstance(address, Path):
        made = socket.socket(socket.AF_UNIX)
        made.connect(os.fspath(address))
        return made
    made = socket.create_connection(address)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made
