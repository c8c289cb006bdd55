"""Row buffer: the device's own rows for training, on its disk only, and bounded.

One SQLite file. New rows are in memory for a few seconds, so that a slow card is not written a row
at a time; a power cut loses these. A row has a checksum, because SQLite has none. A deleted row is
overwritten.
"""

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from shoal.agent.host.io.config import LearningSettings
from shoal.agent.host.io.database import (
    DamagedError,
    SqliteStore,
    open_database,
    readable_rows,
    set_aside,
    translated,
)
from shoal.agent.serving.engine import Engine
from shoal.agent.telemetry.io.salvage import checksum
from shoal.errors import StorageError
from shoal.sketch import F32

#: Rows in memory at most, and seconds; rows between two checks of the limits.
WAITING, FLUSH_S, _TRIM = 256, 5.0, 256
#: Bytes of a row beside its values.
_AROUND = 120
_DAY_S = 86_400.0
BUFFER = "buffer.db"
_FIELDS = "model, kind, key, at_s, label, size, crc, x"


class Limits(NamedTuple):
    """bytes: of all rows; rows: of one model; seconds: age of deletion, 0 for never."""

    bytes: int
    rows: int
    seconds: float


class RowCounts(msgspec.Struct, frozen=True):
    """Rows of one model with the same features. labels: label -> rows; without: unlabelled rows.

    since_s   Unix seconds of the oldest
    """

    model: str
    kind: str
    labels: dict[str, int]
    without: int
    bytes: int
    since_s: float


def open_buffer(folder: Path, settings: LearningSettings) -> "Buffer":
    """Open the buffer in the learning folder, with the limits of agent.toml."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}") from error
    most = int(settings.limit_mb * 2**20)
    limits = Limits(most, settings.most_rows, settings.days * _DAY_S)
    return Buffer(folder / BUFFER, limits, time.time)


class Buffer(SqliteStore):
    """Rows of every model of this device. Safe to share between threads, and processes.

    lost   why an earlier file was set aside, "" when none was; its readable rows were copied
    """

    def __init__(self, path: Path, limits: Limits, wall: Callable[[], float]) -> None:
        self._limits, self._wall, self.lost = limits, wall, ""
        self._lock, self._waiting = threading.Lock(), list[tuple]()
        self._since_trim, self._flushed_s = _TRIM, wall()
        super().__init__(path)

    def add(
        self,
        model: str,
        features: Sequence[str],
        rows: F32,
        labels: Sequence[str | None],
        keys: Sequence[str] = (),
    ) -> None:
        """Add rows, float32 (n, F), flushed later; a label of None can be set later by its key."""
        kind, now = kind_of(features), self._wall()
        keys = keys or [""] * len(rows)
        with self._lock:
            for row, label, key in zip(rows, labels, keys, strict=True):
                x = row.astype("<f4").tobytes()
                size = len(x) + _AROUND
                self._waiting.append((model, kind, key, now, label, size, checksum(x), x))
            del self._waiting[: -4 * WAITING]  # while the disk refuses, the oldest are dropped

    def due(self) -> bool:
        """Whether it is time to `flush`."""
        waits = len(self._waiting)
        return waits >= WAITING or (waits > 0 and self._wall() - self._flushed_s >= FLUSH_S)

    def flush(self) -> None:
        """Write the rows in memory; StorageError: they stay there."""
        with self._lock:
            rows = list(self._waiting)
        self._flushed_s = self._wall()
        if rows:
            self._retried(lambda: self._insert(rows))
        with self._lock:
            del self._waiting[: len(rows)]
        self._since_trim += len(rows)
        if self._since_trim >= _TRIM:
            self.trim()

    def trim(self) -> None:
        """Delete rows beyond the limits, the oldest first."""
        self._retried(self._trim)
        self._since_trim = 0

    def label(self, key: str, label: str) -> int:
        """Set the label of the rows with `key`; number of them."""
        self.flush()
        sql = "UPDATE row SET label = ? WHERE key = ? AND key != ''"
        return self._changed(sql, [label, key])

    def clear(self, model: str = "") -> int:
        """Delete the rows of a model, or all; number of them."""
        self.flush()
        where = "model = ?" if model else "1 OR ?"
        return self._changed(f"DELETE FROM row WHERE {where}", [model])  # noqa: S608

    def count(self, model: str, features: Sequence[str]) -> int:
        """Number of labelled rows for training."""
        sql = "SELECT count(*) FROM row WHERE model = ? AND kind = ? AND label IS NOT NULL"
        return int(self._all(sql, [model, kind_of(features)])[0][0])

    def held(self) -> list[RowCounts]:
        """Number of rows by model and features."""
        sql = (
            "SELECT model, kind, label, count(*), sum(size), min(at_s) FROM row "
            "GROUP BY model, kind, label ORDER BY model, kind, label"
        )
        found: dict[tuple[str, str], RowCounts] = {}
        for model, kind, label, count, size, since in self._all(sql):
            held = found.get((model, kind)) or RowCounts(model, kind, {}, 0, 0, since)
            labels = held.labels | ({label: count} if label is not None else {})
            found[model, kind] = msgspec.structs.replace(
                held,
                labels=labels,
                without=held.without + (count if label is None else 0),
                bytes=held.bytes + size,
                since_s=min(held.since_s, since),
            )
        return list(found.values())

    def _insert(self, rows: Sequence[tuple]) -> None:
        with self._db.atomic():
            marks = ", ".join("?" * 8)
            for row in rows:
                self._db.execute(f"INSERT INTO row ({_FIELDS}) VALUES ({marks})", row)  # noqa: S608

    def _trim(self) -> None:
        with self._db.atomic():
            if self._limits.seconds:
                oldest = self._wall() - self._limits.seconds
                self._db.execute("DELETE FROM row WHERE at_s < ?", [oldest])
            self._db.execute(
                "DELETE FROM row WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER "
                "(PARTITION BY model ORDER BY id DESC) AS place FROM row) WHERE place > ?)",
                [self._limits.rows],
            )
            self._db.execute(
                "DELETE FROM row WHERE id IN (SELECT id FROM (SELECT id, sum(size) OVER "
                "(ORDER BY id DESC) AS total FROM row) WHERE total > ?)",
                [self._limits.bytes],
            )

    def _changed(self, sql: str, given: list) -> int:
        """Change rows; number of them."""

        def change() -> int:
            with self._db.atomic():
                return self._db.execute(sql, given).rowcount

        return self._retried(change)

    def _all(self, sql: str, given: Sequence[str] = ()) -> list[tuple]:
        return self._retried(lambda: self._db.execute(sql, given).fetchall())

    def _open(self) -> None:
        self._db = open_database(self._path)
        with translated(self._path):
            self._db.execute("PRAGMA secure_delete=ON")
            self._db.table("row").create(
                {
                    "id": int, "model": str, "kind": str, "key": str, "at_s": float,
                    "label": str, "size": int, "crc": int, "x": bytes,
                },
                pk="id", if_not_exists=True,
            )  # fmt: skip
            self._db.execute("CREATE INDEX IF NOT EXISTS by_kind ON row (model, kind, label)")
            self._db.execute("CREATE INDEX IF NOT EXISTS by_key ON row (key) WHERE key != ''")

    def _restart(self, error: DamagedError) -> None:
        """Start a new file with the readable rows of the damaged one, which is then deleted."""
        kept = set_aside(self._path)
        saved = list(_valid_rows(kept))
        self._open()
        with translated(self._path):
            self._insert(saved)
        for suffix in ("", "-wal", "-shm"):
            kept.with_name(kept.name + suffix).unlink(missing_ok=True)
        self.lost = f"{error}; {len(saved)} rows of it could be read"


class RowCollection:
    """Adds rows of sources, the endpoint and other programs, as far as `learning.keep` allows it.

    rows   None where nothing is kept
    keep   "nothing", "labelled" or "served"
    labelled, served, given   None where such rows are not kept
    """

    def __init__(self, rows: Buffer | None, keep: str) -> None:
        self._rows = rows
        labelled = rows is not None and keep in ("labelled", "served")
        self.labelled = self._labelled if labelled else None
        self.served = self._served if rows is not None and keep == "served" else None
        self.given = rows.add if rows is not None and labelled else None

    def _labelled(self, engine: Engine, rows: F32, labels: Sequence[str]) -> None:
        assert self._rows is not None
        features = [f.name for f in engine.manifest.features]
        self._rows.add(engine.manifest.model, features, rows, labels)

    def _served(self, engine: Engine, rows: F32, request_id: str) -> None:
        """Add rows without a label; keys of a larger request are ID/0, ID/1, ..."""
        assert self._rows is not None
        keys = [request_id] if len(rows) == 1 else [f"{request_id}/{i}" for i in range(len(rows))]
        features = [f.name for f in engine.manifest.features]
        self._rows.add(engine.manifest.model, features, rows, [None] * len(rows), keys)


def kind_of(features: Sequence[str]) -> str:
    """Hash of a row's features: rows with other features are not used for training."""
    return hashlib.sha256("\0".join(features).encode()).hexdigest()[:16]


class Examples(NamedTuple):
    """x float32 (n, F); labels as text."""

    x: F32
    labels: list[str]


def read_examples(path: Path, model: str, features: Sequence[str]) -> Examples:
    """Read the valid labelled rows of a model, in the trainer's process."""
    wanted, width = (model, kind_of(features)), len(features)
    found = [
        (x, label)
        for of, kind, _, _, label, _, _, x in _valid_rows(path)
        if (of, kind) == wanted and label is not None and len(x) == 4 * width
    ]
    values = np.frombuffer(b"".join(x for x, _ in found), "<f4").reshape(-1, width)
    return Examples(values.astype(np.float32, copy=False), [label for _, label in found])


def _valid_rows(path: Path) -> Iterator[tuple]:
    """Rows by _FIELDS with a valid checksum; of a damaged file the readable ones."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA cache_size=-256")
        select = f"SELECT id, {_FIELDS} FROM row"  # noqa: S608
        for _, *row in readable_rows(connection, select, WAITING):
            if isinstance(row[-1], bytes) and checksum(row[-1]) == row[-2]:
                yield tuple(row)
    except sqlite3.Error:
        return
    finally:
        connection.close()
