"""One child process of the supervisor: started, logged to a file, started again after a pause."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

FIRST_PAUSE_S, LONGEST_PAUSE_S, SETTLED_S = 0.5, 30.0, 60.0
LOG_LIMIT = 10 * 2**20
#: Told to a child that it shall end with its parent: see lifetime.py.
SUPERVISED = "SHOAL_SUPERVISED"
_WORTH_TELLING = re.compile(
    r"\b(?:WARNING|ERROR|CRITICAL)\b|\[(?:ERR|FTL)\]|^\w*(?:Error|Exception)\b"
)


class LogFile:
    """Lines of one child; at 10 MB the file becomes <name>.log.1."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def write(self, line: bytes) -> None:
        if self._file is None or self._file.tell() > LOG_LIMIT:
            self._turn()
        if self._file is not None:
            self._file.write(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _turn(self) -> None:
        full = self._file is not None
        self.close()
        if full:
            self._path.replace(self._path.with_suffix(".log.1"))
        self._file = self._path.open("ab", buffering=0)


class Child:
    """A part of the controller in a process of its own.

    name    also the name of its log file
    argv    what to run
    tell    is given the lines that a person at the terminal should see
    sign    matches the log line by which it says that it is ready, if it says so
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        tell: Callable[[str], None],
        sign: re.Pattern[str] | None = None,
    ) -> None:
        self.name, self._argv, self._log, self._tell = name, list(argv), LogFile(log), tell
        self._sign = sign
        self.ready = False
        self._process: subprocess.Popen[bytes] | None = None
        self._drain: threading.Thread | None = None
        self._started = self._next = 0.0
        self._pause_s = FIRST_PAUSE_S
        self.starts = 0

    @property
    def pid(self) -> int:
        """0 when it does not run."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process is not None else 0

    def start(self, now: float) -> None:
        """Start it in a session of its own: Ctrl-C at the terminal is the supervisor's alone."""
        self._started = now
        self.starts += 1
        self.ready = False
        self._process = subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, SUPERVISED: "1", "PYTHONUNBUFFERED": "1"},
        )
        self._drain = threading.Thread(
            target=self._read, args=(self._process.stdout,), name=f"log-{self.name}", daemon=True
        )
        self._drain.start()

    def keep(self, now: float) -> None:
        """Start it again when it has ended: after a pause that doubles while it keeps ending."""
        if self._process is None or self._process.poll() is None:
            return
        if not self._next:
            lived_s = now - self._started
            self._pause_s = FIRST_PAUSE_S if lived_s > SETTLED_S else self._pause_s
            self._next = now + self._pause_s
            self._tell(
                f"{self.name} {how_it_ended(self._process.returncode)}; "
                f"again in {self._pause_s:g} s"
            )
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        if now >= self._next:
            self._next = 0.0
            self.start(now)

    def ask_to_end(self) -> None:
        """SIGTERM."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def end(self, patience_s: float) -> None:
        """Wait for it, SIGKILL after `patience_s`."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, patience_s))
        except subprocess.TimeoutExpired:
            self._tell(f"{self.name} does not end; killed")
            self._process.kill()
            self._process.wait()
        if self._drain is not None:
            self._drain.join(2)
        self._log.close()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._log.write(line)
                text = line.decode(errors="replace").rstrip()
                if self._sign is not None and self._sign.search(text):
                    self.ready = True
                if _WORTH_TELLING.search(text):
                    self._tell(f"{self.name}: {text}")


def how_it_ended(code: int) -> str:
    """For a person: exit code, or the signal that killed it."""
    return f"ended with code {code}" if code >= 0 else f"was killed by signal {-code}"


def tell_on_stderr(text: str) -> None:
    """One line, whole even when several threads tell."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
