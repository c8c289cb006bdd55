"""Child processes of the demo: tracked and ended by pid, each with its own log file."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from shoal.cli.exit_codes import FailedError

_TERMINATE_S = 10.0
_TAIL = 1500


class Child:
    """A process in its own session: Ctrl-C reaches only the demo."""

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

    def terminate(self) -> None:
        if not self.ended:
            self._process.terminate()

    def kill(self) -> None:
        """kill -9 this process."""
        self._process.kill()
        self._process.wait()

    def kill_session(self) -> None:
        """kill -9 the rest of its session, such as a killed supervisor's children."""
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
    """All child processes. `check` raises when one died unexpectedly.

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
        """Start `python -m command...` and monitor it until it is ended or killed."""
        argv = [sys.executable, "-m", *command]
        child = Child(name, argv, self.logs / f"{name}.log", self._environment)
        self._children[name] = child
        return child

    def run_all(self, commands: Mapping[str, list[str]], seconds: float) -> None:
        """Run short commands in parallel; FailedError, with the log, unless each exits with 0."""
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
            tail = log.read_text(errors="replace")[-_TAIL:].strip()
            raise FailedError(f"{name} ended with code {run.returncode}: {tail}")
        return run.stdout

    def kill(self, name: str) -> None:
        """kill -9 one child and stop monitoring it."""
        self._children.pop(name).kill()

    def check(self) -> None:
        for child in self._children.values():
            if child.ended:
                raise FailedError(
                    f"{child.name} (pid {child.pid}) ended with code {child.code}: {child.tail()}"
                )

    def end_all(self, warn: Callable[[str], None]) -> None:
        """Terminate every child by pid, devices first; kill those that do not exit."""
        for child in reversed(self._children.values()):
            child.terminate()
        for child in reversed(self._children.values()):
            if not child.wait(_TERMINATE_S):
                warn(f"{child.name} did not terminate; killed")
            child.kill_session()
        self._children.clear()


def free_ports(count: int) -> list[int]:
    """Ports on loopback that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [open_.getsockname()[1] for open_ in sockets]
    for open_ in sockets:
        open_.close()
    return ports
