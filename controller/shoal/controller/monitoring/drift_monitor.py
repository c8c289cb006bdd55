"""Looks at new windows: device by device, and site by site in buckets of time.

What it has looked at is written in the same transaction as what it found, so that a restart
neither forgets nor repeats. Windows that say nothing about the world are left out: throttled
ones (the device lowers its own rate), empty ones, and for a site those whose clock is not
synchronised, for nobody knows their bucket. A window far smaller than usual is no look by
itself; it counts in the looks at 4 and 16 windows.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Row, func, select, update

from shoal.controller.host.context import Context
from shoal.controller.monitoring import drift, findings, histograms, window_validation
from shoal.controller.monitoring.cache import Memory
from shoal.controller.monitoring.drift import Baseline, Counts
from shoal.controller.monitoring.findings import Fitted, Seen, Subject, same
from shoal.controller.store.tables import baseline, device, drift_point, setting, window
from shoal.sketch import References

#: New windows that are looked at in one transaction; no batch of ingest is larger.
AT_ONCE = 500
#: Windows of one site that are read at once.
MOST_OF_A_SITE = 10_000
#: A site's bucket is waited for so long after its end, beyond jitter and the last window's length.
GRACE_S = 1.0
#: Buckets back in which a device must have spoken to be waited for.
RECENT_BUCKETS = 4
_MARK = "monitoring.received_at"
_READ = (
    window.c.device, window.c.boot, window.c.seq, window.c.start_at, window.c.received_at,
    window.c.rows, window.c.health, window.c.inputs, window.c.outputs,
)  # fmt: skip
I64 = npt.NDArray[np.int64]


class Moment(NamedTuple):
    """One window of a subject. counts: device -> (F, W)."""

    at: float
    counts: Counts


def evaluate_all(ctx: Context, memory: Memory | None = None) -> None:
    """Look at everything that arrived since the last time.

    memory   kept by the caller from one time to the next: saves reading windows again
    """
    while evaluate(ctx, memory):
        pass


def evaluate(ctx: Context, memory: Memory | None = None) -> bool:
    """Look at the next AT_ONCE of what arrived since the last time; whether more waits."""
    with ctx.store.read() as db:
        mark = _mark(db)
        new, more = _new_windows(db, mark)
        work = _Work(db, ctx, memory or Memory())
        for subject, starts in _touched(new).items():
            work.device(subject, starts)
        for site in _sites(db, ctx):
            work.site(site)
    if new or work.seen or work.fitted:
        with ctx.store.write() as db:
            findings.keep(db, ctx, work.fitted, work.seen)
            _set_mark(db, new[-1].received_at if new else mark)
    return more


def usable(row: Any) -> bool:
    """Whether a window says something about the world."""
    return bool(row.rows and row.inputs and not row.health.get("throttled"))


class _Work:
    """What one evaluation finds, before any of it is written."""

    def __init__(self, db: Connection, ctx: Context, memory: Memory) -> None:
        self.db, self.ctx, self.memory = db, ctx, memory
        self.needed = max(3, ctx.settings.drift.baseline_windows)
        self.scales = tuple(sorted(set(ctx.settings.drift.scales))) or (1,)
        self.seen: list[Seen] = []
        self.fitted: list[Fitted] = []
        self.where: dict[Subject, str] = {}
        self.references: dict[str, References] = {}
        self.levels: dict[int, float] = {}

    # --- whose windows ------------------------------------------------------------------------

    def device(self, subject: Subject, new: Sequence[Row[Any]]) -> None:
        """Look at a device's new windows, each with those before it."""
        self.where[subject] = new[-1].site
        known = self._baseline(subject)
        mine = window.c.device == subject.name
        if known is None:
            if self._number(mine, subject) < self.needed:
                return
            rows = self._rows(mine, subject, self.needed * 3)
        else:
            count = len(new) + max(self.scales) - 1
            late = window.c.received_at > known[1]
            rows = self._rows(mine & late, subject, count, newest=True)
        fresh = {row.start_at for row in new}
        self._consider(subject, known, self._moments(subject, rows), lambda m: m.at in fresh, rows)

    def site(self, subject: Subject) -> None:
        """Look at a site's buckets that are complete and were not looked at."""
        self.where[subject] = subject.name
        known = self._baseline(subject)
        mine = window.c.site == subject.name
        after = self._last_bucket(subject, known)
        rows = self._light(mine, subject, after)
        closed = self._closed(rows)
        if not closed or (known is None and len(closed) < self.needed):
            return
        first = min(closed)
        if known is not None:
            first = max(known[1], first - (max(self.scales) - 1) * self._width())
        since = (window.c.start_at >= first) & (window.c.start_at < max(closed) + self._width())
        full = self._rows(mine & since, subject, MOST_OF_A_SITE)
        moments = self._buckets(subject, full)
        self._consider(subject, known, moments, lambda m: m.at in closed, full)

    # --- looking ------------------------------------------------------------------------------

    def _consider(
        self,
        subject: Subject,
        known: tuple[Baseline, float] | None,
        moments: list[Moment],
        is_new: Any,
        rows: Sequence[Row[Any]],
    ) -> None:
        if known is None:
            self._fit(subject, moments, rows)
            return
        base = known[0]
        for i, moment in enumerate(moments):
            if is_new(moment):
                self._look(subject, base, moments[: i + 1])

    def _fit(self, subject: Subject, moments: list[Moment], rows: Sequence[Row[Any]]) -> None:
        """Baseline of the first usual windows, once there are enough of them."""
        sizes = [_size(m.counts) for m in moments]
        usual = float(np.median(sizes)) if sizes else 0.0
        first = [
            m
            for m, n in zip(moments, sizes, strict=True)
            if n >= max(1.0, drift.LEAST_SHARE * usual)
        ][: self.needed]
        if len(first) < self.needed:
            return
        made = drift.fit([m.counts for m in first], self.scales)
        if subject.scope == "site":
            until = first[-1].at + self._width()
        else:
            until = next(r.received_at for r in rows if r.start_at == first[-1].at)
        self.fitted.append(Fitted(subject, made, until, self.needed))

    def _look(self, subject: Subject, base: Baseline, moments: list[Moment]) -> None:
        level = self._level(len(base.counts[0]))
        best: Seen | None = None
        for at, scale in enumerate(base.scales):
            windows = [m.counts for m in moments[-scale:]]
            one = (
                drift.look(base, windows, at, self.ctx.settings.drift.tolerance)
                if len(windows) == scale
                else None
            )
            if one is None:
                continue
            size = drift.psi(base, windows, at, self._training(subject.release))
            shape = np.full(len(one.log10_p), scale)
            seen = Seen(
                subject, self.where[subject], moments[-1].at, one.log10_p, size, one.hellinger,
                shape, np.full(len(shape), one.rows), one.log10_p < level, level,
            )  # fmt: skip
            best = seen if best is None else _worse(best, seen)
        if best is not None:
            self.seen.append(best)

    def _level(self, features: int) -> float:
        if features not in self.levels:
            devices = self.db.scalar(
                select(func.count()).select_from(device).where(device.c.state == "enrolled")
            )
            sites = self.db.scalar(select(func.count(device.c.site.distinct())))
            self.levels[features] = drift.log10_level(
                self.ctx.settings.drift.false_alarms_per_day,
                subjects=(devices or 0) + (sites or 0),
                features=features,
                window_s=self._width(),
                scales=len(self.scales),
            )
        return self.levels[features]

    # --- reading ------------------------------------------------------------------------------

    def _baseline(self, subject: Subject) -> tuple[Baseline, float] | None:
        """Baseline, and up to where it reaches; remembered, for it never changes."""
        kept = self.memory.baselines.get(subject)
        if kept is None:
            row = self.db.execute(select(baseline).where(*same(baseline, subject))).first()
            if row is None:
                return None
            kept = Baseline.from_bytes(row.state), row.until_at
            self.memory.baselines.put(subject, kept, kept[0].counts.nbytes + kept[0].groups.nbytes)
        return kept

    def _rows(
        self, mine: Any, subject: Subject, limit: int, newest: bool = False
    ) -> list[Row[Any]]:
        """Usable windows in order of arrival: the first, or the newest, `limit` of them."""
        order = (window.c.received_at, window.c.start_at, window.c.seq)
        query = (
            select(*_READ)
            .where(mine, *_of(subject))
            .order_by(*(c.desc() for c in order) if newest else order)
            .limit(limit)
        )
        rows: list[Any] = [row for row in self.db.execute(query) if usable(row)]
        return rows[::-1] if newest else rows

    def _light(self, mine: Any, subject: Subject, after: float) -> list[Row[Any]]:
        """Who spoke when, without the sketches; a clock that is wrong closes nobody's bucket."""
        query = select(window.c.device, window.c.start_at, window.c.health)
        late = window.c.start_at >= after
        rows: list[Any] = list(self.db.execute(query.where(mine, late, *_of(subject))))
        return [row for row in rows if row.health.get("clock_synced", True)]

    def _number(self, mine: Any, subject: Subject) -> int:
        return self.db.scalar(select(func.count()).where(mine, *_of(subject))) or 0

    def _last_bucket(self, subject: Subject, known: tuple[Baseline, float] | None) -> float:
        """Start of the first bucket that was not looked at."""
        if known is None:
            return 0.0
        newest = self.db.scalar(
            select(func.max(drift_point.c.at)).where(
                *same(drift_point, subject), drift_point.c.release == subject.release
            )
        )
        return max(known[1], newest + self._width() if newest is not None else 0.0)

    def _closed(self, rows: Iterable[Row[Any]]) -> set[float]:
        """Buckets that are over, and that everybody who lately spoke has spoken after."""
        width, now = self._width(), self.ctx.clock()
        last: dict[str, float] = defaultdict(float)
        buckets = set()
        for row in rows:
            bucket = self._bucket(row.start_at)
            buckets.add(bucket)
            last[row.device] = max(last[row.device], bucket)
        newest = max(buckets, default=0.0)
        awaited = [at for at in last.values() if at >= newest - RECENT_BUCKETS * width]
        spoken = min(awaited, default=0.0)
        wait = 2 * width + self.ctx.settings.fleet.jitter_s + GRACE_S
        return {b for b in buckets if b < spoken or b + wait < now}

    def _moments(self, subject: Subject, rows: Iterable[Row[Any]]) -> list[Moment]:
        return [Moment(r.start_at, {r.device: self._counts(subject, r)}) for r in rows]

    def _buckets(self, subject: Subject, rows: Iterable[Row[Any]]) -> list[Moment]:
        buckets: dict[float, dict[str, I64]] = defaultdict(dict)
        for row in rows:
            if row.health.get("clock_synced", True):
                bucket = buckets[self._bucket(row.start_at)]
                counts = self._counts(subject, row)
                bucket[row.device] = bucket.get(row.device, 0) + counts
        return [Moment(at, buckets[at]) for at in sorted(buckets)]

    def _counts(self, subject: Subject, row: Row[Any]) -> I64:
        key = (row.device, row.boot, row.seq)
        found = self.memory.counts.get(key)
        if found is None:
            references = self._references(subject.release)
            found = histograms.counts_of(references, row.inputs, row.outputs)
            self.memory.counts.put(key, found, found.nbytes)
        return found

    def _references(self, ref: str) -> References:
        if ref not in self.references:
            self.references[ref] = window_validation.references_of(self.db, ref)
        return self.references[ref]

    def _training(self, ref: str) -> I64:
        return histograms.training_of(self._references(ref))

    def _width(self) -> float:
        return self.ctx.settings.fleet.window_s

    def _bucket(self, at: float) -> float:
        return math.floor(at / self._width()) * self._width()


def _worse(a: Seen, b: Seen) -> Seen:
    """Of each feature the scale that says most against it."""
    take = b.log10_p < a.log10_p
    pick = {
        name: np.where(take, getattr(b, name), getattr(a, name))
        for name in ("log10_p", "psi", "hellinger", "scale", "rows")
    }
    return a._replace(**pick, alarmed=a.alarmed | b.alarmed)


def _new_windows(db: Connection, mark: float) -> tuple[list[Any], bool]:
    """Windows that arrived after `mark`, in whole batches; and whether there are more."""
    columns = (
        window.c.device, window.c.site, window.c.model, window.c.release, window.c.start_at,
        window.c.received_at,
    )  # fmt: skip
    order = (window.c.received_at, window.c.start_at, window.c.seq)
    query = select(*columns).where(window.c.received_at > mark).order_by(*order).limit(AT_ONCE)
    rows: list[Any] = list(db.execute(query))
    if len(rows) < AT_ONCE or rows[0].received_at == rows[-1].received_at:
        return rows, len(rows) == AT_ONCE
    return [row for row in rows if row.received_at < rows[-1].received_at], True


def _touched(rows: Iterable[Row[Any]]) -> dict[Subject, list[Row[Any]]]:
    touched: dict[Subject, list[Row[Any]]] = defaultdict(list)
    for row in rows:
        touched[Subject("device", row.device, row.model, row.release)].append(row)
    return touched


def _sites(db: Connection, ctx: Context) -> list[Subject]:
    """Sites that spoke lately: a bucket may close by the mere passing of time."""
    since = ctx.clock() - 10 * ctx.settings.fleet.window_s - 30
    query = (
        select(window.c.site, window.c.model, window.c.release)
        .where(window.c.received_at > since, window.c.site != "")
        .distinct()
    )
    return [Subject("site", row.site, row.model, row.release) for row in db.execute(query)]


def _of(subject: Subject) -> tuple[Any, ...]:
    """Windows of a subject's model and release that hold rows."""
    return (
        window.c.model == subject.model,
        window.c.release == subject.release,
        window.c.rows > 0,
    )


def _size(counts: Counts) -> int:
    return sum(int(c[0].sum()) for c in counts.values())


def _mark(db: Connection) -> float:
    value = db.scalar(select(setting.c.value).where(setting.c.name == _MARK))
    return msgspec.convert(value or 0.0, float, strict=False)


def _set_mark(db: Connection, mark: float) -> None:
    done = db.execute(update(setting).where(setting.c.name == _MARK).values(value=mark))
    if not done.rowcount:
        db.execute(setting.insert().values(name=_MARK, value=mark))
