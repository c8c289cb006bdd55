"""What a file differs by from an older one (shoal.delta): made when first asked for, and kept.

One is made at a time, on a thread of its own: a whole fleet that asks for the same one waits for
one piece of work, and downloads go on meanwhile. The engine asks first (io/ahead.py). Deltas are
no more than a saving: any may be deleted at any time.

    deltas/OLD-NEW    the delta; empty where it would be hardly shorter than the file itself
"""

import asyncio
import contextlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shoal import delta
from shoal.errors import AbsentError, BundleError

log = logging.getLogger(__name__)

_HINT = "the whole file does as well"
#: Deltas that are kept; the one made longest ago goes first.
KEPT = 200


class Deltas:
    """Deltas between the blobs of a controller's folder, as files below deltas/."""

    def __init__(self, folder: Path) -> None:
        self._blobs, self._folder = folder / "blobs", folder / "deltas"
        self._thread = ThreadPoolExecutor(1, "delta")
        self._making: dict[str, asyncio.Future[Path]] = {}

    async def path(self, old: str, new: str) -> Path:
        """Where the delta lies, made now if need be; AbsentError where there is none worth it.

        old, new   sha256 of blobs, both checked to be no more than that
        """
        name = f"{old}-{new}"
        path = self._folder / name
        if path.is_file():
            return _worth(path)
        making = self._making.get(name)
        if making is None:
            loop = asyncio.get_running_loop()
            making = loop.run_in_executor(self._thread, self._make, old, new, path)
            self._making[name] = making
            making.add_done_callback(lambda _: self._making.pop(name, None))
        return await asyncio.shield(making)

    def _make(self, old: str, new: str, path: Path) -> Path:
        try:
            made = self._made(*(self._blobs / sha256[:2] / sha256 for sha256 in (old, new)))
            self._keep(path, made)
        except (OSError, MemoryError, ImportError) as error:
            log.warning("no delta %s: %s", path.name[:16], error)
            raise AbsentError("delta", path.name, _HINT) from error
        log.info("delta %s: %d bytes", path.name[:16], len(made))
        return _worth(path)

    def _made(self, old: Path, new: Path) -> bytes:
        """The delta; nothing where it would spare too little, or cannot be made of such files."""
        size = new.stat().st_size
        try:
            if max(old.stat().st_size, size) > delta.LIMIT:
                return b""
            return delta.make(old.read_bytes(), new.read_bytes(), delta.WORST_RATIO * size)
        except BundleError:
            return b""

    def _keep(self, path: Path, made: bytes) -> None:
        self._folder.mkdir(exist_ok=True)
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(made)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        there = sorted(self._folder.iterdir(), key=lambda each: each.stat().st_mtime)
        for old in there[:-KEPT]:
            with contextlib.suppress(OSError):
                old.unlink()


def _worth(path: Path) -> Path:
    if path.stat().st_size == 0:
        raise AbsentError("delta", path.name, _HINT)
    return path
