"""Real servers as processes of their own, killed and started again on the same port."""

import subprocess
import sys
from pathlib import Path

from feeds.mosquitto import answers, free_port
from plant import eventually


class Server:
    """`script` of this folder, run with a port and more arguments."""

    def __init__(self, script: str, *arguments: str) -> None:
        self.port = free_port()
        self._command = [sys.executable, str(Path(__file__).parent / script), str(self.port),
                         *arguments]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        eventually(lambda: answers(self.port), "the server", within_s=60)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
