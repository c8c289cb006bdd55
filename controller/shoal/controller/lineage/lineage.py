"""The lineage of a thing, both ways: breadth first, a few queries for each step."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, case, func, select, true, tuple_

from shoal.controller.host.context import Context
from shoal.controller.lineage import links
from shoal.controller.lineage.records import (
    ALERT,
    DATASET,
    DEVICE,
    KINDS,
    MLFLOW,
    RELEASE,
    ROLLOUT,
    RUN,
    Lineage,
    Link,
    Thing,
)
from shoal.controller.store.mlflow_tables import mlflow_import
from shoal.controller.store.rollout_tables import rollout
from shoal.controller.store.tables import alert, dataset, device, operation, release
from shoal.errors import AbsentError, InputError

#: Things up, and things down, that are listed at most.
MOST = 300
_HELP = (
    "write it as dataset:NAME@N, mlflow:NAME/N, run:ID, release:NAME@N, rollout:ID, device:NAME or "
    "alert:ID"
)
Facts = Mapping[str, dict[str, Any]]


def lineage_of(ctx: Context, name: str) -> Lineage:
    """What a thing came from and what came of it.

    name  "kind:name", or a name alone where only one thing has it: of releases and datasets of the
          same name, the release
    InputError for an unknown kind, AbsentError for an unknown thing.
    """
    with ctx.store.read() as db:
        start = _find(db, name)
        up, links_up, more_up = _walk(db, start, links.UP, up=True)
        down, links_down, more_down = _walk(db, start, links.DOWN, up=False)
        sides = dict.fromkeys(down, "down") | dict.fromkeys(up, "up") | {start: ""}
        facts = _facts(db, [*sides])
        refs = [key.partition(":")[2] for key in sides if key.startswith(f"{RELEASE}:")]
        devices = _devices(db, refs)
    ordered = dict.fromkeys([start, *up, *down])
    found = {(one.source, one.to): one for one in links_up + links_down}
    return Lineage(
        thing=start,
        things=[_thing(key, sides[key], facts) for key in ordered],
        links=[*found.values()],
        devices=devices,
        truncated=more_up or more_down,
    )


def _walk(
    db: Connection, start: str, steps: Mapping[str, links.Step], *, up: bool
) -> tuple[list[str], list[Link], bool]:
    """Things reached from `start`, the nearest first; their links; whether there are more."""
    seen: dict[str, None] = {start: None}
    found: list[Link] = []
    frontier = [start]
    while frontier:
        reached: list[str] = []
        for kind, step in steps.items():
            names = [key.partition(":")[2] for key in frontier if key.startswith(f"{kind}:")]
            for one in step(db, names) if names else ():
                other = one.source if up else one.to
                if other not in seen:
                    if len(seen) > MOST:
                        return [*seen][1:], found, True
                    seen[other] = None
                    reached.append(other)
                found.append(one)
        frontier = reached
    return [*seen][1:], found, False


def _find(db: Connection, name: str) -> str:
    """The thing that a person means, as "kind:name"."""
    kind, sign, rest = name.partition(":")
    if sign:
        if kind not in KINDS:
            raise InputError(f"no kind of thing {kind[:40]!r}", _HELP)
        if kind == ALERT and not _is_number(rest):
            raise AbsentError(kind, rest, "list them: shoal alert list")
        wanted = [kind]
    else:
        rest = name
        wanted = [RELEASE, DATASET] if "@" in name else [RUN, ROLLOUT, DEVICE]
        wanted = [ALERT] if _is_number(name) else wanted
    for one in wanted:
        if f"{one}:{rest}" in _facts(db, [f"{one}:{rest}"]):
            return f"{one}:{rest}"
    raise AbsentError(" or ".join(wanted), rest, _HELP)


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 18


def _facts(db: Connection, keys: list[str]) -> Facts:
    """Fields of records.Thing of those that exist: a query for each kind."""
    names: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for key in keys:
        kind, _, name = key.partition(":")
        names[kind].append(name)
    found: dict[str, dict[str, Any]] = {}
    pair = tuple_(dataset.c.name, dataset.c.version).in_(links.keys_of(names[DATASET]))
    columns: tuple[Any, ...] = (
        dataset.c.name, dataset.c.version, dataset.c.rows, dataset.c.kind, dataset.c.created_at,
    )  # fmt: skip
    for row in db.execute(select(*columns).where(pair)) if names[DATASET] else ():
        what = f"{row.rows} rows" if row.kind == "table" else f"{row.rows} {row.kind}"
        found[f"{DATASET}:{row.name}@{row.version}"] = {"state": what, "at": row.created_at}
    by_name = mlflow_import.c.name.in_(names[MLFLOW])
    joined = mlflow_import.join(operation, operation.c.id == mlflow_import.c.operation)
    source = operation.c.params["source"]
    columns = (mlflow_import.c.name, source["run"].as_string().label("run"), operation.c.created_at)
    for row in (
        db.execute(select(*columns).select_from(joined).where(by_name)) if names[MLFLOW] else ()
    ):
        detail = f"run {row.run} in MLflow" if row.run else ""
        key = f"{MLFLOW}:{row.name}"
        found[key] = {"state": "registered", "at": row.created_at, "detail": detail}
    mine = operation.c.id.in_(names[RUN])
    columns = (operation.c.id, operation.c.kind, operation.c.state, operation.c.created_at)
    for row in db.execute(select(*columns, operation.c.subject).where(mine)) if names[RUN] else ():
        detail = f"{row.kind} {row.subject}"
        found[f"{RUN}:{row.id}"] = {"state": row.state, "at": row.created_at, "detail": detail}
    pair = tuple_(release.c.model, release.c.version).in_(links.keys_of(names[RELEASE]))
    judged = (release.c.state == "refused") | (release.c.override != "")  # others have no reason
    why = case((judged, release.c.report["why_refused"].as_string()), else_="")
    columns = (release.c.model, release.c.version, release.c.state, release.c.created_at)
    for row in db.execute(select(*columns, why.label("why")).where(pair)) if names[RELEASE] else ():
        detail = f"refused by a gate: {row.why}" if row.why else "passed its gates"
        key = f"{RELEASE}:{row.model}@{row.version}"
        found[key] = {"state": row.state, "at": row.created_at, "detail": detail}
    mine = rollout.c.id.in_(names[ROLLOUT])
    columns = (rollout.c.id, rollout.c.state, rollout.c.created_at, rollout.c.reason)
    for row in db.execute(select(*columns).where(mine)) if names[ROLLOUT] else ():
        key = f"{ROLLOUT}:{row.id}"
        found[key] = {"state": row.state, "at": row.created_at, "detail": row.reason}
    mine = device.c.name.in_(names[DEVICE])
    columns = (device.c.name, device.c.state, device.c.enrolled_at, device.c.site)
    for row in db.execute(select(*columns).where(mine)) if names[DEVICE] else ():
        key = f"{DEVICE}:{row.name}"
        found[key] = {"state": row.state, "at": row.enrolled_at, "detail": f"site {row.site}"}
    mine = alert.c.id.in_([int(name) for name in names[ALERT]])
    columns = (alert.c.id, alert.c.state, alert.c.opened_at, alert.c.title)
    for row in db.execute(select(*columns).where(mine)) if names[ALERT] else ():
        key = f"{ALERT}:{row.id}"
        found[key] = {"state": row.state, "at": row.opened_at, "detail": row.title}
    return found


def _devices(db: Connection, refs: list[str]) -> dict[str, int]:
    """Release -> number of devices that serve it now."""
    each = func.json_each(device.c.releases).table_valued("value")
    joined = select(each.c.value, func.count()).select_from(device.join(each, true()))
    query = joined.where(each.c.value.in_(refs)).group_by(each.c.value)
    return {row[0]: row[1] for row in db.execute(query)} if refs else {}


def _thing(key: str, side: str, facts: Facts) -> Thing:
    kind, _, name = key.partition(":")
    known = facts.get(key)
    return Thing(kind=kind, name=name, side=side, gone=known is None, **(known or {}))
