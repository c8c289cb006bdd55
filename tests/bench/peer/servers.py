"""Installs and starts a peer. What it needs lies in .venv-peers/<name>, pinned, made once."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.releases import MODEL

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
_ORT, PATIENCE_S = "onnxruntime==1.32.0", 90.0
#: What each peer is; the newest that there were.
PEERS = {
    "mlserver": ["mlserver==1.7.1", _ORT],
    "bentoml": ["bentoml==1.4.39", _ORT],
    "fastapi": ["fastapi==0.165.0", "uvicorn[standard]==0.54.0", _ORT],
    "fastapi-tuned": ["fastapi==0.165.0", "uvicorn[standard]==0.54.0", "orjson==3.13.0", _ORT],
}
#: Peers that are one program below this folder.
_PROGRAMS = {"fastapi": "fastapi_app.py", "fastapi-tuned": "fastapi_tuned.py"}
#: Libraries that are no servers.
LIBRARIES = {
    "whylogs": ["whylogs==1.6.4", "numpy==2.4.6", "pandas==3.1.1"],
    "whylogs-drift": ["whylogs[viz]==1.6.4", "pandas==3.1.1"],
    "evidently": ["evidently==0.7.23"],
    "datasketches": ["datasketches==5.2.0", "numpy==2.4.6"],
}

_READY = {
    "mlserver": f"/v2/models/{MODEL}/ready",
    "bentoml": "/readyz",
    "fastapi": "/docs",
    "fastapi-tuned": "/ready",
}


class MissingError(Exception):
    """A peer that cannot be installed or does not start here."""


class Server(NamedTuple):
    """A server that runs: where, and the process that was started."""

    address: tuple[str, int]
    pid: int

    def cpu_s(self) -> float:
        """CPU seconds of it and all its children so far."""
        group = {self.pid}
        ticks = 0
        for line in sorted(_stats(), key=lambda fields: int(fields[0])):
            if int(line[0]) == self.pid or int(line[2]) in group:
                group.add(int(line[0]))
                ticks += int(line[12]) + int(line[13])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(name: str, model: Path, folder: Path) -> Iterator[Server]:
    """A peer that serves `model`; MissingError."""
    python, port = installed(name), _free_port()
    log = (folder / f"{name}.log").open("ab")
    command, environment = _command(name, python, model, port, folder)
    with (
        log,
        subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        ) as process,
    ):
        try:
            _wait(name, port, process, folder / f"{name}.log")
            yield Server(("127.0.0.1", port), process.pid)
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def _stats() -> Iterator[list[str]]:
    """Every process as Linux tells it: pid, state, parent, ..., without its name."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, _, rest = path.read_text().partition(" (")
            yield [number, *rest.rpartition(") ")[2].split()]


def installed(name: str) -> Path:
    """The interpreter of a peer's environment, made if need be; MissingError."""
    packages = (PEERS | LIBRARIES)[name]
    folder = ROOT / ".venv-peers" / name
    stamp, python = folder / "stamp", folder / "bin/python"
    wanted = " ".join(packages)
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        uv = shutil.which("uv")
        steps = [
            [uv, "venv", "-q", "--python", sys.executable, folder]
            if uv
            else [sys.executable, "-m", "venv", folder],
            [uv, "pip", "install", "-q", "--python", python, *packages]
            if uv
            else [python, "-m", "pip", "install", "-qq", *packages],
        ]
        for step in steps:
            ran = subprocess.run(list(map(str, step)), capture_output=True, text=True, check=False)
            if ran.returncode:
                raise MissingError(f"not installed: {ran.stderr.strip()[-150:]}")
        stamp.write_text(wanted)
    return python


def _command(
    name: str, python: Path, model: Path, port: int, folder: Path
) -> tuple[list[str], dict[str, str]]:
    """How a peer is started, and what it needs in its environment."""
    if name in _PROGRAMS:
        return [str(python), str(HERE / _PROGRAMS[name]), str(model), str(port)], {}
    if name == "bentoml":
        serve = [str(python), "-m", "bentoml", "serve", "bento_service:Predictor"]
        address = ["--host", "127.0.0.1", "--port", str(port), "--working-dir", str(HERE)]
        return [*serve, *address], {
            "MODEL": str(model),
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(folder / "bento"),
        }
    _write_mlserver(folder / "mlserver", model, port)
    return [str(python), "-m", "mlserver.cli.main", "start", str(folder / "mlserver")], {
        "PYTHONPATH": str(HERE)
    }


def _write_mlserver(folder: Path, model: Path, port: int) -> None:
    """Its settings at their fastest: no workers beside the server's own process, no metrics log."""
    folder.mkdir()
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": _free_port(),
        "metrics_port": _free_port(),
        "parallel_workers": 0,
        "debug": False,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    one = {
        "name": MODEL,
        "implementation": "mlserver_model.Onnx",
        "parameters": {"uri": str(model)},
    }
    (folder / "model-settings.json").write_text(json.dumps(one))


def _wait(name: str, port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as one:
            path = _READY[name]
            one.settimeout(5)
            one.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            if b" 200 " in one.recv(100):
                return
        time.sleep(0.1)
    raise MissingError(f"{name} does not start: {log.read_text()[-300:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
