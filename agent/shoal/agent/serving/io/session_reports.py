"""Session reports of other programs while the agent observes a release: a file for each session.

    spool/observed               exists while the agent observes; reports are written only then
    spool/<random>.account       length and CRC-32 (little-endian), then a SessionReport as JSON

A session keeps its file locked (flock), rewrites it about every second, and deletes it when it
closes. An unlocked file is of a program that crashed.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import struct
import zlib
from pathlib import Path

import msgspec

from shoal.agent.serving.session_reports import SessionReport

_log = logging.getLogger(__name__)

_OBSERVED, _MODE, _HEAD = "observed", 0o640, struct.Struct("<II")
#: Files read; bytes of one.
_MOST, _LONGEST = 64, 4096
#: Characters of a reason; the rest is cut, so that a report fits.
_WHY = 500


class SessionReportWriter:
    """Writes the report of one session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"{secrets.token_hex(8)}.account"
        self._file = -1
        with contextlib.suppress(OSError):  # the agent observes only where there is a folder
            folder.mkdir(exist_ok=True)

    def write(self, report: SessionReport) -> None:
        """Write the report if the agent observes; never raises into the program."""
        try:
            if not (self._folder / _OBSERVED).exists():
                self.close()
                return
            if self._file < 0:
                self._file = _open_locked(self._path)
            short = msgspec.structs.replace(report, why=report.why[:_WHY])
            data = msgspec.json.encode(short)
            os.pwrite(self._file, _HEAD.pack(len(data), zlib.crc32(data)) + data, 0)
        except OSError as error:
            _log.info("%s: %s", self._path, error)

    def close(self) -> None:
        """Delete the report: the session has ended, not crashed."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


class SessionReportReader:
    """SessionReports read from the spool by the agent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> list[SessionReport]:
        if not self._folder.is_dir():
            return []
        try:
            (self._folder / _OBSERVED).touch(_MODE)
        except OSError as error:
            _log.info("sessions do not report: %s", error)
        found = (_read(path) for path in self._files())
        return [one for one in found if one is not None]

    def end(self, model: str) -> None:
        try:
            (self._folder / _OBSERVED).unlink(missing_ok=True)
            for path in self._files():
                report = _read(path)
                if report is None or (report.model == model and not report.lives):
                    path.unlink(missing_ok=True)
        except OSError as error:
            _log.info("%s: %s", self._folder, error)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.account"))[:_MOST]


def _open_locked(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _read(path: Path) -> SessionReport | None:
    """The report in a file; None for a damaged one, or one that is not written yet."""
    try:
        with path.open("rb") as file:
            lives = _locked(file.fileno())
            data = file.read(_LONGEST)
        length, crc = _HEAD.unpack_from(data)
        body = data[_HEAD.size : _HEAD.size + length]
        if zlib.crc32(body) != crc:
            return None
        return msgspec.structs.replace(msgspec.json.decode(body, type=SessionReport), lives=lives)
    except (OSError, struct.error, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False
