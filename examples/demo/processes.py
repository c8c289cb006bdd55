"""The demo's own processes: each known by its pid, logged to a file, and ended by that pid."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from shoal.cli.exit_codes import FailedError

_GENTLE_S = 10.0
_TAIL = 1500


class Child:
    """One process in a session of its own, so that Ctrl-C reaches the demo alone."""

    def __init__(
        self, name: str, command: list[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name, self.log = name, log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def code(self) -> int | None:
        return self._process.poll()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within `seconds`."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def ask_to_end(self) -> None:
        if not self.ended:
            self._process.terminate()

    def kill(self) -> None:
        """kill -9: this process, no goodbye."""
        self._process.kill()
        self._process.wait()

    def sweep(self) -> None:
        """kill -9 whatever is left of its session: a killed supervisor's children."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass

    def tail(self) -> str:
        """The end of its log."""
        try:
            return self.log.read_bytes()[-_TAIL:].decode(errors="replace").strip()
        except OSError:
            return ""


class Processes:
    """All of them. `check` raises when one died that should not have.

    folder   holds log/
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.logs = folder / "log"
        self.logs.mkdir(parents=True, exist_ok=True)
        self._environment = {
            name: value for name, value in environment.items() if not name.startswith("SHOAL_")
        } | {"PYTHONUNBUFFERED": "1"}
        self._children: dict[str, Child] = {}

    def start(self, name: str, *command: str) -> Child:
        """Start `python -m command...` and watch over it until it is ended or killed."""
        argv = [sys.executable, "-m", *command]
        child = Child(name, argv, self.logs / f"{name}.log", self._environment)
        self._children[name] = child
        return child

    def run_all(self, commands: Mapping[str, list[str]], seconds: float) -> None:
        """Run short commands side by side, each to exit code 0; FailedError shows its log."""
        children = [self.start(name, *command) for name, command in commands.items()]
        for child in children:
            if not child.wait(seconds):
                raise FailedError(f"{child.name} takes over {seconds:.0f} s: {child.tail()}")
            self._children.pop(child.name)
            if child.code != 0:
                raise FailedError(f"{child.name} ended with code {child.code}: {child.tail()}")

    def output(self, name: str, *command: str) -> bytes:
        """Standard output of a short command; its standard error is the log."""
        log = self.logs / f"{name}.log"
        with log.open("ab") as errors:
            run = subprocess.run(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environment,
            )
        if run.returncode != 0:
            told = log.read_text(errors="replace")[-_TAIL:].strip()
            raise FailedError(f"{name} ended with code {run.returncode}: {told}")
        return run.stdout

    def kill(self, name: str) -> None:
        """kill -9 one child; it is expected to be dead from now on."""
        self._children.pop(name).kill()

    def check(self) -> None:
        for child in self._children.values():
            if child.ended:
                raise FailedError(
                    f"{child.name} (pid {child.pid}) ended with code {child.code}: {child.tail()}"
                )

    def end_all(self, say: Callable[[str], None]) -> None:
        """Ask every child to end, devices first; kill those that do not. By pid, never by name."""
        for child in reversed(self._children.values()):
            child.ask_to_end()
        for child in reversed(self._children.values()):
            if not child.wait(_GENTLE_S):
                say(f"{child.name} did not end when asked; killed")
            child.sweep()
        self._children.clear()


def free_ports(count: int) -> list[int]:
    """Ports on loopback that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [open_.getsockname()[1] for open_ in sockets]
    for open_ in sockets:
        open_.close()
    return ports
