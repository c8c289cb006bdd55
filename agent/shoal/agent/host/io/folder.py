"""Names of the files in the agent's folder."""

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
