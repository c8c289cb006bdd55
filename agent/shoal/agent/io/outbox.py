"""The outbox on SQLite: what the controller does not have yet, and the numbers it goes by."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from shoal import wire
from shoal.agent.faults import Fault
from shoal.agent.io.database import DamagedError, open_database, set_aside, translated
from shoal.agent.outbox import Drop, Letter, Merge, Row, relieve
from shoal.agent.window import merge
from shoal.errors import SketchError, StorageError, WireError
from shoal.sketch import merge_bytes

_T = TypeVar("_T")

#: Keys of reports that are remembered after they have left.
_KEYS = 1_000


class SqliteOutbox:
    """Rows leave only when the controller's acknowledgement comes.

    limit_bytes  of payload; beyond it windows merge, then the oldest go
    boot_name    makes the random name of a new store's life
    """

    def __init__(self, path: Path, *, limit_bytes: int, boot_name: Callable[[], str]) -> None:
        self._path, self._limit, self._boot_name = path, limit_bytes, boot_name
        self._faults: list[Fault] = []
        try:
            self._open()
        except DamagedError as error:
            self._restart(error)

    @property
    def waiting(self) -> int:
        """Messages in the store."""
        return self._waiting

    def faults(self) -> list[Fault]:
        """What happened to the store since this was last asked."""
        told, self._faults = self._faults, []
        return told

    def add(self, message: wire.Upward, key: str = "", number: bool = False) -> None:
        """Keep `message` until it is acknowledged; durable when this returns.

        key     a message with a key is added once, however often it is asked
        number  give it its number now, which saves a write when it is sent at once
        """
        payload = wire.encode(message)
        row = Row(0, 0, wire.UP_KIND[type(message)], _group(message), _merged(message), 0)
        self._surely(lambda: self._add(row, payload, key, number))
        if self._bytes > self._limit:
            self._surely(self._relieve)

    def after(self, seq: int, limit: int) -> list[Letter]:
        """Letters numbered above `seq`, in order, at most `limit`; numbers the next rows for it."""
        return self._surely(lambda: self._after(seq, limit))

    def ack(self, boot: str, seqs: Sequence[int]) -> None:
        """These are in the controller's database: let them go."""
        if boot == self.boot:
            self._surely(lambda: self._let_go("seq", [s for s in seqs if s]))

    def close(self) -> None:
        self._db.close()

    def _open(self) -> None:
        self._db = open_database(self._path)
        with translated(self._path):
            self._db.table("row").create(
                {  # "group" is a word of SQL's
                    "id": int,
                    "seq": int,
                    "kind": str,
                    "grouping": str,
                    "merged": int,
                    "size": int,
                    "payload": bytes,
                },
                pk="id",
                if_not_exists=True,
            )
            self._db.table("row").create_index(["seq", "size"], if_not_exists=True)
            self._db.table("told").create({"key": str, "at": int}, pk="key", if_not_exists=True)
            self._db.table("life").create({"boot": str, "seq": int}, if_not_exists=True)
            if not self._db.execute("SELECT count(*) FROM life").fetchone()[0]:
                self._db.table("life").insert({"boot": self._boot_name(), "seq": 0})
            self.boot: str = self._db.execute("SELECT boot FROM life").fetchone()[0]
            self._count()

    def _surely(self, work: Callable[[], _T]) -> _T:
        """Do `work`; in a new store if this one proves damaged."""
        try:
            with translated(self._path):
                return work()
        except DamagedError as error:
            self._restart(error)
            with translated(self._path):
                return work()

    def _restart(self, error: StorageError) -> None:
        """A store that cannot be read is kept aside; a new life begins, numbers from 1."""
        kept = set_aside(self._path)
        detail = f"{error}; unsent messages may be lost, the file is kept as {kept.name}"
        self._faults.append(Fault("outbox-damaged", detail, "critical"))
        self._open()

    def _count(self) -> None:
        self._waiting, self._bytes, self._unnumbered = self._db.execute(
            "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(seq = 0), 0) FROM row"
        ).fetchone()

    def _add(self, row: Row, payload: bytes, key: str, number: bool) -> None:
        with self._db.atomic():
            if key and not self._remember(key):
                return
            self._db.execute(
                "INSERT INTO row (seq, kind, grouping, merged, size, payload) "
                "VALUES (0, ?, ?, ?, ?, ?)",
                [row.kind, row.group, row.merged, len(payload), payload],
            )
            numbered = self._number(1) if number and not self._unnumbered else 0
        self._waiting += 1
        self._bytes += len(payload)
        self._unnumbered += 1 - numbered

    def _after(self, seq: int, limit: int) -> list[Letter]:
        found = self._numbered(seq, limit)
        if len(found) < limit and self._unnumbered:
            with self._db.atomic():
                self._number(limit - len(found))
            self._count()
            found = self._numbered(seq, limit)
        return found

    def _let_go(self, column: str, keys: Sequence[int]) -> None:
        with self._db.atomic():
            for key in keys:
                self._db.execute(f"DELETE FROM row WHERE {column} = ?", [key])  # noqa: S608
        self._count()

    def _remember(self, key: str) -> bool:
        new = self._db.execute("INSERT OR IGNORE INTO told VALUES (?, 0)", [key]).rowcount == 1
        if new:
            self._db.execute(
                "DELETE FROM told WHERE rowid <= (SELECT max(rowid) FROM told) - ?", [_KEYS]
            )
        return new

    def _number(self, limit: int) -> int:
        """Give the oldest unnumbered rows their numbers, for ever; how many."""
        last = self._db.execute("SELECT seq FROM life").fetchone()[0]
        rows = self._db.execute(
            "SELECT id, payload FROM row WHERE seq = 0 ORDER BY id LIMIT ?", [limit]
        ).fetchall()
        for id_, payload in rows:
            try:
                named = _named(payload, self.boot, last + 1)
            except (msgspec.MsgspecError, UnicodeDecodeError, TypeError) as error:
                self._db.execute("DELETE FROM row WHERE id = ?", [id_])
                detail = f"a message in the outbox cannot be read and is lost: {error}"
                self._faults.append(Fault("outbox-damaged", detail, "critical"))
                continue
            last += 1
            self._db.execute("UPDATE row SET seq = ?, payload = ? WHERE id = ?", [last, named, id_])
        self._db.execute("UPDATE life SET seq = ?", [last])
        return len(rows)

    def _numbered(self, seq: int, limit: int) -> list[Letter]:
        rows = self._db.execute(
            "SELECT seq, kind, payload FROM row WHERE seq > ? ORDER BY seq LIMIT ?", [seq, limit]
        )
        return [Letter(*row) for row in rows]

    def _relieve(self) -> None:
        """Merge, then drop, until the store is within its limit."""
        dropped = windows = 0
        while self._bytes > self._limit:
            step = relieve(self._rows())
            if isinstance(step, Merge) and self._merge(step):
                continue
            if step is None:
                break
            gone = step.id if isinstance(step, Drop) else step.older
            windows += step.windows if isinstance(step, Drop) else 1
            dropped += 1
            self._let_go("id", [gone])
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
            together = merge(older, newer, merge_bytes)
        except (SketchError, WireError):
            return False
        payload = wire.encode(together)
        with self._db.atomic():
            self._db.execute("DELETE FROM row WHERE id = ?", [step.older])
            self._db.execute(
                "UPDATE row SET merged = ?, size = ?, payload = ? WHERE id = ?",
                [together.merged, len(payload), payload, step.newer],
            )
        self._count()
        return True

    def _window(self, id_: int) -> wire.WindowReport:
        payload = self._db.execute("SELECT payload FROM row WHERE id = ?", [id_]).fetchone()[0]
        message = wire.decode_up("window", payload)
        if not isinstance(message, wire.WindowReport):
            raise WireError("not a window")
        return message


def _named(payload: bytes, boot: str, seq: int) -> bytes:
    """The same message, by its final name; the fields of any version are kept."""
    fields = msgspec.msgpack.decode(payload)
    return msgspec.msgpack.encode({**fields, "boot": boot, "seq": seq})


def _group(message: wire.Upward) -> str:
    if not isinstance(message, wire.WindowReport):
        return ""
    return f"{message.model}|{message.release}|{message.reference}"


def _merged(message: wire.Upward) -> int:
    return message.merged if isinstance(message, wire.WindowReport) else 1
