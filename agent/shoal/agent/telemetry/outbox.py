"""Outbox policy: which rows of a full outbox are merged or dropped, and how windows merge. Pure.

A row leaves the outbox only when the controller acknowledges that its database has it. A row gets
its sequence number when it is first sent, so that rows without one can merge without leaving a gap.
The store is io/outbox_store.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from shoal.agent.host.faults import Fault
from shoal.errors import SketchError
from shoal.sketch import Latency
from shoal.wire import Upward, WindowReport


class Row(NamedTuple):
    """One message in the store.

    id      order of insertion
    seq     sequence number on the wire; 0 until it is first sent
    group   windows of one non-empty group can merge
    merged  number of windows merged into it
    size    bytes
    """

    id: int
    seq: int
    kind: str
    group: str
    merged: int
    size: int


class OutboxMessage(NamedTuple):
    """A numbered message, ready to send."""

    seq: int
    kind: str
    payload: bytes


class Outbox(Protocol):
    """Durable store of the messages that the controller has not acknowledged.

    boot        random name of this store
    degraded    why it is in memory and not on the disk, else ""
    add         a message with a `key` is added once
    faults      faults of the store since the last call
    connected   what is stored now is the backlog, and is sent after newer messages
    number_all  give every row its sequence number
    after       messages numbered above `seq`, in order; numbers the next rows, at most `backlog`
                windows of the backlog
    caught_up   windows of the backlog numbered so far
    """

    degraded: str

    @property
    def boot(self) -> str: ...
    def add(self, message: Upward, key: str = "", number: bool = False) -> None: ...
    def connected(self) -> None: ...
    def number_all(self) -> None: ...
    def after(self, seq: int, limit: int, backlog: int | None = None) -> list[OutboxMessage]: ...
    def ack(self, boot: str, seqs: Sequence[int]) -> None: ...
    def faults(self) -> list[Fault]: ...
    @property
    def waiting(self) -> int: ...
    @property
    def caught_up(self) -> int: ...


class Merge(NamedTuple):
    """Merge two windows into the newer one."""

    older: int
    newer: int


class Drop(NamedTuple):
    """Drop a message."""

    id: int
    windows: int


def next_eviction(rows: Sequence[Row]) -> Merge | Drop | None:
    """The next merge or drop in a full store; None when the store is empty.

    Adjacent windows of one release merge first, the finest and oldest pair before others, so that
    resolution decreases evenly. Then the oldest window is dropped, and update events last.

    >>> w = Row(1, 0, "window", "m@1", 1, 90)
    >>> next_eviction([w, w._replace(id=2)])
    Merge(older=1, newer=2)
    >>> next_eviction([w._replace(seq=7), Row(2, 0, "event", "", 1, 9)])
    Drop(id=1, windows=1)
    """
    pairs = _pairs(rows)
    if pairs:
        older, newer = min(pairs, key=lambda p: (p[0].merged + p[1].merged, p[0].id))
        return Merge(older.id, newer.id)
    for row in sorted(rows, key=lambda r: (r.kind != "window", r.id)):
        return Drop(row.id, row.merged if row.kind == "window" else 0)
    return None


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Adjacent rows that can merge: a numbered row may be in the controller's database already."""
    last: dict[str, Row] = {}
    pairs = []
    for row in rows:
        if row.group and not row.seq:
            if row.group in last:
                pairs.append((last[row.group], row))
            last[row.group] = row
    return pairs


def merge_windows(
    older: WindowReport, newer: WindowReport, sketches: Callable[[bytes, bytes], bytes]
) -> WindowReport:
    """One report for two adjacent windows of the same release.

    sketches   merges the bytes of two sketches of one reference

    Raises SketchError when they are not of one model, release and reference.
    """
    same = ("model", "release", "reference")
    if any(getattr(older, field) != getattr(newer, field) for field in same):
        raise SketchError(f"windows of {older.release} and {newer.release} do not merge")
    latency = Latency(older.latency)
    latency.merge(newer.latency)
    end_s = newer.window_start_s + newer.window_s
    counts = ("rows", "errors", "slow", "labelled", "correct", "merged")
    return WindowReport(
        device=newer.device,
        boot=newer.boot,
        seq=newer.seq,
        sent_s=newer.sent_s,
        model=newer.model,
        release=newer.release,
        reference=newer.reference,
        window_start_s=older.window_start_s,
        window_s=max(0.0, end_s - older.window_start_s),
        latency=latency.trimmed(),
        inputs=_either(older.inputs, newer.inputs, sketches),
        outputs=_either(older.outputs, newer.outputs, sketches),
        health=newer.health,
        **{field: getattr(older, field) + getattr(newer, field) for field in counts},
    )


def _either(older: bytes, newer: bytes, sketches: Callable[[bytes, bytes], bytes]) -> bytes:
    return sketches(older, newer) if older and newer else older or newer
