"""What leaves the device when, and what gives way when its store is full: pure policy.

A row leaves the outbox only when the controller says that its database has it. Numbers are given
when a row is first sent, so that rows still unnumbered may merge without leaving a hole.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from shoal.errors import SketchError
from shoal.sketch import Latency
from shoal.wire import WindowReport

#: Messages under way at once, and seconds until an unanswered one is sent again.
WINDOW, RESEND_S = 64, 30.0
#: Windows of a backlog in the time of one: a week offline is caught up with in three hours.
CATCH_UP = 60


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


class CatchUp:
    """How fast what piled up may follow: a share of the fleet's pace, so that new data never wait.

    A device sends a window each `window_s`; of its backlog it may send CATCH_UP times as many,
    beginning up to `jitter_s` after it connected, so that a fleet does not all at once.

    >>> pace = CatchUp(); pace.connect(0.0, 10.0)
    >>> pace.allowed(5.0, 60.0), pace.allowed(11.0, 60.0), pace.allowed(15.0, 60.0)
    (0, 1, 5)
    >>> pace.sent(5); pace.allowed(15.0, 60.0)
    0
    """

    def __init__(self, most: int = WINDOW) -> None:
        self._most, self._tokens, self._at = most, 0.0, 0.0

    def connect(self, now_s: float, pause_s: float) -> None:
        """A new connection: nothing until `pause_s` from now."""
        self._tokens, self._at = 0.0, now_s + pause_s

    def allowed(self, now_s: float, window_s: float) -> int:
        """How many letters of the backlog may be sent now."""
        if now_s > self._at:
            rate = CATCH_UP / max(window_s, 1.0)
            self._tokens = min(self._most, self._tokens + (now_s - self._at) * rate)
            self._at = now_s
        return int(self._tokens)

    def sent(self, letters: int) -> None:
        self._tokens = max(0.0, self._tokens - letters)


class Courier:
    """Keeps few letters under way, in order, and sends again what stays unanswered.

    >>> courier = Courier()
    >>> courier.connect(); courier.sent(1, 0.0); courier.sent(2, 0.0)
    >>> courier.acked([1]); courier.start_after(10.0), courier.start_after(31.0)
    (2, 1)
    """

    def __init__(self, window: int = WINDOW, resend_s: float = RESEND_S) -> None:
        self._window, self._resend_s = window, resend_s
        self._under_way: dict[int, float] = {}
        self._last = 0

    def connect(self) -> None:
        """A new connection: whatever was under way may be lost."""
        self._under_way.clear()
        self._last = 0

    def start_after(self, now_s: float) -> int:
        """Send letters with a higher number than this next."""
        if self._under_way and now_s - min(self._under_way.values()) >= self._resend_s:
            self._last = min(self._under_way) - 1
            self._under_way.clear()
        return self._last

    @property
    def room(self) -> int:
        """How many letters may join those under way."""
        return max(0, self._window - len(self._under_way))

    def sent(self, seq: int, now_s: float) -> None:
        self._under_way[seq] = now_s
        self._last = max(self._last, seq)

    def acked(self, seqs: Iterable[int]) -> None:
        for seq in seqs:
            self._under_way.pop(seq, None)


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
