"""Binary deltas between blobs (shoal.delta): made at the first request, then cached.

One is made at a time, on its own thread: devices that request the same one wait for one
computation, and downloads go on meanwhile. The engine requests them early (rollouts/io/
delta_prefetch). Deltas only save bandwidth: any may be deleted at any time.

    deltas/OLD-NEW    the delta; empty if it would be hardly shorter than the file itself
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

_HINT = "fetch the whole file"
#: Cached deltas; the oldest is deleted first.
CACHED = 200


class DeltaCache:
    """Deltas between the blobs of a controller's folder, as files below deltas/."""

    def __init__(self, folder: Path) -> None:
        self._blobs, self._folder = folder / "blobs", folder / "deltas"
        self._thread = ThreadPoolExecutor(1, "delta")
        self._pending: dict[str, asyncio.Future[Path]] = {}

    async def path(self, old: str, new: str) -> Path:
        """Path of the delta, made now if missing; AbsentError if it would not be worth it.

        old, new   sha256 of blobs, both checked to be hex digits
        """
        name = f"{old}-{new}"
        path = self._folder / name
        if path.is_file():
            return _nonempty(path)
        pending = self._pending.get(name)
        if pending is None:
            loop = asyncio.get_running_loop()
            pending = loop.run_in_executor(self._thread, self._make, old, new, path)
            self._pending[name] = pending
            pending.add_done_callback(lambda _: self._pending.pop(name, None))
        return await asyncio.shield(pending)

    def _make(self, old: str, new: str, path: Path) -> Path:
        try:
            made = self._delta(*(self._blobs / sha256[:2] / sha256 for sha256 in (old, new)))
            self._save(path, made)
        except (OSError, MemoryError, ImportError) as error:
            log.warning("no delta %s: %s", path.name[:16], error)
            raise AbsentError("delta", path.name, _HINT) from error
        log.info("delta %s: %d bytes", path.name[:16], len(made))
        return _nonempty(path)

    def _delta(self, old: Path, new: Path) -> bytes:
        """The delta; empty if it would save too little or cannot be made of these files."""
        size = new.stat().st_size
        try:
            if max(old.stat().st_size, size) > delta.LIMIT:
                return b""
            return delta.make(old.read_bytes(), new.read_bytes(), delta.WORST_RATIO * size)
        except BundleError:
            return b""

    def _save(self, path: Path, made: bytes) -> None:
        self._folder.mkdir(exist_ok=True)
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(made)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        there = sorted(self._folder.iterdir(), key=lambda each: each.stat().st_mtime)
        for old in there[:-CACHED]:
            with contextlib.suppress(OSError):
                old.unlink()


def _nonempty(path: Path) -> Path:
    if path.stat().st_size == 0:
        raise AbsentError("delta", path.name, _HINT)
    return path
