"""Outbox in SQLite: unacknowledged messages and their sequence numbers."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from shoal import wire
from shoal.agent.host.faults import Fault, disk_fault
from shoal.agent.host.io.database import (
    DamagedError,
    SqliteStore,
    deferred_sync,
    open_database,
    open_memory,
    set_aside,
    translated,
)
from shoal.agent.telemetry.io.salvage import Salvaged, checksum, salvage
from shoal.agent.telemetry.outbox import (
    Drop,
    Merge,
    OutboxMessage,
    Row,
    merge_windows,
    next_eviction,
)
from shoal.errors import SketchError, StorageError, WireError
from shoal.sketch import merge_bytes

#: Most recent keys of messages that are remembered, also after acknowledgement.
_KEYS = 1_000
#: Bytes of messages in memory where the disk refuses the file.
MEMORY_BYTES = 1 << 20
#: Rows numbered in one transaction by `number_all`.
_BATCH = 500


class SqliteOutbox(SqliteStore):
    """See outbox.Outbox. Rows are deleted only by the controller's acknowledgement.

    limit_bytes  of payload; above it windows merge, then the oldest are dropped
    boot_name    generates the random boot of a new store
    caught_up    windows of the backlog numbered so far

    Where the disk refuses the file, messages are kept in memory, up to MEMORY_BYTES and under a
    boot of their own, until all are acknowledged and the file can be opened again.
    """

    def __init__(self, path: Path, *, limit_bytes: int, boot_name: Callable[[], str]) -> None:
        self._limit, self._boot_name = limit_bytes, boot_name
        self._faults: list[Fault] = []
        self._backlog = self.caught_up = 0
        super().__init__(path)

    @property
    def waiting(self) -> int:
        """Messages in the store."""
        return self._waiting

    def faults(self) -> list[Fault]:
        """Faults of the store since the last call."""
        found, self._faults = self._faults, []
        return found

    def add(self, message: wire.Upward, key: str = "", number: bool = False) -> None:
        """Store `message` until it is acknowledged; durable when this returns.

        key     a message with a key is added once
        number  number it now, which saves a write when it is sent immediately
        """
        if self.degraded and not self._waiting:
            self._return_to_disk()
        payload = wire.encode(message)
        row = Row(0, 0, wire.UP_KIND[type(message)], _group(message), _merged(message), 0)
        self._retried(lambda: self._add(row, payload, key, number))
        if self._bytes > self._most:
            self._retried(self._evict)

    def connected(self) -> None:
        """Take the rows stored now as the backlog: they are sent after newer messages."""
        found = self._retried(lambda: self._db.execute("SELECT max(id) FROM row").fetchone()[0])
        self._backlog = found or 0

    def after(self, seq: int, limit: int, backlog: int | None = None) -> list[OutboxMessage]:
        """Messages numbered above `seq`, in order, at most `limit`; numbers the next rows.

        backlog   limit of windows of the backlog among them; None: no limit
        """
        most = limit if backlog is None else backlog
        return self._retried(lambda: self._after(seq, limit, most))

    def number_all(self) -> None:
        """Number every row, for an export."""
        while self._unnumbered:
            self._retried(self._number_some)

    def ack(self, boot: str, seqs: Sequence[int]) -> None:
        """Delete acknowledged messages; after a power cut they may be sent once more."""
        if boot == self.boot:
            self._retried(lambda: self._delete_acked([s for s in seqs if s]))
            self._check_for_copy(boot, max(seqs, default=0))

    @property
    def _most(self) -> int:
        return min(self._limit, MEMORY_BYTES) if self.degraded else self._limit

    def _degrade(self, error: StorageError) -> None:
        self.degraded = str(error)
        detail = f"{error}; messages are kept in memory until then, and lost at a restart"
        self._faults.append(disk_fault(detail))
        self._db = open_memory()
        self._prepare()

    def _return_to_disk(self) -> None:
        """Open the file again, if the disk lets."""
        in_memory = self._db
        try:
            self._open_or_restart()
        except StorageError:
            self._db = in_memory
            self._prepare()
            return
        self.degraded = ""
        in_memory.close()

    def _open(self, found: Salvaged | None = None) -> None:
        self._db = open_database(self._path)
        self._prepare(found)

    def _prepare(self, found: Salvaged | None = None) -> None:
        """Create what is missing, and read what is there."""
        with translated(self._path):
            self._db.table("row").create(
                {  # "group" is an SQL keyword
                    "id": int,
                    "seq": int,
                    "kind": str,
                    "grouping": str,
                    "merged": int,
                    "size": int,
                    "payload": bytes,
                    "crc": int,
                },
                pk="id",
                if_not_exists=True,
            )
            self._check_columns()
            self._db.table("row").create_index(["seq", "kind", "size"], if_not_exists=True)
            self._db.table("told").create({"key": str, "at": int}, pk="key", if_not_exists=True)
            self._db.table("life").create({"boot": str, "seq": int}, if_not_exists=True)
            if not self._db.execute("SELECT count(*) FROM life").fetchone()[0]:
                self._db.table("life").insert({"boot": self._boot_name(), "seq": 0})
            if found is not None:
                self._refill(found)
            self.boot: str = self._db.execute("SELECT boot FROM life").fetchone()[0]
            self._count()

    def _check_columns(self) -> None:
        """Add checksums to a store of an agent before checksums."""
        row = self._db.table("row")
        if "crc" not in row.columns_dict:
            row.add_column("crc", int)
            for id_, payload in self._db.execute("SELECT id, payload FROM row").fetchall():
                self._db.execute("UPDATE row SET crc = ? WHERE id = ?", [checksum(payload), id_])

    def _restart(self, error: DamagedError) -> None:
        """Set the damaged store aside, and copy its readable rows to a new one."""
        kept = set_aside(self._path)
        found = salvage(kept)
        self._open(found)
        lost = f"{found.lost} are lost" if found.boot else "the others are lost"
        detail = f"{error}; {len(found.rows)} messages were saved, {lost}; kept as {kept.name}"
        facts = {"saved": len(found.rows), "lost": found.lost}
        self._faults.append(Fault("outbox-damaged", detail, "critical", 1, facts))

    def _refill(self, found: Salvaged) -> None:
        with self._db.atomic():
            if found.boot:
                self._db.execute("UPDATE life SET boot = ?, seq = ?", [found.boot, found.seq])
            for key in found.keys[-_KEYS:]:
                self._db.execute("INSERT OR IGNORE INTO told VALUES (?, 0)", [key])
            for row in found.rows:
                self._db.execute("INSERT INTO row VALUES (?, ?, ?, ?, ?, ?, ?, ?)", list(row))

    def _count(self) -> None:
        self._waiting, self._bytes, self._unnumbered = self._db.execute(
            "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(seq = 0), 0) FROM row"
        ).fetchone()

    def _add(self, row: Row, payload: bytes, key: str, number: bool) -> None:
        with self._db.atomic():
            if key and not self._remember(key):
                return
            self._db.execute(
                "INSERT INTO row (seq, kind, grouping, merged, size, payload, crc) "
                "VALUES (0, ?, ?, ?, ?, ?, ?)",
                [row.kind, row.group, row.merged, len(payload), payload, checksum(payload)],
            )
            numbered = self._number(1, 1) if number and not self._unnumbered else 0
        self._waiting += 1
        self._bytes += len(payload)
        self._unnumbered += 1 - numbered

    def _after(self, seq: int, limit: int, backlog: int) -> list[OutboxMessage]:
        found = self._numbered(seq, limit)
        if len(found) < limit and self._unnumbered:
            with self._db.atomic():
                self._number(limit - len(found), backlog)
            self._count()
            found = self._numbered(seq, limit)
        return found

    def _number_some(self) -> None:
        with self._db.atomic():
            self._number(_BATCH, _BATCH)
        self._count()

    def _delete_acked(self, seqs: Sequence[int]) -> None:
        with deferred_sync(self._db):
            self._delete("seq", seqs)

    def _delete(self, column: str, keys: Sequence[int]) -> None:
        with self._db.atomic():
            for key in keys:
                self._db.execute(f"DELETE FROM row WHERE {column} = ?", [key])  # noqa: S608
        self._count()

    def _check_for_copy(self, boot: str, acked: int) -> None:
        """Report an ack of a number not assigned by this store: another agent uses a copy of it."""
        last = self._retried(lambda: self._db.execute("SELECT seq FROM life").fetchone()[0])
        if acked > last and boot == self.boot:
            detail = (
                f"the controller has message {acked} of this device, and this agent has sent "
                f"{last}: another one runs from a copy of this folder; stop it and enrol it under "
                "a name of its own"
            )
            self._faults.append(Fault("copied", detail, "critical"))

    def _remember(self, key: str) -> bool:
        new = self._db.execute("INSERT OR IGNORE INTO told VALUES (?, 0)", [key]).rowcount == 1
        if new:
            self._db.execute(
                "DELETE FROM told WHERE rowid <= (SELECT max(rowid) FROM told) - ?", [_KEYS]
            )
        return new

    def _number(self, limit: int, backlog: int) -> int:
        """Number the next rows permanently; the number of processed rows."""
        last = self._db.execute("SELECT seq FROM life").fetchone()[0]
        rows = self._next(limit, backlog)
        for id_, payload, crc in rows:
            try:
                if checksum(payload) != crc:
                    raise TypeError("its checksum is wrong")
                numbered = _with_number(payload, self.boot, last + 1)
            except (msgspec.MsgspecError, UnicodeDecodeError, TypeError) as error:
                self._delete_damaged(id_, error)
                continue
            last += 1
            self._db.execute(
                "UPDATE row SET seq = ?, size = ?, payload = ?, crc = ? WHERE id = ?",
                [last, len(numbered), numbered, checksum(numbered), id_],
            )
        self._db.execute("UPDATE life SET seq = ?", [last])
        return len(rows)

    def _next(self, limit: int, backlog: int) -> list[tuple[int, bytes, int]]:
        """Unnumbered events, then windows since the connection, then the backlog; oldest first."""
        query = (
            "SELECT id, CAST(payload AS BLOB), crc FROM row "
            "WHERE seq = 0 AND kind {} ORDER BY id LIMIT ?"
        )
        rows = self._db.execute(query.format("!= 'window'"), [limit]).fetchall()
        since, until = "= 'window' AND id > ?", "= 'window' AND id <= ?"
        new = [self._backlog, limit - len(rows)]
        rows += self._db.execute(query.format(since), new).fetchall()
        old = [self._backlog, max(0, min(limit - len(rows), backlog))]
        older = self._db.execute(query.format(until), old).fetchall()
        self.caught_up += len(older)
        return rows + older

    def _delete_damaged(self, id_: int, why: Exception) -> None:
        """Delete a damaged row, and report it."""
        self._db.execute("DELETE FROM row WHERE id = ?", [id_])
        detail = f"a message in the outbox cannot be read and is lost: {why}"
        self._faults.append(Fault("outbox-damaged", detail, "critical", 1, {"lost": 1}))

    def _numbered(self, seq: int, limit: int) -> list[OutboxMessage]:
        rows = self._db.execute(
            "SELECT id, seq, kind, CAST(payload AS BLOB), crc FROM row "
            "WHERE seq > ? ORDER BY seq LIMIT ?",
            [seq, limit],
        ).fetchall()
        for row in rows:
            if checksum(row[3]) != row[4]:
                self._delete_damaged(row[0], TypeError(f"number {row[1]}: its checksum is wrong"))
        return [OutboxMessage(*row[1:4]) for row in rows if checksum(row[3]) == row[4]]

    def _evict(self) -> None:
        """Merge, then drop, until the store is below its limit."""
        dropped = windows = merged = 0
        while self._bytes > self._most:
            step = next_eviction(self._rows())
            if isinstance(step, Merge) and self._merge(step):
                merged += 1
                continue
            if step is None:
                break
            gone = step.id if isinstance(step, Drop) else step.older
            windows += step.windows if isinstance(step, Drop) else 1
            dropped += 1
            self._delete("id", [gone])
        if merged:
            detail = f"outbox full: {merged} windows merged"
            self._faults.append(Fault("outbox-merged", detail, "info", merged))
        if dropped:
            detail = f"outbox full: {dropped} messages dropped, {windows} windows among them"
            facts = {"messages": dropped, "windows": windows}
            self._faults.append(Fault("outbox-full", detail, "warning", dropped, facts))

    def _rows(self) -> list[Row]:
        return [
            Row(*row)
            for row in self._db.execute(
                "SELECT id, seq, kind, grouping, merged, size FROM row ORDER BY id"
            )
        ]

    def _merge(self, step: Merge) -> bool:
        try:
            older, newer = self._window(step.older), self._window(step.newer)
            merged = merge_windows(older, newer, merge_bytes)
        except (SketchError, WireError):
            return False
        payload = wire.encode(merged)
        with self._db.atomic():
            self._db.execute("DELETE FROM row WHERE id = ?", [step.older])
            self._db.execute(
                "UPDATE row SET merged = ?, size = ?, payload = ?, crc = ? WHERE id = ?",
                [merged.merged, len(payload), payload, checksum(payload), step.newer],
            )
        self._count()
        return True

    def _window(self, id_: int) -> wire.WindowReport:
        query = "SELECT CAST(payload AS BLOB), crc FROM row WHERE id = ?"
        payload, crc = self._db.execute(query, [id_]).fetchone()
        if checksum(payload) != crc:
            raise WireError("a damaged window")
        message = wire.decode_up("window", payload)
        if not isinstance(message, wire.WindowReport):
            raise WireError("not a window")
        return message


def read_messages(path: Path) -> Iterator[OutboxMessage]:
    """Undamaged numbered rows in order, of a store that another process may be using.

    StorageError when it cannot be read.
    """
    with translated(path), contextlib.closing(_read_only(path)) as db:
        query = "SELECT seq, kind, CAST(payload AS BLOB), crc FROM row WHERE seq > 0 ORDER BY seq"
        for seq, kind, payload, crc in db.execute(query):
            if checksum(payload) == crc:
                yield OutboxMessage(seq, kind, payload)


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _with_number(payload: bytes, boot: str, seq: int) -> bytes:
    """The message with its final boot and seq; unknown fields are kept."""
    fields = msgspec.msgpack.decode(payload)
    return msgspec.msgpack.encode({**fields, "boot": boot, "seq": seq})


def _group(message: wire.Upward) -> str:
    if not isinstance(message, wire.WindowReport):
        return ""
    return f"{message.model}|{message.release}|{message.reference}"


def _merged(message: wire.Upward) -> int:
    return message.merged if isinstance(message, wire.WindowReport) else 1
