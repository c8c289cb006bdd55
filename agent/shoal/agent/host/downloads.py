"""Port: files fetched by hash."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from shoal.manifest import File


class Downloads(Protocol):
    """Fetches by hash. AbsentError: 404; DeniedError: 403; LinkError: try again; StorageError.

    file   into the model's stage, from where it left off; `stop` is asked between pieces
    delta  the same by way of what differs from `base`; BundleError, AbsentError where the whole
           file is the better way
    """

    def small(self, url: str, size: int, sha256: str) -> bytes: ...
    def file(self, url: str, model: str, file: File, stop: Callable[[], bool]) -> int: ...
    def delta(
        self, url: str, model: str, file: File, base: Path, stop: Callable[[], bool]
    ) -> int: ...
