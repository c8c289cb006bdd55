"""A whole controller under a real supervisor, for tests."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from broker.real import eventually, free_port

CONTROLLER = [sys.executable, "-m", "shoal.controller"]


class Served:
    """A controller on free ports, served by a real supervisor."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.lines, self.facts = folder, [], {}
        self._environment = {**os.environ, **environment}
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> "Served":
        self.process = subprocess.Popen(
            [*CONTROLLER, "serve", "--folder", str(self.folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment,
        )
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()
        return self

    def _read(self, stream) -> None:
        with stream:
            for line in stream:
                self.lines.append(line.rstrip())

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def ready(self) -> "Served":
        eventually(lambda: "ready: https://" in self.said, f"ready line in: {self.said}", 60)
        return self

    def children(self) -> dict[str, int]:
        """Name -> pid of the running children."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            words = _words(entry)
            if str(self.folder) in " ".join(words) and "serve" not in words:
                found[words[words.index("shoal.controller") + 1] if "-m" in words else "nats"] = (
                    int(entry.name)
                )
        return found

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def _words(entry: Path) -> list[str]:
    try:
        return (entry / "cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def init(folder: Path, *options: str) -> str:
    """Make a controller on free ports in `folder`; what `init` printed."""
    ports = [f"--{name}={free_port()}" for name in ("port", "artifacts-port", "mqtt-port")]
    command = [*CONTROLLER, "init", "--folder", str(folder), *ports, *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
