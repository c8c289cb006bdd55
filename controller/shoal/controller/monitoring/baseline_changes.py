"""Changes of baselines that people ask for: reset, accept, freeze, unfreeze.

What is usual is in the engine's memory, so a change is stored here, and applied there.
"""

from collections.abc import Sequence

from sqlalchemy import func, select

from shoal.controller.access import audit
from shoal.controller.host.context import Context
from shoal.controller.monitoring import baseline_rows, histograms, window_validation
from shoal.controller.monitoring.change_words import ROWS
from shoal.controller.monitoring.records import BaselineChange
from shoal.controller.releases import models
from shoal.controller.store import cursors
from shoal.controller.store.drift_tables import baseline_change, drift_baseline
from shoal.controller.store.records import Page
from shoal.errors import AbsentError, InputError

RESET, ACCEPT, FREEZE, UNFREEZE = ACTIONS = ("reset", "accept", "freeze", "unfreeze")


def ask(
    ctx: Context,
    *,
    actor: str,
    action: str,
    model: str,
    device: str = "",
    site: str = "",
    whole_model: bool = False,
    release: str = "",
    features: Sequence[str] = (),
) -> BaselineChange:
    """Store a change for the engine.

    device, site, whole_model   exactly one: a device; a site with its devices; all of the model
    release                     "": that which each device serves
    features                    of accept; none: those that are in alarm
    Raises InputError for another selection, AbsentError where it selects nothing.
    """
    if action not in ACTIONS:
        raise InputError(f"action {action!r:.40}", f"use one of {', '.join(ACTIONS)}")
    if [bool(device), bool(site), whole_model].count(True) != 1:
        raise InputError(
            f"which baselines of {model}?",
            "name one device, or one site (with its devices), or ask for the whole model",
        )
    if features and action != ACCEPT:
        raise InputError(f"{action} of some features", "leave the features out: it is for all")
    models.get_model(ctx, model)
    wanted = baseline_rows.selected(model, device_name=device, site=site, release=release)
    with ctx.store.read() as db:
        number = db.scalar(select(func.count()).select_from(drift_baseline).where(*wanted)) or 0
        releases = db.scalars(select(drift_baseline.c.release).distinct().where(*wanted)).all()
        known = [histograms.names_of(window_validation.references_of(db, r)) for r in releases]
    if not number:
        raise AbsentError(
            "baseline", device or site or model, f"list those that there are: "
            f"shoal drift list {model}",
        )  # fmt: skip
    for name in features:
        if not any(name in (*names, ROWS) for names in known):
            some = ", ".join([*known[0], ROWS][:20])
            raise AbsentError("feature", name, f"{releases[0]} has: {some}")
    values = {
        "action": action, "model": model, "release": release, "device": device, "site": site,
        "features": list(features), "asked_by": actor, "asked_at": ctx.clock(),
        "baselines": number, "after": [],
    }  # fmt: skip
    with ctx.store.write() as db:
        made = db.execute(baseline_change.insert().values(**values))
        ident = int(made.inserted_primary_key[0])  # type: ignore[index]
        what = {"device": device} if device else {"site": site} if site else {"all": True}
        audit.record(
            db, ctx, actor, f"drift.{action}", model, **what, release=release,
            features=list(features), baselines=number, change=ident,
        )  # fmt: skip
    return get(ctx, ident)


def get(ctx: Context, ident: int) -> BaselineChange:
    """One change; AbsentError."""
    with ctx.store.read() as db:
        row = db.execute(select(baseline_change).where(baseline_change.c.id == ident)).first()
    if row is None:
        raise AbsentError("change of baselines", ident, "list them: shoal drift changes")
    return BaselineChange.of_row(row)


def page(
    ctx: Context, *, model: str = "", cursor: str = "", limit: int = 50
) -> tuple[list[BaselineChange], Page]:
    """Changes, newest first; of a model, or of all. InputError for a limit or cursor."""
    limit = cursors.bounded(limit)
    query = select(baseline_change).order_by(baseline_change.c.id.desc())
    count = select(func.count()).select_from(baseline_change)
    if model:
        query = query.where(baseline_change.c.model == model)
        count = count.where(baseline_change.c.model == model)
    if cursor:
        query = query.where(baseline_change.c.id < cursors.decode(cursor, int)[0])
    with ctx.store.read() as db:
        rows = db.execute(query.limit(limit + 1)).all()
        total = db.scalar(count) or 0
    more = cursors.encode(rows[limit - 1].id) if len(rows) > limit else ""
    return [BaselineChange.of_row(row) for row in rows[:limit]], Page(next=more, total=total)
