"""A child process of the supervisor: logged to a file, restarted with backoff."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

FIRST_BACKOFF_S, LONGEST_BACKOFF_S, STABLE_S = 0.5, 30.0, 60.0
LOG_LIMIT = 10 * 2**20
#: Environment variable of a child that ends with its parent: see lifetime.py.
SUPERVISED = "SHOAL_SUPERVISED"
_RELAYED = re.compile(r"\b(?:WARNING|ERROR|CRITICAL)\b|\[(?:ERR|FTL)\]|^\w*(?:Error|Exception)\b")


class LogFile:
    """Lines of one child; at 10 MB the file becomes <name>.log.1."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def write(self, line: bytes) -> None:
        if self._file is None or self._file.tell() > LOG_LIMIT:
            self._rotate()
        if self._file is not None:
            self._file.write(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rotate(self) -> None:
        full = self._file is not None
        self.close()
        if full:
            self._path.replace(self._path.with_suffix(".log.1"))
        self._file = self._path.open("ab", buffering=0)


class Child:
    """A part of the controller in its own process.

    name    also the name of its log file
    argv    what to run
    warn    receives its warnings and errors, for the terminal
    ready_pattern   matches the log line that means ready, if there is one
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        warn: Callable[[str], None],
        ready_pattern: re.Pattern[str] | None = None,
    ) -> None:
        self.name, self._argv, self._log, self._warn = name, list(argv), LogFile(log), warn
        self._ready_pattern = ready_pattern
        self.ready = False
        self._process: subprocess.Popen[bytes] | None = None
        self._drain: threading.Thread | None = None
        self._started = self._next = 0.0
        self._backoff_s = FIRST_BACKOFF_S
        self.starts = 0

    @property
    def pid(self) -> int:
        """Process id; 0 if it does not run."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process is not None else 0

    def start(self, now: float) -> None:
        """Start it in its own session: Ctrl-C at the terminal reaches only the supervisor."""
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

    def restart_if_ended(self, now: float) -> None:
        """Restart it if it has ended, with exponential backoff."""
        if self._process is None or self._process.poll() is None:
            return
        if not self._next:
            uptime_s = now - self._started
            self._backoff_s = FIRST_BACKOFF_S if uptime_s > STABLE_S else self._backoff_s
            self._next = now + self._backoff_s
            self._warn(
                f"{self.name} {exit_description(self._process.returncode)}; "
                f"restart in {self._backoff_s:g} s"
            )
            self._backoff_s = min(self._backoff_s * 2, LONGEST_BACKOFF_S)
        if now >= self._next:
            self._next = 0.0
            self.start(now)

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def end(self, timeout_s: float) -> None:
        """Wait for its end; SIGKILL after `timeout_s`."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            self._warn(f"{self.name} does not end; killed")
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
                if self._ready_pattern is not None and self._ready_pattern.search(text):
                    self.ready = True
                if _RELAYED.search(text):
                    self._warn(f"{self.name}: {text}")


def exit_description(code: int) -> str:
    """Exit code, or the signal that killed the process, as text."""
    return f"ended with code {code}" if code >= 0 else f"was killed by signal {-code}"


def print_on_stderr(text: str) -> None:
    """Print one line, atomically across threads."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
