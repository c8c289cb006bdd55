"""Drift monitor: tests new windows for drift, per device, and per site in buckets of time.

The position in the windows is stored in the same transaction as the results, so a restart
neither skips nor repeats a test. Windows that do not represent the production data are left out:
throttled ones (the device lowers its own rate), empty ones, and for a site those of a clock that
is not synchronised, because their bucket is uncertain. A window far smaller than usual is not
tested by itself; it counts in the tests of 4 and 16 merged windows.
"""

import math
from collections import OrderedDict, defaultdict
from collections.abc import Container, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
from sqlalchemy import Connection, func, select, update

from shoal.controller.host.context import Context
from shoal.controller.host.windows import StoredWindow
from shoal.controller.monitoring import drift, findings, histograms, window_validation
from shoal.controller.monitoring.drift import I64, Baseline, Counts
from shoal.controller.monitoring.findings import (
    BaselineFit,
    DriftTest,
    Subject,
    rows_of,
)
from shoal.controller.store.tables import baseline, device, drift_point, setting
from shoal.sketch import References

#: New windows tested in one transaction; no batch of ingest is larger.
BATCH = 500
#: Windows of one site read at once.
MOST_OF_A_SITE = 10_000
#: Wait for late windows of a site's bucket, beyond jitter and the length of the last window.
GRACE_S = 1.0
#: A device that sent nothing in this many buckets is not waited for.
RECENT_BUCKETS = 4
_POSITION = "monitoring.window"
_COUNTS_BYTES, _BASELINES_BYTES = 128 << 20, 64 << 20
_K = TypeVar("_K")
_V = TypeVar("_V")


class LruCache(Generic[_K, _V]):
    """Values up to a total number of bytes; the least recently used is evicted first.

    >>> cache = LruCache(10)
    >>> cache.put("a", 1, 6); cache.put("b", 2, 6); cache.get("a"), cache.get("b")
    (None, 2)
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._entries: OrderedDict[_K, tuple[_V, int]] = OrderedDict()

    def get(self, key: _K) -> _V | None:
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: _K, value: _V, size: int) -> None:
        """Add a value of `size` bytes under a new key."""
        self._entries[key] = (value, size)
        self._bytes += size
        while self._bytes > self._limit:
            _, (_, evicted) = self._entries.popitem(last=False)
            self._bytes -= evicted


class DriftCache:
    """Immutable data read from the database.

    counts      (device, boot, seq) -> the window's counts (F, W)
    baselines   subject -> its baseline, and the time until which it reaches
    sketched    release -> whether its windows hold sketches: a model of tensors has none
    sites       sites with windows of late, each with the time when its last one arrived
    """

    def __init__(self) -> None:
        self.counts: LruCache[tuple[str, str, int], I64] = LruCache(_COUNTS_BYTES)
        self.baselines: LruCache[Subject, tuple[Baseline, float]] = LruCache(_BASELINES_BYTES)
        self.sketched: dict[str, bool] = {}
        self.sites: dict[Subject, float] | None = None


class SubjectWindow(NamedTuple):
    """One window of a subject. counts: device -> (F, W)."""

    at: float
    counts: Counts


def evaluate_all(ctx: Context, cache: DriftCache | None = None) -> None:
    """Test everything that arrived since the last call. cache: kept by the caller between calls."""
    while evaluate(ctx, cache):
        pass


def evaluate(ctx: Context, cache: DriftCache | None = None) -> bool:
    """Test the next BATCH of windows that arrived since the last call; whether more wait."""
    with ctx.store.read() as db:
        position = _position(db)
        new = ctx.store.windows.after(position, BATCH)
        evaluation = _Evaluation(db, ctx, cache or DriftCache())
        for subject, rows in _by_device(new).items():
            if evaluation.is_sketched(subject.release):
                evaluation.device(subject, rows)
        for site in _active_sites(db, ctx, evaluation.cache, new):
            if evaluation.is_sketched(site.release):
                evaluation.site(site)
    if new or evaluation.tests or evaluation.fits:
        with ctx.store.write() as db:
            findings.save(db, ctx, evaluation.fits, evaluation.tests)
            _set_position(db, new[-1].id if new else position)
    return len(new) == BATCH


def usable(row: Any) -> bool:
    """Whether a window represents the production data."""
    return bool(row.rows and row.inputs and not row.health.get("throttled"))


class _Evaluation:
    """Baselines and test results of one evaluation, collected before any of it is stored."""

    def __init__(self, db: Connection, ctx: Context, cache: DriftCache) -> None:
        self.db, self.ctx, self.cache = db, ctx, cache
        self.needed = max(3, ctx.settings.drift.baseline_windows)
        self.scales = tuple(sorted(set(ctx.settings.drift.scales))) or (1,)
        self.width = ctx.settings.fleet.window_s
        self.tests: list[DriftTest] = []
        self.fits: list[BaselineFit] = []
        self.references: dict[str, References] = {}
        self.levels: dict[int, float] = {}

    def is_sketched(self, release: str) -> bool:
        """Whether there is anything to test in the windows of a release."""
        if release not in self.cache.sketched:
            self.cache.sketched[release] = self._references(release).features > 0
        return self.cache.sketched[release]

    def device(self, subject: Subject, new: Sequence[StoredWindow]) -> None:
        """Test a device's new windows, each merged with those before it; or fit the baseline."""
        known = self._baseline(subject)
        if known is None:
            if self._number(subject) >= self.needed:
                rows = self._rows(subject, self.needed * 3)
                self._fit(subject, self._windows(subject, rows), rows)
            return
        fitted, until = known
        count = len(new) + max(self.scales) - 1
        rows = [
            row
            for row in self._rows(subject, count, newest=True)
            if row.received_at > until and row.id <= new[-1].id
        ]
        fresh = {row.start_at for row in new}
        self._test(subject, new[-1].site, fitted, self._windows(subject, rows), fresh)

    def site(self, subject: Subject) -> None:
        """Test a site's complete buckets that were not tested yet; or fit the baseline."""
        known = self._baseline(subject)
        closed = self._closed(self._starts(subject, self._next_bucket(subject, known)))
        if not closed or (known is None and len(closed) < self.needed):
            return
        first = min(closed)
        if known is not None:
            first = max(known[1], first - (max(self.scales) - 1) * self.width)
        span = {"since": first, "until": max(closed) + self.width}
        rows = self._rows(subject, MOST_OF_A_SITE, **span)
        buckets = self._buckets(subject, rows)
        if known is None:
            self._fit(subject, buckets, rows)
        else:
            self._test(subject, subject.name, known[0], buckets, closed)

    # --- baselines and tests ------------------------------------------------------------------

    def _fit(
        self, subject: Subject, windows: list[SubjectWindow], rows: Sequence[StoredWindow]
    ) -> None:
        """Fit the baseline to the first windows of a usual size, once there are enough."""
        sizes = [_size(one.counts) for one in windows]
        usual = float(np.median(sizes)) if sizes else 0.0
        least = max(1.0, drift.LEAST_SHARE * usual)
        large = [one for one, size in zip(windows, sizes, strict=True) if size >= least]
        first = large[: self.needed]
        if len(first) < self.needed:
            return
        fitted = drift.fit([one.counts for one in first], self.scales)
        if subject.scope == "site":
            until = first[-1].at + self.width
        else:
            until = next(r.received_at for r in rows if r.start_at == first[-1].at)
        self.fits.append(BaselineFit(subject, fitted, until, self.needed))

    def _test(
        self,
        subject: Subject,
        site: str,
        fitted: Baseline,
        windows: list[SubjectWindow],
        new: Container[float],
    ) -> None:
        """Test each window whose start is in `new`."""
        for i, one in enumerate(windows):
            if one.at in new:
                self._test_last(subject, site, fitted, windows[: i + 1])

    def _test_last(
        self, subject: Subject, site: str, fitted: Baseline, windows: list[SubjectWindow]
    ) -> None:
        """Test the last window at every scale; of each feature, keep the most significant."""
        level = self._level(len(fitted.counts[0]))
        result: DriftTest | None = None
        for i, scale in enumerate(fitted.scales):
            merged = [one.counts for one in windows[-scale:]]
            if len(merged) < scale:
                continue
            compared = drift.compare(fitted, merged, i, self.ctx.settings.drift.tolerance)
            if compared is None:
                continue
            psi = drift.psi(fitted, merged, i, self._training(subject.release))
            features = len(psi)
            test = DriftTest(
                subject, site, windows[-1].at, compared.log10_p, psi, compared.hellinger,
                np.full(features, scale), np.full(features, compared.rows),
                compared.log10_p < level, level,
            )  # fmt: skip
            result = test if result is None else _most_significant(result, test)
        if result is not None:
            self.tests.append(result)

    def _level(self, features: int) -> float:
        """log10 of the significance level that keeps the fleet's budget of false alarms."""
        if features not in self.levels:
            devices = self.db.scalar(
                select(func.count()).select_from(device).where(device.c.state == "enrolled")
            )
            sites = self.db.scalar(select(func.count(device.c.site.distinct())))
            self.levels[features] = drift.log10_level(
                self.ctx.settings.drift.false_alarms_per_day,
                subjects=(devices or 0) + (sites or 0),
                features=features,
                window_s=self.width,
                scales=len(self.scales),
            )
        return self.levels[features]

    # --- reading ------------------------------------------------------------------------------

    def _baseline(self, subject: Subject) -> tuple[Baseline, float] | None:
        """The subject's baseline, and the time until which it reaches; cached, it never changes."""
        found = self.cache.baselines.get(subject)
        if found is None:
            row = self.db.execute(select(baseline).where(*rows_of(baseline, subject))).first()
            if row is None:
                return None
            found = Baseline.from_bytes(row.state), row.until_at
            size = found[0].counts.nbytes + found[0].groups.nbytes
            self.cache.baselines.put(subject, found, size)
        return found

    def _rows(self, subject: Subject, limit: int, **wanted: Any) -> list[StoredWindow]:
        """Usable windows in order of arrival: the first, or the newest, `limit` of them."""
        found = findings.windows_of(self.ctx, subject, limit=limit, **wanted)
        return [row for row in found if usable(row)]

    def _starts(self, subject: Subject, since: float) -> list[StoredWindow]:
        """Windows from `since` on; only those of a synchronised clock."""
        found = findings.windows_of(self.ctx, subject, since=since, limit=MOST_OF_A_SITE)
        return [row for row in found if row.health.get("clock_synced", True)]

    def _number(self, subject: Subject) -> int:
        return len(findings.windows_of(self.ctx, subject, limit=self.needed * 3))

    def _next_bucket(self, subject: Subject, known: tuple[Baseline, float] | None) -> float:
        """Start of the first bucket that was not tested yet."""
        if known is None:
            return 0.0
        newest = self.db.scalar(
            select(func.max(drift_point.c.at)).where(
                *rows_of(drift_point, subject), drift_point.c.release == subject.release
            )
        )
        return max(known[1], newest + self.width if newest is not None else 0.0)

    def _closed(self, rows: Iterable[StoredWindow]) -> set[float]:
        """Complete buckets: every recently active device has sent a later window, or the wait for
        late windows is over."""
        last: dict[str, float] = defaultdict(float)
        buckets = set()
        for row in rows:
            bucket = self._bucket(row.start_at)
            buckets.add(bucket)
            last[row.device] = max(last[row.device], bucket)
        newest = max(buckets, default=0.0)
        awaited = [at for at in last.values() if at >= newest - RECENT_BUCKETS * self.width]
        passed = min(awaited, default=0.0)
        wait = 2 * self.width + self.ctx.settings.fleet.jitter_s + GRACE_S
        return {b for b in buckets if b < passed or b + wait < self.ctx.clock()}

    def _windows(self, subject: Subject, rows: Iterable[StoredWindow]) -> list[SubjectWindow]:
        return [SubjectWindow(r.start_at, {r.device: self._counts(subject, r)}) for r in rows]

    def _buckets(self, subject: Subject, rows: Iterable[StoredWindow]) -> list[SubjectWindow]:
        buckets: dict[float, dict[str, I64]] = defaultdict(dict)
        for row in rows:
            if row.health.get("clock_synced", True):
                bucket = buckets[self._bucket(row.start_at)]
                bucket[row.device] = bucket.get(row.device, 0) + self._counts(subject, row)
        return [SubjectWindow(at, buckets[at]) for at in sorted(buckets)]

    def _counts(self, subject: Subject, row: StoredWindow) -> I64:
        key = (row.device, row.boot, row.seq)
        found = self.cache.counts.get(key)
        if found is None:
            references = self._references(subject.release)
            found = histograms.counts_of(references, row.inputs, row.outputs)
            self.cache.counts.put(key, found, found.nbytes)
        return found

    def _references(self, ref: str) -> References:
        if ref not in self.references:
            self.references[ref] = window_validation.references_of(self.db, ref)
        return self.references[ref]

    def _training(self, ref: str) -> I64:
        return histograms.training_of(self._references(ref))

    def _bucket(self, at: float) -> float:
        return math.floor(at / self.width) * self.width


def _most_significant(a: DriftTest, b: DriftTest) -> DriftTest:
    """For each feature, the scale with the lower p."""
    take = b.log10_p < a.log10_p
    pick = {
        name: np.where(take, getattr(b, name), getattr(a, name))
        for name in ("log10_p", "psi", "hellinger", "scale", "rows")
    }
    return a._replace(**pick, alarmed=a.alarmed | b.alarmed)


def _by_device(rows: Iterable[StoredWindow]) -> dict[Subject, list[StoredWindow]]:
    subjects: dict[Subject, list[StoredWindow]] = defaultdict(list)
    for row in rows:
        subjects[Subject("device", row.device, row.model, row.release)].append(row)
    return subjects


def _active_sites(
    db: Connection, ctx: Context, cache: DriftCache, new: Sequence[Any]
) -> list[Subject]:
    """Sites with recent windows: a bucket may also close by the passing of time alone.

    Read once, then kept up with `new`: a look costs what arrived since the last.
    """
    since = ctx.clock() - 10 * ctx.settings.fleet.window_s - 30
    if cache.sites is None:
        recent = ctx.store.windows.of(since=since, limit=MOST_OF_A_SITE, newest=True)
        new, cache.sites = [one for one in recent if one.received_at > since], {}
    for row in new:
        if row.site:
            cache.sites[Subject("site", row.site, row.model, row.release)] = row.received_at
    cache.sites = {site: at for site, at in cache.sites.items() if at > since}
    return sorted(cache.sites)


def _size(counts: Counts) -> int:
    return sum(int(c[0].sum()) for c in counts.values())


def _position(db: Connection) -> int:
    """Id of the last window that was tested."""
    value = db.scalar(select(setting.c.value).where(setting.c.name == _POSITION))
    return msgspec.convert(value or 0, int)


def _set_position(db: Connection, position: int) -> None:
    written = db.execute(update(setting).where(setting.c.name == _POSITION).values(value=position))
    if not written.rowcount:
        db.execute(setting.insert().values(name=_POSITION, value=position))
