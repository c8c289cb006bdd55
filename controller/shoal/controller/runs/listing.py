"""Runs as people read them: pages by filter and order, one run, several compared; all in SQL."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select, tuple_

from shoal import manifest as manifests
from shoal.controller.host.context import Context
from shoal.controller.operations.operations import STATES
from shoal.controller.runs import conditions
from shoal.controller.runs.conditions import Condition, Name
from shoal.controller.runs.records import (
    KINDS,
    METRIC,
    PARAM,
    TAG,
    Artifact,
    Comparison,
    Run,
    Source,
    compare,
    less_is_better,
)
from shoal.controller.store import cursors
from shoal.controller.store.records import Page
from shoal.controller.store.run_tables import run, run_value
from shoal.controller.store.tables import operation as _operation
from shoal.controller.store.tables import release
from shoal.errors import AbsentError, InputError
from shoal.manifest import File

#: Runs that are compared at most.
MOST_COMPARED = 20
BEST, NEWEST = "best", ""
_OPERATORS: dict[str, Callable[[Any, Any], ColumnElement[bool]]] = {
    ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le,
    "=": operator.eq, "!=": operator.ne,
}  # fmt: skip
_FACTS = (
    _operation, release.c.model.label("made_of"), release.c.version, release.c.parent,
    release.c.state.label("release_state"), run.c.main, run.c.note,
)  # fmt: skip
_JOINED = _operation.outerjoin(release, release.c.operation == _operation.c.id).outerjoin(
    run, run.c.operation == _operation.c.id
)


def page(
    ctx: Context,
    *,
    model: str = "",
    state: str = "",
    kind: str = "",
    dataset: str = "",
    q: str = "",
    sort: str = NEWEST,
    order: str = "",
    cursor: str = "",
    limit: int = 50,
) -> tuple[list[Run], Page]:
    """Runs that match every filter.

    dataset  "name" or "name@version"
    q        conditions.parse
    sort     "" for the newest first; "best" for the metric that the newest run of `model` is judged
             by; or a name such as "metrics.accuracy": only runs that have it are listed
    order    "asc" or "desc"; "" for the better values first
    InputError for what cannot be read.
    """
    limit = cursors.bounded(limit)
    wanted = _wanted(model, state, kind, dataset) + [_holds(one) for one in conditions.parse(q)]
    by = _sorted_by(ctx, model, sort)
    down = _is_descending(by, order)
    source, counted = _JOINED, select(func.count()).select_from(_operation)
    key, tie = _operation.c.created_at, _operation.c.id
    if by is not None:
        is_run = run_value.c.run == _operation.c.id
        source, counted = source.join(run_value, is_run), counted.join(run_value, is_run)
        wanted += [run_value.c.kind == by.kind, run_value.c.name == by.name]
        wanted.append(run_value.c.number.is_not(None))
        key, tie = run_value.c.number, run_value.c.run  # as its index has them
    query = select(*_FACTS, key.label("sort_key")).select_from(source).where(*wanted)
    total = -1
    if cursor:
        value, ident, total = cursors.decode(cursor, float, str, int)
        after = tuple_(key, tie)
        query = query.where(after < tuple_(value, ident) if down else after > tuple_(value, ident))
    directed = [c.desc() if down else c.asc() for c in (key, tie)]
    with ctx.store.read() as db:
        rows = db.execute(query.order_by(*directed).limit(limit + 1)).all()
        if total < 0:
            total = len(rows)
            if len(rows) > limit:
                total = db.execute(counted.where(*wanted)).scalar_one()
        values = _values(db, [row.id for row in rows[:limit]])
    more = ""
    if len(rows) > limit:
        more = cursors.encode(rows[limit - 1].sort_key, rows[limit - 1].id, total)
    now = ctx.clock()
    return [_run(row, values, now) for row in rows[:limit]], Page(next=more, total=total)


def get_run(ctx: Context, ident: str) -> Run:
    """One run with its environment, curves and artifacts; AbsentError if there is none such."""
    [found] = _whole(ctx, [ident])
    return found


def compare_runs(ctx: Context, idents: Sequence[str]) -> Comparison:
    """Several runs side by side; InputError for less than two, or too many; AbsentError."""
    chosen = [*dict.fromkeys(idents)]
    if not 2 <= len(chosen) <= MOST_COMPARED:
        raise InputError(
            f"{len(chosen)} runs to compare", f"choose 2 to {MOST_COMPARED}: shoal run list"
        )
    return compare(_whole(ctx, chosen))


def run_of(ctx: Context, release_ref: str) -> str:
    """Id of the run that made a release; "" for none. A run's own id is returned as it is."""
    if "@" not in release_ref:
        return release_ref
    model, version = manifests.parse_release(release_ref)
    mine = (release.c.model == model) & (release.c.version == version)
    with ctx.store.read() as db:
        return db.scalar(select(release.c.operation).where(mine)) or ""


def _whole(ctx: Context, idents: Sequence[str]) -> list[Run]:
    """The runs, each by its id or by the release that it made."""
    asked = {ident: run_of(ctx, ident) for ident in idents}
    wanted = _operation.c.id.in_([*asked.values()]) & _operation.c.kind.in_(KINDS)
    columns = (*_FACTS, run.c.environment, run.c.curves, release.c.manifest)
    with ctx.store.read() as db:
        query = select(*columns).select_from(_JOINED).where(wanted)
        rows = {row.id: row for row in db.execute(query)}
        values = _values(db, [*rows])
    for ident, found in asked.items():
        if found not in rows:
            raise AbsentError("run", ident, "list them: shoal run list")
    now = ctx.clock()
    return [
        _run(
            rows[ident], values, now, environment=rows[ident].environment or {},
            curves=rows[ident].curves or {}, artifacts=_artifacts(rows[ident]),
        )
        for ident in asked.values()
    ]  # fmt: skip


def _wanted(model: str, state: str, kind: str, dataset: str) -> list[ColumnElement[bool]]:
    if state and state not in STATES:
        raise InputError(f"state {state!r:.40}", f"use one of: {', '.join(STATES)}")
    if kind and kind not in KINDS:
        raise InputError(f"kind {kind!r:.40}", f"use one of: {', '.join(KINDS)}")
    wanted = [_operation.c.kind == kind if kind else _operation.c.kind.in_(KINDS)]
    wanted += [_operation.c.subject == model] if model else []
    wanted += [_operation.c.state == state] if state else []
    if dataset:
        name = _operation.c.params["dataset"].as_string()
        versions = and_(name >= f"{dataset}@", name < f"{dataset}A")  # "A" is behind "@"
        wanted.append(name == dataset if "@" in dataset else versions)
    return wanted


def _holds(one: Condition) -> ColumnElement[bool]:
    column = run_value.c.number if one.number is not None else run_value.c.value
    value: Any = one.text if one.number is None else one.number
    test = _OPERATORS[one.operator](column, value)
    if one.number is not None and one.operator == "=":
        test = or_(test, run_value.c.value == one.text)
    mine = (run_value.c.kind == one.of.kind, run_value.c.name == one.of.name)
    return _operation.c.id.in_(select(run_value.c.run).where(*mine, test))


def _sorted_by(ctx: Context, model: str, sort: str) -> Name | None:
    if sort == NEWEST:
        return None
    if sort != BEST:
        return conditions.parse_name(sort)
    if not model:
        raise InputError("the best of every model", "name a model, or a metric to sort by")
    newest = select(run.c.main).select_from(_JOINED).where(_operation.c.subject == model)
    known = newest.where(run.c.main != "").order_by(_operation.c.created_at.desc()).limit(1)
    with ctx.store.read() as db:
        main = db.scalar(known) or ""
    if not main:
        raise InputError(
            f"no run of {model} is judged by a metric", "name one: sort=metrics.accuracy"
        )
    return Name(METRIC, main)


def _is_descending(by: Name | None, order: str) -> bool:
    if order not in ("", "asc", "desc"):
        raise InputError(f"order {order!r:.20}", "use asc or desc")
    if order:
        return order == "desc"
    return by is None or not less_is_better(by.name)


def _values(db: Connection, idents: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Run -> kind -> name -> value."""
    query = select(run_value).where(run_value.c.run.in_(idents))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in db.execute(query.order_by(run_value.c.name)):
        of_kind = found.setdefault(row.run, {}).setdefault(row.kind, {})
        number = row.number if row.kind != TAG else None
        of_kind[row.name] = row.value if number is None else number
    return found


def _run(row: Row[Any], values: Any, now: float, **more: Any) -> Run:
    mine, params = values.get(row.id, {}), row.params
    given = params.get("params") or {}
    ended = row.finished_at or now
    return Run.of_row(
        row,
        model=row.subject,
        dataset=params.get("dataset", ""),
        dataset_sha256=params.get("dataset_sha256", ""),
        estimator=params.get("estimator", ""),
        trigger=params.get("trigger", ""),
        revision=params.get("revision", ""),
        seed=int(mine.get(PARAM, {}).get("seed", given.get("seed", 0))),
        release=f"{row.made_of}@{row.version}" if row.made_of else "",
        release_state=row.release_state or "",
        parent=row.parent or "",
        main=row.main or "",
        note=row.note or "",
        duration_s=max(0.0, ended - row.started_at) if row.started_at else 0.0,
        source=msgspec.convert(params["source"], Source) if params.get("source") else None,
        params=mine.get(PARAM, {}),
        metrics=mine.get(METRIC, {}),
        tags=mine.get(TAG, {}),
        **more,
    )


def _artifacts(row: Row[Any]) -> list[Artifact]:
    found = []
    if row.manifest is not None:
        made = manifests.parse(row.manifest)
        files = [file for v in made.variants for file in v.files]
        attached = (made.reference, made.golden, made.card, made.bom, made.provenance)
        files += [one for one in attached if isinstance(one, File)]
        found = [Artifact(name=f.name, sha256=f.sha256, size=f.size) for f in files]
    for name in ("script", "onnx"):
        if sha256 := row.params.get(name):
            found.append(Artifact(name=f"{name}, as given", sha256=sha256))
    return found
