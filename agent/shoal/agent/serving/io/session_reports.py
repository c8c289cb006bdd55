"""How sessions in other programs testify while the agent observes a release: a file each.

    spool/observed               is there while the agent asks: nobody writes a byte without it
    spool/<random>.account       length and CRC-32 (little-endian), then a SessionReport as JSON

A session keeps its file locked (flock) and writes it anew about every second; it deletes it when
it closes. A file that nobody locks is of a program that crashed.
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

_ASKED, _MODE, _HEAD = "observed", 0o640, struct.Struct("<II")
#: Files looked at; bytes of one.
_MOST, _LONGEST = 64, 4096
#: A reason is cut, so that an account fits.
_WHY = 500


class SessionReportWriter:
    """One session's side."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"{secrets.token_hex(8)}.account"
        self._file = -1
        with contextlib.suppress(OSError):  # the agent asks where there is a folder
            folder.mkdir(exist_ok=True)

    def tell(self, account: SessionReport) -> None:
        """Say it if the agent asks; never raises: a program's answers come first."""
        try:
            if not (self._folder / _ASKED).exists():
                self.close()
                return
            if self._file < 0:
                self._file = _open_locked(self._path)
            short = msgspec.structs.replace(account, why=account.why[:_WHY])
            data = msgspec.json.encode(short)
            os.pwrite(self._file, _HEAD.pack(len(data), zlib.crc32(data)) + data, 0)
        except OSError as error:
            _log.info("%s: %s", self._path, error)

    def close(self) -> None:
        """This session has no more to say, and has not crashed."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


class SessionReportReader:
    """The agent's side: SessionReports."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> list[SessionReport]:
        if not self._folder.is_dir():
            return []
        try:
            (self._folder / _ASKED).touch(_MODE)
        except OSError as error:
            _log.info("sessions are not asked: %s", error)
        found = (_heard(path) for path in self._files())
        return [one for one in found if one is not None]

    def end(self, model: str) -> None:
        try:
            (self._folder / _ASKED).unlink(missing_ok=True)
            for path in self._files():
                said = _heard(path)
                if said is None or (said.model == model and not said.lives):
                    path.unlink(missing_ok=True)
        except OSError as error:
            _log.info("%s: %s", self._folder, error)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.account"))[:_MOST]


def _open_locked(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _heard(path: Path) -> SessionReport | None:
    """What the file says; None for one that cannot be believed, or is not written yet."""
    try:
        with path.open("rb") as file:
            lives = _locked(file.fileno())
            data = file.read(_LONGEST)
        length, crc = _HEAD.unpack_from(data)
        said = data[_HEAD.size : _HEAD.size + length]
        if zlib.crc32(said) != crc:
            return None
        return msgspec.structs.replace(msgspec.json.decode(said, type=SessionReport), lives=lives)
    except (OSError, struct.error, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False
