"""Spool of windows: from a program's own session to the agent's outbox, a file for each window.

    spool/<start, µs>-<random>.window    one WindowReport, MessagePack, durable before it is named

The program writes. The agent adds a file to the outbox under its name, so that it counts once, and
deletes it when the outbox has it on disk. Neither waits for the other, and either may be killed.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from shoal import wire
from shoal.agent.host.faults import Fault
from shoal.durable import translated, write_durable
from shoal.errors import WireError

_log = logging.getLogger(__name__)

#: Windows that may wait: half a day of one program with one a minute; files read at once.
KEPT, AT_ONCE = 720, 50
_MODE = 0o640


class WindowSpool:
    """One spool folder, written by programs and read by the agent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, report: wire.WindowReport, name: str) -> None:
        """Write one window; delete the oldest when too many wait. StorageError: not written."""
        path = self._folder / f"{int(report.window_start_s * 1e6):017d}-{name}.window"
        with translated(path):
            self._folder.mkdir(exist_ok=True)
            write_durable(path, wire.encode(report), _MODE)
        for old in self._waiting()[:-KEPT]:
            _log.warning("%s is dropped: more than %d wait for the agent", old.name, KEPT)
            _delete(old)

    def take(
        self,
        keep: Callable[[wire.WindowReport, str], bool],
        fault: Callable[[Fault], None],
    ) -> None:
        """Pass waiting windows to `keep` (report, key); delete those for which it returns True."""
        for path in self._waiting()[:AT_ONCE]:
            try:
                kept = keep(_read(path), path.name)
            except WireError as error:
                kept = True
                fault(Fault(error.code, f"{path.name}, of a session on this machine: {error}"))
            except OSError as error:
                kept = False
                _log.info("%s waits: %s", path, error)
            if kept:
                _delete(path)

    def _waiting(self) -> list[Path]:
        return sorted(self._folder.glob("*.window"))


def _read(path: Path) -> wire.WindowReport:
    with path.open("rb") as file:
        data = file.read(wire.LIMIT["window"] + 1)
    message = wire.decode_up("window", data)
    assert isinstance(message, wire.WindowReport)
    return message


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s cannot be deleted: %s", path, error)
