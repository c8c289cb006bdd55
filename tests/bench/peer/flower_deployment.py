"""Flower's deployment for the bench `federated`: a SuperLink and a SuperNode a client, each a
process, over HTTP on this machine. Runs in the environment of flower_rounds.py.

`python flower_deployment.py TRAIN.onnx SIZE DEVICES ROUNDS PATIENCE`: the same apps as in the
simulation; after PATIENCE seconds it ends its processes, and fails.
Everything is as Flower starts it, but without TLS. Prints JSON as
flower_rounds.py does.
"""

# Its libraries are in the peer's own environment, not in this one.
# mypy: ignore-errors

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE, BIN = Path(__file__).parent, Path(sys.executable).parent
#: Seconds between two looks at whether it is done.
LOOK_S = 0.5
_PROJECT = """
[project]
name = "bench"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "bench_app:server"
clientapp = "bench_app:client"

[tool.flwr.app.config]
"""
_APP = """
import json, os, sys
from pathlib import Path

sys.path.insert(0, os.environ["BENCH_PEER"])
import flower_rounds

path, found, *counts = json.loads(os.environ["BENCH_ROUNDS"])


def keep(values):
    draft = Path(found + ".new")
    draft.write_text(json.dumps(values))
    draft.rename(found)


apps = flower_rounds.apps(path, *counts, keep)
client = apps[0]
server = apps[1]
"""


def main(path: str, size: int, devices: int, rounds: int, patience_s: int) -> None:
    end = time.monotonic() + patience_s
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        found, app = folder / "found.json", folder / "app"
        app.mkdir()
        (app / "pyproject.toml").write_text(_PROJECT)
        (app / "bench_app.py").write_text(_APP)
        link, *ports = _free_ports(1 + devices)
        told = json.dumps([str(Path(path).absolute()), str(found), size, devices, rounds])
        environment = os.environ | {
            "FLWR_HOME": name, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
            "BENCH_PEER": str(HERE), "BENCH_ROUNDS": told,
            "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
        }  # fmt: skip
        (folder / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "127.0.0.1:{link}"\ninsecure = true\n'
        )
        log = stack.enter_context((folder / "log").open("w+b"))

        def start(*command: str) -> None:
            process = subprocess.Popen(
                [BIN / command[0], *command[1:]],
                env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            stack.callback(_end, process)

        start("flower-superlink", "--insecure", "--port", str(link),
              "--disable-runtime-dependency-installation")  # fmt: skip
        _until(lambda: _listens(link), end)
        for number, port in enumerate(ports):
            start("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}",
                  "--port", str(port), "--node-config", f"partition-id={number}")  # fmt: skip
        asked = [BIN / "flwr", "run", str(app), "here"]
        told = subprocess.run(asked, env=environment, capture_output=True, text=True)
        if told.returncode:
            sys.exit(told.stdout + told.stderr)
        _until(found.exists, end)
        print(found.read_text())


def _until(look, end: float) -> None:
    while not look():
        if time.monotonic() > end:
            sys.exit("out of patience")
        time.sleep(LOOK_S)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


def _end(process: subprocess.Popen) -> None:
    """And the processes that it started: each has a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
