"""Lock file: one running agent per folder."""

import fcntl
import os
from pathlib import Path

from shoal.agent.host.io.folder import LOCK
from shoal.errors import SettingError


def lock(folder: Path) -> int:
    """Lock the folder until this process ends; SettingError when another agent holds the lock."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise SettingError(
            f"another agent runs in {folder}", "give each agent a folder of its own"
        ) from error
    return descriptor
