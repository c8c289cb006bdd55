"""The agent's folder: names of its files, owner, and the lock of the one running agent."""

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from shoal.errors import SettingError

#: Default folder of the agent.
FOLDER = Path("/var/lib/shoal-agent")

SETTINGS = "agent.toml"
KEY, CERTIFICATE, CA = "device.key", "device.crt", "ca.pem"
RENEWED, SESSION = "renewed.pem", "session"
ROOT, DIRECTOR = "root.json", "director.json"
METADATA, MODELS, CACHE, SPOOL = "metadata", "models", "cache", "spool"
LEARNING = "learning"
JOURNAL, OUTBOX = "journal.db", "outbox.db"
CARRIED, WANTED, READY = "carried", "export.wanted", "export.ready"
SOCKET, ADDRESS, LOCK = "agent.sock", "endpoint", "agent.lock"


def read_trusted(folder: Path, name: str) -> bytes:
    """Read a file that enrolment wrote; SettingError when it is missing."""
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise SettingError(
            f"{folder / name}: {error.strerror}", "enrol this device again"
        ) from error


def give(home: Path, paths: Iterable[Path]) -> None:
    """Give files that root created in the agent's folder `home` to the agent's user."""
    if os.geteuid():
        return
    owner = home.stat()
    for path in paths:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _open_lock(folder: Path) -> int:
    """The lock's file; on a read-only disk what is there of it: the file, or else the folder."""
    try:
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        path = folder / LOCK if (folder / LOCK).exists() else folder
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise SettingError(
                f"{path}: {error.strerror}", "is it there, and may this user read and write it?"
            ) from error


def runs_as(folder: Path, locks: Path = Path("/proc/locks")) -> int:
    """Process that holds the folder's lock; 0 for none. Takes no lock itself.

    locks   the kernel's list; man 5 proc_locks
    """
    try:
        path = folder / LOCK
        held = (path if path.exists() else folder).stat()
        lines = locks.read_text().splitlines()
    except OSError:
        return 0
    own = f"{os.major(held.st_dev):02x}:{os.minor(held.st_dev):02x}:{held.st_ino}"
    for words in map(str.split, lines):
        if words[1:2] == ["FLOCK"] and words[5:6] == [own]:
            return int(words[4])
    return 0


def lock(folder: Path) -> int:
    """Lock the folder until this process ends; SettingError when another agent holds the lock."""
    descriptor = _open_lock(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise SettingError(
            f"another agent runs in {folder}", "give each agent a folder of its own"
        ) from error
    return descriptor
