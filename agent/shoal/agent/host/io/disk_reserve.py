"""A little disk kept back, so that an agent can start, and its model serve, on a full one.

The journal and the outbox need some room to be opened at all. The reserve is a file of real bytes
in the agent's folder: given up at a start that finds the disk full, kept back again at the next
start that finds room. What runs already is not stopped by a full disk and needs none of it.
"""

import logging
import os
import shutil
from pathlib import Path

_log = logging.getLogger(__name__)

NAME = "reserve"
#: Bytes kept back; free bytes below which they are given up; above which they are kept back again.
SIZE, SCARCE, PLENTY = 2 << 20, 1 << 20, 32 << 20


def settle(folder: Path) -> bool:
    """Keep the reserve back where there is room, give it up where there is none.

    True when it was given up now. Never raises: a reserve is no reason not to serve.
    """
    path = folder / NAME
    if not folder.is_dir():
        return False  # no device yet: the settings say so
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
