"""Content-addressed artifact store in a folder: blobs/ab/abcdef...

Written to a temporary file, fsynced, then renamed: a blob that exists is complete, even after a
power cut. The same content twice is one file.
"""

import hashlib
import io
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from shoal.controller.host.context import Blob
from shoal.durable import sync
from shoal.errors import AbsentError, OversizeError, StorageError

_CHUNK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
LIMIT = 5 << 30


class Blobs:
    """The artifacts below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, stream: BinaryIO, limit: int = LIMIT) -> Blob:
        """Store the content of `stream`; OversizeError beyond `limit` bytes, StorageError."""
        staging = self.folder / "staging"
        try:
            staging.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=staging, delete=False) as file:
                try:
                    blob = _copy(stream, file, limit)
                    target = self._name(blob.sha256)
                    target.parent.mkdir(exist_ok=True)
                    Path(file.name).replace(target)
                except BaseException:
                    with suppress(OSError):
                        Path(file.name).unlink(missing_ok=True)
                    raise
            sync(target.parent)
        except OSError as error:
            raise StorageError(
                f"{self.folder}: {error.strerror or error}", "free some disk space"
            ) from error
        return blob

    def put_bytes(self, data: bytes, limit: int = LIMIT) -> Blob:
        """Store `data`."""
        return self.put(io.BytesIO(data), limit)

    def put_file(self, path: Path, limit: int = LIMIT) -> Blob:
        """Store a copy of the file at `path`."""
        with path.open("rb") as file:
            return self.put(file, limit)

    def exists(self, sha256: str) -> bool:
        return bool(_SHA256.fullmatch(sha256)) and self._name(sha256).is_file()

    def path(self, sha256: str) -> Path:
        """Path of the blob; AbsentError if there is none, or the argument is no SHA-256."""
        if not self.exists(sha256):
            raise AbsentError("artifact", sha256[:64])
        return self._name(sha256)

    def read(self, sha256: str) -> bytes:
        """All of its bytes; AbsentError if there is no such blob."""
        return self.path(sha256).read_bytes()

    def remove(self, sha256: str) -> None:
        """Delete a blob, if it exists. The caller has checked that nothing refers to it."""
        if self.exists(sha256):
            self._name(sha256).unlink(missing_ok=True)

    def _name(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256


def _copy(stream: BinaryIO, file: "tempfile._TemporaryFileWrapper[bytes]", limit: int) -> Blob:
    digest, size = hashlib.sha256(), 0
    while piece := stream.read(_CHUNK):
        size += len(piece)
        if size > limit:
            raise OversizeError("artifact", size, limit)
        digest.update(piece)
        file.write(piece)
    file.flush()
    os.fsync(file.fileno())
    return Blob(digest.hexdigest(), size)
