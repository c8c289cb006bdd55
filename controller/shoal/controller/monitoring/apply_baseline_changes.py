"""Apply the changes of baselines that people asked for, in the thread that owns the states.

A few baselines at a time: the new states, what is listed of them and how far the change is are one
transaction, so a crash repeats nothing and leaves nothing out.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, select, tuple_, update

from shoal.controller.alerts import alerts
from shoal.controller.host.context import Context
from shoal.controller.monitoring import (
    baseline_rows,
    drift_states,
    findings,
    relearning,
)
from shoal.controller.monitoring.baseline_changes import ACCEPT, FREEZE, RESET, UNFREEZE
from shoal.controller.monitoring.baseline_rows import LEARNING, Listed
from shoal.controller.monitoring.drift_monitor import DriftMemory, Evaluation
from shoal.controller.monitoring.drift_state import State
from shoal.controller.monitoring.findings import Subject, columns
from shoal.controller.store import changes
from shoal.controller.store.drift_tables import baseline_change, drift_baseline

#: Baselines changed in one transaction, which holds the write lock: about 1 MB of states.
CHUNK = 50
_KEY = tuple(drift_baseline.c[n] for n in ("site", "scope", "subject", "release"))
_DONE = {RESET: "reset", ACCEPT: "accepted", FREEZE: "frozen", UNFREEZE: "unfrozen"}


def apply_all(ctx: Context, memory: DriftMemory) -> None:
    """Apply every change that waits, in the order in which they were asked for."""
    waiting = select(baseline_change.c.id).where(baseline_change.c.done_at == 0)
    with ctx.store.read() as db:
        idents = db.scalars(waiting.order_by(baseline_change.c.id)).all()
    try:
        for ident in idents:
            while apply_chunk(ctx, memory, ident):
                pass
    except BaseException:
        memory.clear()  # the states in it may be ahead of what is stored
        raise


def apply_chunk(ctx: Context, memory: DriftMemory, ident: int) -> bool:
    """Apply a change to the next CHUNK baselines; whether more may follow."""
    with ctx.store.read() as db:
        change = db.execute(select(baseline_change).where(baseline_change.c.id == ident)).one()
        wanted = baseline_rows.selected(
            change.model, device_name=change.device, site=change.site, release=change.release
        )
        query = select(drift_baseline).where(*wanted).order_by(*_KEY).limit(CHUNK)
        if change.after:
            query = query.where(tuple_(*_KEY) > tuple_(*change.after))
        rows = db.execute(query).all()
        evaluation = Evaluation(db, ctx, memory)
        evaluation.catch_up(_subject(row) for row in rows)
        moved = _moved_at_sites(db, rows) if change.action == ACCEPT else {}
        step = _Step(change, evaluation, moved)
        for row in rows:
            step.change(row)
    last = len(rows) < CHUNK
    with ctx.store.write() as db:
        findings.save(db, ctx, evaluation.tests)
        baseline_rows.save(db, ctx, memory.listed, evaluation.tests)
        step.save(db, ctx, rows, last=last)
    return not last


class _Step:
    """A change of some baselines: their new states, and why some were left out."""

    def __init__(
        self, change: Row[Any], evaluation: Evaluation, moved: dict[tuple[str, str], set[str]]
    ) -> None:
        self.asked, self.evaluation, self.memory = change, evaluation, evaluation.memory
        self.moved = moved
        self.rows: list[dict[str, Any]] = []
        self.states: list[tuple[Subject, State]] = []
        self.alerts: set[tuple[str, str]] = set()
        self.why = ""

    def change(self, row: Row[Any]) -> None:
        """Change one baseline, or say why not."""
        state = self.memory.states.get(_subject(row))
        act = {RESET: self._reset, ACCEPT: self._accept, FREEZE: self._freeze}
        self.why = act.get(self.asked.action, self._unfreeze)(row, state) or self.why

    def _reset(self, row: Row[Any], state: State | None) -> str:
        if state is not None:
            at = -float("inf") if row.scope == "site" else float(self.memory.position or 0)
            self._put(row, relearning.reset(state, at))
        began = self.evaluation.ctx.clock()
        self._list(row, state=LEARNING, drifting=[], began_at=began, frozen_at=0.0)
        return ""

    def _accept(self, row: Row[Any], state: State | None) -> str:
        if state is None or row.state == LEARNING:
            return "still learning what is usual"
        names = self.evaluation.names(row.release)
        wanted = set(self.asked.features) or {
            *(names[i] for i in relearning.in_alarm(state)),
            *self.moved.get((row.site, row.release), ()),
        }
        chosen = [i for i, name in enumerate(names) if name in wanted]
        if not chosen:
            return "none of its features is in alarm"
        after = relearning.accept(state, chosen)
        self._put(row, after)
        self._list(row, drifting=[names[i] for i in relearning.in_alarm(after)])
        return ""

    def _freeze(self, row: Row[Any], state: State | None) -> str:
        if state is None or row.state == LEARNING:
            return "still learning what is usual"
        self.memory.frozen.add(_subject(row))
        self.states.append((_subject(row), state))  # what it is frozen at can be shown
        self._list(row, frozen_at=row.frozen_at or self.evaluation.ctx.clock())
        return ""

    def _unfreeze(self, row: Row[Any], state: State | None) -> str:
        if not row.frozen_at:
            return "it was not frozen"
        self.memory.frozen.discard(_subject(row))
        self._list(row, frozen_at=0.0)
        return ""

    def _put(self, row: Row[Any], state: State) -> None:
        subject = _subject(row)
        self.states.append((subject, state))
        site = Subject("site", row.site, row.model, row.release)
        if site in self.memory.sites:
            self.memory.sites[site].discard()

    def _list(self, row: Row[Any], **values: Any) -> None:
        if values.get("frozen_at") == 0:
            self.memory.frozen.discard(_subject(row))
        after = {**row._mapping, **values}
        self.memory.listed[_subject(row)] = Listed(
            row.site, after["state"], tuple(after["drifting"])
        )
        after |= {
            "change": _DONE[self.asked.action],
            "changed_by": self.asked.asked_by,
            "changed_at": self.evaluation.ctx.clock(),
        }
        self.rows.append(after)

    def save(self, db: Connection, ctx: Context, rows: Sequence[Row[Any]], *, last: bool) -> None:
        """Write it, with how far the change is."""
        drift_states.write(db, ctx.clock(), self.states)
        for subject, state in self.states:
            self.memory.states.replace(subject, state)
        for row in self.rows:
            key = columns(Subject(row["scope"], row["subject"], row["model"], row["release"]))
            one = [drift_baseline.c[k] == v for k, v in key.items()]
            values = {k: v for k, v in row.items() if k not in key}
            db.execute(update(drift_baseline).where(*one).values(**values))
        values = {
            "changed": self.asked.changed + len(self.rows),
            "skipped": self.asked.skipped + len(rows) - len(self.rows),
            "why_skipped": self.asked.why_skipped or self.why,
        }
        if rows:
            values["after"] = [getattr(rows[-1], column.name) for column in _KEY]
        if last:
            values["done_at"] = ctx.clock()
            changes.note(db, ctx, "window", self.asked.device or self.asked.site or "")
        db.execute(
            update(baseline_change).where(baseline_change.c.id == self.asked.id).values(**values)
        )
        if self.asked.action in (RESET, ACCEPT):
            self._close_alerts(db, ctx)

    def _close_alerts(self, db: Connection, ctx: Context) -> None:
        """Close the drift alerts of sites where nothing is in alarm any more."""
        why = f"{_DONE[self.asked.action]} by {self.asked.asked_by}"
        for site, release in {(row["site"], row["release"]) for row in self.rows}:
            still = (
                select(func.count())
                .select_from(drift_baseline)
                .where(
                    drift_baseline.c.site == site,
                    drift_baseline.c.model == self.asked.model,
                    drift_baseline.c.release == release,
                    func.json_array_length(drift_baseline.c.drifting) > 0,
                )
            )
            if not db.scalar(still):
                alerts.close(db, ctx, findings.alert_key(site, self.asked.model, release), why)


def _subject(row: Row[Any]) -> Subject:
    return Subject(row.scope, row.subject, row.model, row.release)


def _moved_at_sites(db: Connection, rows: Sequence[Row[Any]]) -> dict[tuple[str, str], set[str]]:
    """Features in alarm of sites of these baselines as a whole, by site and release: what moved in
    all devices together, and in none of them far enough to be seen alone."""
    of = drift_baseline.c
    keys = {(row.site, row.model, row.release) for row in rows}
    query = select(of.site, of.release, of.drifting).where(
        of.scope == "site", tuple_(of.subject, of.model, of.release).in_(keys)
    )
    return {(row.site, row.release): set(row.drifting) for row in db.execute(query)}
