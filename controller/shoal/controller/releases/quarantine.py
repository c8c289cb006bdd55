"""Releases that a poisoned round is in: nobody may publish them or roll them out.

It is looked up, not written on the release: a release that is being built while its round is
found to be poisoned is in quarantine the moment that it is there.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, select

from shoal import manifest
from shoal.controller.releases.records import Release
from shoal.controller.store.tables import device, federated_round, release
from shoal.errors import ConflictError

_HINT = "release an earlier checkpoint: shoal round release TASK --round N"


def why(db: Connection, origin: Mapping[str, Any] | None) -> str:
    """The first poisoned round that is in it, and why; "" when there is none.

    origin   releases.records.Origin as builtins; None for a release that no federated round
             made. What its task began with is looked at as well.
    """
    if origin is None:
        return ""
    poisoned = db.execute(
        select(federated_round.c.number, federated_round.c.poisoned)
        .where(
            federated_round.c.task == origin["task"],
            federated_round.c.number.in_(origin["rounds"]),
            federated_round.c.state == "DONE",
            federated_round.c.poisoned != "",
        )
        .order_by(federated_round.c.number)
    ).first()
    if poisoned:
        return f"round {poisoned.number} of {origin['task']} is poisoned: {poisoned.poisoned}"
    return why(db, origin_of(db, origin["release"]))


def names_task(reason: str, task: str) -> bool:
    """Whether a reason, as `why` gives it, is a round of this task.

    >>> names_task("round 2 of walk is poisoned: press-1 lied", "walk")
    True
    """
    return reason.partition(" is poisoned: ")[0].endswith(f" of {task}")


def origin_of(db: Connection, ref: str) -> dict[str, Any] | None:
    """Of the release "model@version", as builtins; None for one that rounds did not make."""
    if not ref:
        return None
    model, version = manifest.parse_release(ref)
    mine = (release.c.model == model) & (release.c.version == version)
    report = db.scalar(select(release.c.report).where(mine))
    return (report or {}).get("origin")


def check(found: Release) -> None:
    """ConflictError when it is in quarantine."""
    if found.quarantined:
        raise ConflictError(f"{found.ref} is in quarantine: {found.quarantined}", _HINT)


def check_release(db: Connection, ref: str) -> None:
    """As `check`, by name."""
    if reason := why_release(db, ref):
        raise ConflictError(f"{ref} is in quarantine: {reason}", _HINT)


def why_release(db: Connection, ref: str) -> str:
    """As `why`, by the release's name; "" for one that there is not."""
    return why(db, origin_of(db, ref))


def in_quarantine(db: Connection, model: str = "") -> dict[str, str]:
    """Release -> why, of those of one model or of all, oldest first."""
    query = select(release.c.model, release.c.version, release.c.report)
    if model:
        query = query.where(release.c.model == model)
    found = {
        f"{row.model}@{row.version}": why(db, row.report.get("origin"))
        for row in db.execute(query.order_by(release.c.model, release.c.version)).all()
    }
    return {ref: reason for ref, reason in found.items() if reason}


def serving(db: Connection, refs: Collection[str]) -> dict[str, list[str]]:
    """Release -> enrolled devices that serve it, by name; only releases that somebody serves."""
    found: dict[str, list[str]] = defaultdict(list)
    query = select(device.c.name, device.c.releases).where(device.c.state == "enrolled")
    for row in db.execute(query.order_by(device.c.name)):
        for ref in {*(row.releases or {}).values()} & {*refs}:
            found[ref].append(row.name)
    return dict(found)


def way_back(db: Connection, ref: str) -> str:
    """The release to put devices back onto: the newest before `ref` that is released and clean,
    else the newest other one, else "".
    """
    model, version = manifest.parse_release(ref)
    query = select(release.c.version).where(
        release.c.model == model, release.c.state == "released", release.c.version != version
    )
    others = sorted(db.scalars(query).all(), key=lambda one: (one > version, -one))
    return next((r for one in others if not why_release(db, r := f"{model}@{one}")), "")
