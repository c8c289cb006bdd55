"""Disk reserve: a file that is deleted at a start on a full disk, so that the agent can start.

The journal and the outbox need free space to be opened; without it the journal is read from a copy
and the outbox is in memory, until there is some. The reserve has allocated blocks in the
agent's folder; the next start with enough free space creates it again. A running agent survives a
full disk without it.
"""

import logging
import os
import shutil
from pathlib import Path

_log = logging.getLogger(__name__)

NAME = "reserve"
#: Bytes of the reserve; free bytes below which it is deleted, above which it is created.
SIZE, SCARCE, PLENTY = 2 << 20, 1 << 20, 8 << 20


def adjust_reserve(folder: Path) -> bool:
    """Create the reserve where there is space, delete it on a full disk.

    True when it was deleted now. Never raises: serving does not depend on it.
    """
    path = folder / NAME
    if not folder.is_dir():
        return False  # not enrolled yet
    try:
        free = shutil.disk_usage(folder).free
        if free < SCARCE and path.exists():
            path.unlink()
            _log.warning("the disk of %s is full: its reserve is used up; free some space", folder)
            return True
        if free > PLENTY and not path.exists():
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, SIZE)
    except OSError as error:
        _log.warning("%s: %s", path, error.strerror)
    return False
