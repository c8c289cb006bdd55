"""What a run leaves behind: its environment, parameters, metrics and curves; and people's tags."""

import math
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from shoal.controller.access import audit
from shoal.controller.host.context import Context
from shoal.controller.runs import listing
from shoal.controller.runs.records import METRIC, PARAM, TAG, Run
from shoal.controller.store import changes
from shoal.controller.store.run_tables import run, run_value
from shoal.errors import InputError

#: Characters of a name, a text and a note; values of one kind, points of a curve, and curves.
NAME, TEXT, NOTE = 120, 500, 10_000
MOST, POINTS, CURVES = 200, 2_000, 20
#: Parameters that are no setting of the training: a description of columns, and a script's own.
_STRUCTURED = frozenset({"pipeline", "values"})


def begin(
    ctx: Context, ident: str, params: Mapping[str, Any], environment: Mapping[str, str]
) -> None:
    """Record what a run starts with. params: as given; environment: versions by name."""
    with ctx.store.write() as db:
        _set_run(db, ident, environment=dict(environment))
        _set_values(db, ident, PARAM, _flat(params))


def environment_of(db: Connection, ident: str) -> dict[str, str]:
    """Versions by name that a run started with; none of what was packed without one."""
    found: dict[str, str] | None = db.scalar(
        select(run.c.environment).where(run.c.operation == ident)
    )
    return found or {}


def record(
    db: Connection,
    ident: str,
    *,
    main: str,
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
    curves: Mapping[str, list[float]],
) -> None:
    """Record what came out of a run, in the transaction that stores its release."""
    bounded = {name[:NAME]: _thinned(points) for name, points in [*curves.items()][:CURVES]}
    _set_run(db, ident, main=main, curves=bounded)
    _set_values(db, ident, METRIC, metrics)
    _set_values(db, ident, PARAM, _flat(params))


def annotate(
    ctx: Context, *, actor: str, ident: str, tags: Mapping[str, str | None], note: str | None
) -> Run:
    """Set tags and the note of a run. A tag that is None is removed; a note that is None is kept.

    AbsentError for an unknown run, InputError for what is too long or too much.
    """
    before = listing.get_run(ctx, ident)
    ident = before.id
    for name, value in tags.items():
        _check_tag(name, value)
    if note is not None and len(note) > NOTE:
        raise InputError(f"a note of {len(note)} characters", f"use {NOTE} at most")
    with ctx.store.write() as db:
        mine = (run_value.c.run == ident) & (run_value.c.kind == TAG)
        db.execute(delete(run_value).where(mine, run_value.c.name.in_([*tags])))
        kept = {name: value for name, value in tags.items() if value is not None}
        if kept:
            db.execute(insert(run_value), [_row(ident, TAG, *item) for item in kept.items()])
        if (db.scalar(select(func.count()).where(mine)) or 0) > MOST:
            raise InputError(f"more than {MOST} tags", "remove some")
        if note is not None:
            _set_run(db, ident, note=note)
        said = {} if note is None else {"note": note[:TEXT]}
        audit.record(db, ctx, actor, "run.annotate", ident, model=before.model, tags=tags, **said)
        changes.note(db, ctx, "operation", ident)
    return listing.get_run(ctx, ident)


def _check_tag(name: str, value: str | None) -> None:
    if not name.strip() or len(name) > NAME or not name.isprintable() or "`" in name:
        raise InputError(f"tag {name[:60]!r}", f"use up to {NAME} printable characters")
    if value is not None and (len(value) > TEXT or not value.isprintable()):
        raise InputError(f"the value of tag {name}", f"use up to {TEXT} printable characters")


def _set_run(db: Connection, ident: str, **values: Any) -> None:
    db.execute(upsert(run).values(operation=ident).on_conflict_do_nothing())
    db.execute(update(run).where(run.c.operation == ident).values(**values))


def _set_values(db: Connection, ident: str, kind: str, values: Mapping[str, Any]) -> None:
    db.execute(delete(run_value).where(run_value.c.run == ident, run_value.c.kind == kind))
    rows = [_row(ident, kind, *item) for item in [*values.items()][:MOST]]
    if rows:
        db.execute(insert(run_value), rows)


def _row(ident: str, kind: str, name: str, value: Any) -> dict[str, Any]:
    """A row of run_value. A tag that reads as a number is compared as one, and stays text."""
    is_text = isinstance(value, str)
    number = None if is_text and kind != TAG else _number(value)
    text = "" if number is not None and not is_text else str(value)[:TEXT]
    return {"run": ident, "kind": kind, "name": name[:NAME], "number": number, "value": text}


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as numbers and texts; those of a script beside those of every training."""
    own = params.get("values")
    found = {name: value for name, value in params.items() if name not in _STRUCTURED}
    found |= {k: v for k, v in own.items() if k not in found} if isinstance(own, dict) else {}
    return {name: _plain(value) for name, value in found.items() if value not in ("", [], None)}


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value


def _thinned(points: list[float]) -> list[float]:
    """At most POINTS of them, first and last included; what is not finite is left out."""
    finite = [float(point) for point in points if math.isfinite(point)]
    if len(finite) <= POINTS:
        return finite
    step = (len(finite) - 1) / (POINTS - 1)
    return [finite[round(i * step)] for i in range(POINTS)]
