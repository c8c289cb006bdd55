"""Outbox policy: which rows of a full outbox are merged or dropped, and how windows merge. Pure.

A row leaves the outbox only when the controller acknowledges it, after its database commit. A row
is numbered when it is first sent, so that unnumbered rows may merge without a gap.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from shoal.errors import SketchError
from shoal.sketch import Latency
from shoal.wire import WindowReport


class Row(NamedTuple):
    """One message in the store.

    id      order of arrival
    seq     number on the wire; 0 until it is first sent
    group   rows of one non-empty group are windows that may merge
    merged  how many windows it stands for
    size    bytes
    """

    id: int
    seq: int
    kind: str
    group: str
    merged: int
    size: int


class Letter(NamedTuple):
    """A numbered message, ready to send."""

    seq: int
    kind: str
    payload: bytes


class Merge(NamedTuple):
    """Put two windows together: the older goes, the newer stands for both."""

    older: int
    newer: int


class Drop(NamedTuple):
    """Give a message up."""

    id: int
    windows: int


def relieve(rows: Sequence[Row]) -> Merge | Drop | None:
    """The next thing to give way in a full store; None when there is nothing.

    Neighbouring windows of one release merge first, the finest and oldest pair before others, so
    that resolution is lost evenly. Then the oldest window goes, and an update's report last.

    >>> w = Row(1, 0, "window", "m@1", 1, 90)
    >>> relieve([w, w._replace(id=2)])
    Merge(older=1, newer=2)
    >>> relieve([w._replace(seq=7), Row(2, 0, "event", "", 1, 9)])
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
    """Neighbours that may merge: a numbered row may already lie in the controller's database."""
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
