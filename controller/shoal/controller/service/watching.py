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

from shoal.controller import alerts as drafts
from shoal.controller import drift, histograms
from shoal.controller.drift import Baseline, Counts
from shoal.controller.io.tables import baseline, device, drift_point, finding, setting, window
from shoal.controller.records import Finding
from shoal.controller.service import alerts, changes, intake
from shoal.controller.service.context import Context
from shoal.sketch import References

#: Windows read at once.
AT_ONCE = 2_000
#: A site's bucket is waited for so long after its end, beyond jitter and the last window's length.
GRACE_S = 1.0
#: Buckets back in which a device must have spoken to be waited for.
RECENT_BUCKETS = 4
_MARK = "monitoring.received_at"
I64 = npt.NDArray[np.int64]


class Subject(NamedTuple):
    """Whose distribution is watched. scope: "device" or "site"."""

    scope: str
    name: str
    model: str
    release: str


class Moment(NamedTuple):
    """One window of a subject. counts: device -> (F, W)."""

    at: float
    counts: Counts


class Seen(NamedTuple):
    """One look's outcome, all features: float64 (F,), alarmed bool (F,), scale int (F,)."""

    subject: Subject
    at: float
    log10_p: npt.NDArray[np.float64]
    psi: npt.NDArray[np.float64]
    hellinger: npt.NDArray[np.float64]
    scale: I64
    rows: I64
    alarmed: npt.NDArray[np.bool_]


def evaluate(ctx: Context) -> int:
    """Look at everything that arrived since the last time; how many windows were looked at."""
    with ctx.store.read() as db:
        mark = _mark(db)
        new = _new_windows(db, mark)
        work = _Work(db, ctx, mark)
        for subject, starts in _touched(new).items():
            work.device(subject, starts)
        for site in _sites(db, ctx):
            work.site(site)
    if new or work.seen or work.fitted:
        with ctx.store.write() as db:
            work.keep(db, new[-1].received_at if new else mark)
    return len(work.seen)


def usable(row: Any) -> bool:
    """Whether a window says something about the world."""
    return bool(row.rows and row.inputs and not row.health.get("throttled"))


class _Work:
    """What one evaluation finds, before any of it is written."""

    def __init__(self, db: Connection, ctx: Context, mark: float) -> None:
        self.db, self.ctx, self.mark = db, ctx, mark
        self.needed = max(3, ctx.settings.drift.baseline_windows)
        self.scales = tuple(sorted(set(ctx.settings.drift.scales))) or (1,)
        self.seen: list[Seen] = []
        self.fitted: dict[Subject, tuple[Baseline, float]] = {}
        self.where: dict[Subject, str] = {}
        self.features: dict[str, list[str]] = {}
        self.references: dict[str, References] = {}
        self.levels: dict[int, float] = {}

    # --- whose windows ------------------------------------------------------------------------

    def device(self, subject: Subject, new: Sequence[Row[Any]]) -> None:
        """Look at a device's new windows, each with those before it."""
        self.where[subject] = new[-1].site
        known = self._baseline(subject)
        if known is None:
            rows = self._rows(window.c.device == subject.name, subject, self.needed * 3)
            moments = self._moments(subject, rows)
        else:
            count = len(new) + max(self.scales) - 1
            late = window.c.received_at > known[1]
            rows = self._rows((window.c.device == subject.name) & late, subject, count, newest=True)
            moments = self._moments(subject, rows)
        fresh = {row.start_at for row in new}
        self._consider(subject, known, moments, lambda m: m.at in fresh, rows)

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
        full = self._rows(mine & since, subject, AT_ONCE * 5)
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
        self.fitted[subject] = (made, until)

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
                subject, moments[-1].at, one.log10_p, size, one.hellinger, shape,
                np.full(len(shape), one.rows), one.log10_p < level,
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
        row = self.db.execute(select(baseline).where(*_is(baseline, subject))).first()
        return None if row is None else (Baseline.from_bytes(row.state), row.until_at)

    def _rows(
        self, mine: Any, subject: Subject, limit: int, newest: bool = False
    ) -> list[Row[Any]]:
        """Usable windows in order of arrival: the first, or the newest, `limit` of them."""
        order = (window.c.received_at, window.c.start_at, window.c.seq)
        query = (
            select(window)
            .where(
                mine,
                window.c.model == subject.model,
                window.c.release == subject.release,
                window.c.rows > 0,
            )
            .order_by(*(c.desc() for c in order) if newest else order)
            .limit(limit)
        )
        rows = [row for row in self.db.execute(query) if usable(row)]
        return rows[::-1] if newest else rows

    def _light(self, mine: Any, subject: Subject, after: float) -> list[Row[Any]]:
        """Who spoke when, without the sketches."""
        query = select(window.c.device, window.c.start_at).where(
            mine,
            window.c.release == subject.release,
            window.c.start_at >= after,
            window.c.rows > 0,
        )
        return list(self.db.execute(query))

    def _last_bucket(self, subject: Subject, known: tuple[Baseline, float] | None) -> float:
        """Start of the first bucket that was not looked at."""
        if known is None:
            return 0.0
        newest = self.db.scalar(
            select(func.max(drift_point.c.at)).where(
                *_is(drift_point, subject), drift_point.c.release == subject.release
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
        return histograms.counts_of(self._references(subject.release), row.inputs, row.outputs)

    def _references(self, ref: str) -> References:
        if ref not in self.references:
            self.references[ref] = intake.references_of(self.db, ref)
            self.features[ref] = histograms.names_of(self.references[ref])
        return self.references[ref]

    def _training(self, ref: str) -> I64:
        return histograms.training_of(self._references(ref))

    def _width(self) -> float:
        return self.ctx.settings.fleet.window_s

    def _bucket(self, at: float) -> float:
        return math.floor(at / self._width()) * self._width()

    # --- writing ------------------------------------------------------------------------------

    def keep(self, db: Connection, mark: float) -> None:
        """Write everything, and up to where it was looked at."""
        for subject, (made, until) in self.fitted.items():
            values = {"windows": self.needed, "until_at": until, "state": made.to_bytes()}
            db.execute(baseline.insert().values(**_named(subject), **values))
            changes.note(db, self.ctx, "window", subject.name)
        groups: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
        lasting = set()
        for seen in self.seen:
            fresh = self._keep_point(db, seen)
            site = self.where[seen.subject]
            groups[site, seen.subject.model, seen.subject.release] += fresh
            if seen.alarmed.any():
                lasting.add(drafts.drift_key(site, seen.subject.model, seen.subject.release))
        for (site, _, _), found in groups.items():
            if found:
                alerts.raise_alert(db, self.ctx, drafts.drift(site, found), len(found))
        for key in lasting:
            alerts.touch(db, self.ctx, key, self._width())
        _set_mark(db, max(mark, self.mark))

    def _keep_point(self, db: Connection, seen: Seen) -> list[Finding]:
        """The heatmap's column, and a finding for each feature that began to alarm."""
        subject = seen.subject
        mine = _is(drift_point, subject)
        if (
            db.scalar(select(drift_point.c.at).where(*mine, drift_point.c.at == seen.at))
            is not None
        ):
            return []
        last = db.execute(
            select(drift_point.c.alarmed)
            .where(*mine, drift_point.c.release == subject.release, drift_point.c.at < seen.at)
            .order_by(drift_point.c.at.desc())
            .limit(1)
        ).scalar()
        before = None if last is None else np.frombuffer(last, np.uint8).astype(bool)
        db.execute(
            drift_point.insert().values(
                **_named(subject),
                at=seen.at,
                log10_p=seen.log10_p.astype("<f4").tobytes(),
                psi=seen.psi.astype("<f4").tobytes(),
                alarmed=seen.alarmed.astype(np.uint8).tobytes(),
            )
        )
        fresh = np.flatnonzero(drafts.rising(before, seen.alarmed))
        return [self._keep_finding(db, seen, int(i)) for i in fresh]

    def _keep_finding(self, db: Connection, seen: Seen, i: int) -> Finding:
        values: dict[str, Any] = {
            "at": seen.at,
            "kind": "drift",
            **_named(seen.subject),
            "feature": self.features[seen.subject.release][i],
            "scale": int(seen.scale[i]),
            "log10_p": float(seen.log10_p[i]),
            "log10_alpha": self.levels[len(seen.log10_p)],
            "hellinger": float(seen.hellinger[i]),
            "psi": float(seen.psi[i]),
            "rows": int(seen.rows[i]),
        }
        made = db.execute(finding.insert().values(**values))
        ident = int(made.inserted_primary_key[0])  # type: ignore[index]
        return Finding(id=ident, **values)


def _worse(a: Seen, b: Seen) -> Seen:
    """Of each feature the scale that says most against it."""
    take = b.log10_p < a.log10_p
    pick = {
        name: np.where(take, getattr(b, name), getattr(a, name))
        for name in ("log10_p", "psi", "hellinger", "scale", "rows")
    }
    return a._replace(**pick, alarmed=a.alarmed | b.alarmed)


def _new_windows(db: Connection, mark: float) -> list[Any]:
    """Windows that arrived after `mark`, in whole batches."""
    columns = (
        window.c.device, window.c.site, window.c.model, window.c.release, window.c.start_at,
        window.c.received_at,
    )  # fmt: skip
    order = (window.c.received_at, window.c.start_at, window.c.seq)
    query = select(*columns).where(window.c.received_at > mark).order_by(*order).limit(AT_ONCE)
    rows: list[Any] = list(db.execute(query))
    if len(rows) < AT_ONCE or rows[0].received_at == rows[-1].received_at:
        return rows
    return [row for row in rows if row.received_at < rows[-1].received_at]


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


def _is(table: Any, subject: Subject) -> list[Any]:
    """Which rows of `table` are the subject's."""
    wanted = [
        table.c.scope == subject.scope,
        table.c.subject == subject.name,
        table.c.model == subject.model,
    ]
    return wanted + ([table.c.release == subject.release] if table is baseline else [])


def _named(subject: Subject) -> dict[str, str]:
    return {
        "scope": subject.scope,
        "subject": subject.name,
        "model": subject.model,
        "release": subject.release,
    }


def _size(counts: Counts) -> int:
    return sum(int(c[0].sum()) for c in counts.values())


def _mark(db: Connection) -> float:
    value = db.scalar(select(setting.c.value).where(setting.c.name == _MARK))
    return msgspec.convert(value or 0.0, float, strict=False)


def _set_mark(db: Connection, mark: float) -> None:
    done = db.execute(update(setting).where(setting.c.name == _MARK).values(value=mark))
    if not done.rowcount:
        db.execute(setting.insert().values(name=_MARK, value=mark))
