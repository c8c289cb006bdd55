"""Servers in processes of their own, to be killed and restarted on the same port."""

import subprocess
import sys
from pathlib import Path

from ports import free_port, is_open
from waiting import eventually


class Server:
    """A command that listens on `port` of loopback."""

    def __init__(self, port: int, *command: str) -> None:
        self.port, self._command = port, command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        eventually(lambda: is_open(self.port), "the server", within_s=60)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


def server_of(script: str, *arguments: str) -> Server:
    """`script` of this folder, run with a port and more arguments."""
    port = free_port()
    path = Path(__file__).parent / script
    return Server(port, sys.executable, str(path), str(port), *arguments)
