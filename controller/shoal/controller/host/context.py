"""Context of a use case: settings, clock, randomness, and the ports to database, files and keys."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from sqlalchemy import Connection

from shoal.controller.host.settings import Settings
from shoal.controller.host.windows import NewWindow, StoredWindow, WindowKey
from shoal.federated.config import Config
from shoal.orders import Order


class Windows(Protocol):
    """What devices saw, in order of arrival: shoal.controller.store.io.window_files."""

    def last(self) -> int: ...
    def spans(self) -> list[tuple[str, int, int]]: ...
    def after(self, position: int, limit: int) -> list[StoredWindow]: ...
    def of(
        self,
        *,
        device: str = ...,
        site: str = ...,
        model: str = ...,
        release: str = ...,
        since: float = ...,
        until: float = ...,
        after: int = ...,
        limit: int,
        newest: bool = ...,
    ) -> list[StoredWindow]: ...
    def count(self, since: float) -> tuple[int, int]: ...
    def find(self, keys: Iterable[WindowKey]) -> dict[WindowKey, NewWindow]: ...
    def add(self, db: Connection, windows: Sequence[NewWindow]) -> None: ...
    def drop(self, before: float) -> int: ...


class Store(Protocol):
    """Transactions on the database: shoal.controller.store.io.database."""

    @property
    def windows(self) -> Windows: ...
    def read(self) -> AbstractContextManager[Connection]: ...
    def write(self) -> AbstractContextManager[Connection]: ...
    def commits(self) -> object: ...
    def close(self) -> None: ...


class Blob(NamedTuple):
    """sha256 in hex, size in bytes."""

    sha256: str
    size: int


class Blobs(Protocol):
    """Artifacts by SHA-256: shoal.controller.releases.io.blobs."""

    def put_bytes(self, data: bytes, limit: int = ...) -> Blob: ...
    def put_file(self, path: Path, limit: int = ...) -> Blob: ...
    def exists(self, sha256: str) -> bool: ...
    def path(self, sha256: str) -> Path: ...
    def read(self, sha256: str) -> bytes: ...
    def remove(self, sha256: str) -> None: ...


class Signer(Protocol):
    """TUF metadata and the keys that sign it: shoal.controller.releases.io.signing."""

    @property
    def metadata_folder(self) -> Path: ...
    @property
    def root(self) -> bytes: ...
    @property
    def director_root(self) -> bytes: ...
    @property
    def timestamp(self) -> bytes: ...
    @property
    def roots(self) -> dict[int, bytes]: ...
    def director_roots(self, after: int, limit: int = ...) -> list[bytes]: ...
    def add_target(self, role: str, model: str, version: int, manifest: bytes) -> str: ...
    def remove_target(self, model: str, version: int) -> None: ...
    def revoke_target(self, model: str, version: int) -> int: ...
    def proof(self, role: str, model: str, version: int) -> bytes: ...
    def key_id(self, role: str, model: str) -> str: ...
    def refresh_timestamps(self, now: float) -> list[str]: ...
    def renew_timestamp(self, now: float) -> bytes: ...
    def expiries(self) -> dict[str, float]: ...
    def folder_metadata(self, models: Sequence[str], now: float) -> dict[str, bytes]: ...
    def sign_orders(
        self,
        device: str,
        version: int,
        orders: Sequence[Order],
        now: float,
        epochs: Mapping[str, int] = ...,
    ) -> bytes: ...
    def sign_round(self, config: Config, now: float) -> bytes: ...


class Context(NamedTuple):
    """The first argument of every use case.

    folder   the controller's folder
    clock    Unix seconds, UTC
    random   for what is drawn, never for secrets
    address  the network address that the request came from, for the audit log; "" for none
    """

    folder: Path
    settings: Settings
    store: Store
    blobs: Blobs
    signer: Signer
    clock: Callable[[], float]
    random: random.Random
    address: str = ""
