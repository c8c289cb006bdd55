"""Drift monitor: applies new windows to the drift decision, per device, and per site in buckets.

Nothing is read again: a window is decoded once, applied to the state of its device, and added to
the open bucket of its site. A state carries the id of the last window that it knows; after a crash
it is loaded as it was saved, and the windows since then are applied to it again. What they said is
stored under the same keys, so it counts once. A site's open bucket may have fewer members then.

Windows that do not represent the production data are left out: throttled ones (the device lowers
its own rate), empty ones and those of no length, and for a site those of a clock that is not
synchronised.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
from sqlalchemy import Connection, func, select

from shoal.controller.host.context import Context
from shoal.controller.host.windows import StoredWindow
from shoal.controller.monitoring import (
    baseline_rows,
    drift_outcomes,
    drift_state,
    explanations,
    findings,
    histograms,
    sequential,
    window_validation,
)
from shoal.controller.monitoring.baseline_rows import Listed
from shoal.controller.monitoring.drift_outcomes import Known
from shoal.controller.monitoring.drift_states import DriftStates
from shoal.controller.monitoring.findings import DriftTest, Subject
from shoal.controller.monitoring.sequential import Fleet
from shoal.controller.monitoring.site_buckets import Bucket, SiteBuckets
from shoal.controller.monitoring.surprises import Rules, Times
from shoal.controller.store import stored_values
from shoal.controller.store.tables import device
from shoal.errors import AbsentError

#: New windows applied in one transaction, and subjects in one step of the decision.
BATCH, STEP = 500, 256
#: Windows of one device that are applied again after a crash, at most.
REPLAYED = 10_000
#: Wait for late windows of a site's bucket, beyond jitter and the length of the last window.
GRACE_S = 1.0
#: Buckets after which a silent site is forgotten; seconds for which the fleet's size holds.
SILENT, SIZE_HOLDS_S = 100, 60.0
#: One batch in so many teaches what the fleet saw.
FLEET_EVERY = 7
_POSITION = "monitoring.position"


class DriftMemory:
    """What the monitor keeps between two looks; all of it can be lost.

    states    of the decision, up to drift.memory_mb
    sites     open buckets by site
    fleets    what all subjects of a release saw, by scope and release
    known     by release: references and training shares; None: nothing is sketched
    listed    what the rows of baselines say; frozen: subjects whose normal stays as it is
    """

    def __init__(self, memory_mb: int) -> None:
        self.states = DriftStates(memory_mb << 20)
        self.sites: dict[Subject, SiteBuckets] = {}
        self.fleets: dict[tuple[str, str], Fleet] = {}
        self.known: dict[str, Known | None] = {}
        self.listed: dict[Subject, Listed] = {}
        self.frozen: set[Subject] = set()
        self.size, self.batches = (-math.inf, 0), 0
        self.position: int | None = None

    def clear(self) -> None:
        """Forget everything: it is read from the database again."""
        self.states.clear()
        self.sites.clear()
        self.listed.clear()
        self.position = None

    def open(self, db: Connection) -> int:
        """Read what was stored last, if it is not known; the id of the last applied window."""
        if self.position is None:
            self.position, self.frozen = _position(db), baseline_rows.frozen(db)
        return self.position


def evaluate_all(ctx: Context, memory: DriftMemory | None = None) -> None:
    """Apply everything that arrived since the last call. memory: kept between calls."""
    kept = memory or DriftMemory(ctx.settings.drift.memory_mb)
    while evaluate(ctx, kept):
        pass
    if memory is None:
        save(ctx, kept)


def evaluate(ctx: Context, memory: DriftMemory) -> bool:
    """Apply the next BATCH of windows that arrived since the last call; whether more wait."""
    try:
        return _evaluate(ctx, memory)
    except BaseException:
        memory.clear()  # the states in it may be ahead of what is stored
        raise


def save(ctx: Context, memory: DriftMemory) -> None:
    """Write all states that changed, before a tidy end."""
    with ctx.store.write() as db:
        memory.states.save(db, ctx.clock(), ctx.settings.fleet.window_s, all_of_them=True)


def usable(row: Any) -> bool:
    """Whether a window represents the production data. One of no length has no rate of rows."""
    timed = row.window_s > 0
    return bool(row.rows and row.inputs and timed and not row.health.get("throttled"))


def rules_of(ctx: Context) -> Rules:
    """The decision's rules from the settings."""
    wanted = ctx.settings.drift
    return Rules(
        first=max(2, wanted.baseline_windows),
        cycle=wanted.cycle == "day",
        rest_days=tuple(wanted.rest_days),
        tolerance=wanted.tolerance,
    )


def site_rules(rules: Rules) -> Rules:
    """A site counts devices from half of their first windows on, and looks after as many more."""
    return rules._replace(first=max(2, rules.first // 2))


def local_time(at: float, zone: str) -> float:
    """Seconds of local time as if it were UTC, of a Unix time in an IANA time zone.

    >>> local_time(1_800_000_000.0, "Europe/Berlin") - 1_800_000_000.0
    3600.0
    """
    return at + _offset(zone, int(at // 900))


def _evaluate(ctx: Context, memory: DriftMemory) -> bool:
    with ctx.store.read() as db:
        new = ctx.store.windows.after(memory.open(db), BATCH)
        evaluation = Evaluation(db, ctx, memory)
        evaluation.devices(new)
        evaluation.sites()
        explained = evaluation.explain()
    position = new[-1].id if new else memory.open(db)
    with ctx.store.write() as db:
        findings.save(db, ctx, evaluation.tests, explained)
        baseline_rows.save(db, ctx, memory.listed, evaluation.tests)
        memory.states.save(db, ctx.clock(), ctx.settings.fleet.window_s)
        if new:
            stored_values.write(db, _POSITION, position)
    memory.position = position
    return len(new) == BATCH


class Evaluation:
    """Results of one evaluation, collected before any of it is stored.

    tests   what the decision said of the windows that were applied
    """

    def __init__(self, db: Connection, ctx: Context, memory: DriftMemory) -> None:
        self.db, self.ctx, self.memory = db, ctx, memory
        self.width, self.rules = ctx.settings.fleet.window_s, rules_of(ctx)
        self.tests: list[DriftTest] = []

    # --- devices ------------------------------------------------------------------------------

    def devices(self, new: Sequence[StoredWindow]) -> None:
        """Apply new windows to the states of their devices, and add them to their sites'."""
        by_release: dict[str, dict[Subject, list[StoredWindow]]] = defaultdict(dict)
        for subject, rows in _by_device(new).items():
            if self._known(subject.release) is not None:
                by_release[subject.release][subject] = self._since(subject, rows, new[-1].id)
        for release, queues in by_release.items():
            self._apply_all(release, queues)

    def _apply_all(self, release: str, queues: dict[Subject, list[StoredWindow]]) -> None:
        """Apply each subject's windows in their order, a window of many subjects at a time."""
        for turn in range(max(map(len, queues.values()))):
            now = [(s, rows[turn]) for s, rows in queues.items() if turn < len(rows)]
            for start in range(0, len(now), STEP):
                self._apply(release, now[start : start + STEP])

    def catch_up(self, subjects: Iterable[Subject]) -> None:
        """Load states of devices, and apply what they do not know of the windows before the last
        that was applied: a state is loaded as it was saved."""
        states, last = self.memory.states, self.memory.open(self.db)
        queues: dict[str, dict[Subject, list[StoredWindow]]] = defaultdict(dict)
        for subject in subjects:
            if states.get(subject) is not None or self._known(subject.release) is None:
                continue
            states.load(self.db, [subject])
            state = states.get(subject)
            if state is not None and subject.scope == "device" and state.position < last:
                queues[subject.release][subject] = self._unknown(subject, state, last)
        for release, behind in queues.items():
            self._apply_all(release, behind)

    def _unknown(self, subject: Subject, state: Any, last: int) -> list[StoredWindow]:
        rows = self.ctx.store.windows.of(
            device=subject.name, model=subject.model, release=subject.release,
            after=int(state.position), limit=REPLAYED,
        )  # fmt: skip
        return [row for row in rows if row.id <= last and usable(row)]

    def _since(self, subject: Subject, rows: list[StoredWindow], last: int) -> list[StoredWindow]:
        """Usable windows that the subject's state does not know, from the database if need be."""
        states = self.memory.states
        if states.get(subject) is None:
            states.load(self.db, [subject])
            state = states.get(subject)
            if state is None or state.layout != self._layout(subject):
                position = float(rows[0].id - 1)
                states.add(subject, drift_state.empty(self._layout(subject), position))
            elif state.position < rows[0].id - 1:
                rows = self.ctx.store.windows.of(
                    device=subject.name, model=subject.model, release=subject.release,
                    after=int(state.position), limit=REPLAYED,
                )  # fmt: skip
        state = states.get(subject)
        known = state.position if state is not None else 0
        return [row for row in rows if known < row.id <= last and usable(row)]

    def _apply(self, release: str, now: Sequence[tuple[Subject, StoredWindow]]) -> None:
        known = self._known(release)
        if known is None:
            return
        subjects, rows = [s for s, _ in now], [row for _, row in now]
        states = [self.memory.states.get(s) or drift_state.empty(self._layout(s)) for s in subjects]
        local = np.array([local_time(row.start_at, self._zone(row.site)) for row in rows])
        windows = histograms.windows_of(known.references, rows, local)
        fleet = self.memory.fleets.get(("device", release), Fleet.unknown())
        log_a = self._log_a(known)
        after, outcome = sequential.observe(
            states, windows, known.training, self.rules, fleet, log_a, self._frozen(subjects)
        )
        for subject, state in zip(subjects, after, strict=True):
            self.memory.states.change(subject, state, self.ctx.clock())
        self._learn_of_fleet("device", release, after)
        counts = np.concatenate([windows.counts, windows.missing[..., None]], axis=-1)
        self.tests += drift_outcomes.tests_of(
            known, outcome, after, log_a, self.rules, subjects=subjects,
            sites=[row.site for row in rows], at=windows.at, counts=counts,
            rows=np.array([row.rows for row in rows]),
        )  # fmt: skip
        self._add_to_sites(release, rows, sequential.site_terms(outcome), counts)

    def _add_to_sites(
        self, release: str, rows: Sequence[StoredWindow], terms: Any, counts: Any
    ) -> None:
        stacked = np.stack(terms, axis=1)
        for i, row in enumerate(rows):
            if row.site and row.health.get("clock_synced", True):
                one = Bucket(stacked[i], counts[i], row.rows)
                of_site = Subject("site", row.site, row.model, release)
                self._buckets(of_site).add(row.device, row.start_at, one)

    # --- sites --------------------------------------------------------------------------------

    def sites(self) -> None:
        """Apply complete buckets to the states of their sites."""
        wait = 2 * self.width + self.ctx.settings.fleet.jitter_s + GRACE_S
        before = self.ctx.clock() - wait
        by_release: dict[str, dict[Subject, list[Any]]] = defaultdict(dict)
        for site, buckets in list(self.memory.sites.items()):
            done = [(at, one) for at, one in buckets.close(before) if one.terms[2].any()]
            if done:
                by_release[site.release][site] = done
            elif not buckets.open and buckets.until < before - SILENT * self.width:
                del self.memory.sites[site]
        for release, queues in by_release.items():
            for turn in range(max(map(len, queues.values()))):
                now = [(s, *done[turn]) for s, done in queues.items() if turn < len(done)]
                for start in range(0, len(now), STEP):
                    self._apply_sites(release, now[start : start + STEP])

    def _apply_sites(self, release: str, now: Sequence[tuple[Subject, float, Any]]) -> None:
        known = self._known(release)
        if known is None:
            return
        subjects, at = [s for s, _, _ in now], np.array([a for _, a, _ in now])
        states = [self.memory.states.get(s) or drift_state.empty(self._layout(s)) for s in subjects]
        local = np.array([local_time(a, self._zone(s.name)) for s, a, _ in now])
        times = Times(at, local, np.full(len(now), self.width))
        terms = list(np.stack([one.terms for _, _, one in now], axis=1))
        fleet = self.memory.fleets.get(("site", release), Fleet.unknown())
        log_a, rules = self._log_a(known), site_rules(self.rules)
        after, outcome = sequential.observe_sites(
            states, times, terms, rules, fleet, log_a, self._frozen(subjects)
        )
        for subject, state in zip(subjects, after, strict=True):
            self.memory.states.change(subject, state, self.ctx.clock())
        self._learn_of_fleet("site", release, after)
        self.tests += drift_outcomes.tests_of(
            known, outcome, after, log_a, rules, subjects=subjects,
            sites=[s.name for s in subjects], at=at,
            counts=np.stack([one.counts for _, _, one in now]),
            rows=np.array([one.rows for _, _, one in now]),
        )  # fmt: skip

    def _buckets(self, site: Subject) -> SiteBuckets:
        found = self.memory.sites.get(site)
        if found is None:
            states = self.memory.states
            states.load(self.db, [site])
            state = states.get(site)
            if state is None or state.layout != self._layout(site):
                state = drift_state.empty(self._layout(site), -math.inf)
                states.add(site, state)
            found = self.memory.sites[site] = SiteBuckets(self.width, state.position)
        return found

    def explain(self) -> dict[str, str]:
        """Of releases with new findings: which devices drift, and what they share."""
        alarmed: dict[tuple[str, str], set[str]] = defaultdict(set)
        for test in self.tests:
            if test.subject.scope == "device" and test.alarmed.any():
                alarmed[test.subject.model, test.subject.release].add(test.subject.name)
        new = {(one.subject.model, one.subject.release) for one in self.tests if one.found}
        return {
            release: explanations.words_of(self.db, model, release, alarmed[model, release])
            for model, release in new
        }

    # --- what is known ------------------------------------------------------------------------

    def _frozen(self, subjects: Sequence[Subject]) -> Any:
        """(B,): subjects whose normal stays as it is; None if there is none."""
        if not self.memory.frozen:
            return None
        return np.array([one in self.memory.frozen for one in subjects])

    def _known(self, release: str) -> Known | None:
        """References of a release; None if there is nothing to test, or it was deleted."""
        if release not in self.memory.known:
            try:
                references = window_validation.references_of(self.db, release)
            except AbsentError:
                return None
            found = Known.of(references) if references.features else None
            self.memory.known[release] = found
        return self.memory.known[release]

    def names(self, release: str) -> list[str]:
        """Names of a release's features, and of the rows; none if there is nothing to test."""
        known = self._known(release)
        return known.names if known is not None else []

    def _layout(self, subject: Subject) -> drift_state.Layout:
        known = self._known(subject.release)
        features, bins = known.training.shape if known else (0, 0)
        if subject.scope == "site":
            return sequential.site_layout(features, self.rules)
        return sequential.device_layout(features, bins, self.rules)

    def _log_a(self, known: Known) -> float:
        """Log of the threshold that keeps the fleet's budget of false alarms."""
        until, subjects = self.memory.size
        if until < self.ctx.clock():
            enrolled = select(func.count()).where(device.c.state == "enrolled")
            places = select(func.count(device.c.site.distinct()))
            subjects = (self.db.scalar(enrolled) or 0) + (self.db.scalar(places) or 0)
            self.memory.size = self.ctx.clock() + SIZE_HOLDS_S, subjects
        return sequential.log_threshold(
            self.ctx.settings.drift.false_alarms_per_day,
            subjects=subjects,
            features=len(known.training),
            window_s=self.width,
        )

    def _learn_of_fleet(self, scope: str, release: str, states: Sequence[Any]) -> None:
        """Move what the fleet saw towards a batch, by its share of the fleet."""
        fleets, key = self.memory.fleets, (scope, release)
        self.memory.batches += 1
        if key in fleets and self.memory.batches % FLEET_EVERY:
            return
        share = FLEET_EVERY * len(states) / max(1, self.memory.size[1])
        weight = min(share, 1.0) if key in fleets else 1.0
        fleets[key] = fleets.get(key, Fleet.unknown()).after(states, weight)

    def _zone(self, site: str) -> str:
        drift = self.ctx.settings.drift
        return drift.timezones.get(site, drift.timezone)


@functools.lru_cache(maxsize=4096)
def _offset(zone: str, quarter: int) -> float:
    """Seconds that a time zone is ahead of UTC, in a quarter of an hour since 1970."""
    moment = datetime.fromtimestamp(quarter * 900, UTC).astimezone(ZoneInfo(zone))
    ahead = moment.utcoffset()
    return ahead.total_seconds() if ahead is not None else 0.0


def _by_device(rows: Iterable[StoredWindow]) -> dict[Subject, list[StoredWindow]]:
    subjects: dict[Subject, list[StoredWindow]] = defaultdict(list)
    for row in rows:
        subjects[Subject("device", row.device, row.model, row.release)].append(row)
    return subjects


def _position(db: Connection) -> int:
    """Id of the last window that was applied."""
    return msgspec.convert(stored_values.read(db, _POSITION) or 0, int)
