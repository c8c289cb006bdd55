"""Quarantine: releases made from a poisoned round cannot be published or rolled out; nor can those
that were revoked, which no lifting brings back.

Computed, not stored with the release: a release that is being built while its round is marked as
poisoned is in quarantine from the start.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, select

from shoal import manifest
from shoal.controller.releases import revocation
from shoal.controller.releases.records import Release
from shoal.controller.store.tables import device, federated_round, release
from shoal.errors import ConflictError

_HINT = "release an earlier checkpoint: shoal round release TASK --round N"
_REVOKED = "a revocation is for good: publish another release of {}"


def why(db: Connection, origin: Mapping[str, Any] | None) -> str:
    """Why a release is in quarantine: its first poisoned round; "" if it is not.

    origin   releases.records.Origin as builtins; None for a release not made by federated
             rounds. The base release of its task is checked too.
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
    """Whether a reason, as returned by `why`, is a round of this task.

    >>> names_task("round 2 of walk is poisoned: press-1 cheated", "walk")
    True
    """
    return reason.partition(" is poisoned: ")[0].endswith(f" of {task}")


def origin_of(db: Connection, ref: str) -> dict[str, Any] | None:
    """Origin of the release "model@version", as builtins; None if not from federated rounds."""
    if not ref:
        return None
    model, version = manifest.parse_release(ref)
    mine = (release.c.model == model) & (release.c.version == version)
    report = db.scalar(select(release.c.report).where(mine))
    return (report or {}).get("origin")


def check(found: Release) -> None:
    """ConflictError if the release is in quarantine."""
    if found.revoked_at:
        raise ConflictError(f"{found.ref} was {found.quarantined}", _REVOKED.format(found.model))
    if found.quarantined:
        raise ConflictError(f"{found.ref} is in quarantine: {found.quarantined}", _HINT)


def check_release(db: Connection, ref: str) -> None:
    """ConflictError if the release, by name, is in quarantine or revoked."""
    if reason := revocation.why(db, ref):
        raise ConflictError(f"{ref} was {reason}", _REVOKED.format(ref.rpartition("@")[0]))
    if reason := why(db, origin_of(db, ref)):
        raise ConflictError(f"{ref} is in quarantine: {reason}", _HINT)


def why_release(db: Connection, ref: str) -> str:
    """Why the release, by name, may not be ordered: revoked, or in quarantine.

    "" if it may, or if there is none such.
    """
    return revocation.why(db, ref) or why(db, origin_of(db, ref))


def in_quarantine(db: Connection, model: str = "") -> dict[str, str]:
    """Releases of poisoned rounds, of one model or of all, oldest first -> why."""
    query = select(release.c.model, release.c.version, release.c.report)
    if model:
        query = query.where(release.c.model == model)
    found = {
        f"{row.model}@{row.version}": why(db, row.report.get("origin"))
        for row in db.execute(query.order_by(release.c.model, release.c.version)).all()
    }
    return {ref: reason for ref, reason in found.items() if reason}


def serving(db: Connection, refs: Collection[str]) -> dict[str, list[str]]:
    """Release -> enrolled devices that serve it, by name; only releases served anywhere."""
    found: dict[str, list[str]] = defaultdict(list)
    query = select(device.c.name, device.c.releases).where(device.c.state == "enrolled")
    for row in db.execute(query.order_by(device.c.name)):
        for ref in {*(row.releases or {}).values()} & {*refs}:
            found[ref].append(row.name)
    return dict(found)


def way_back(db: Connection, ref: str) -> str:
    """The release to roll back to: the newest before `ref` that is released, not quarantined and
    not retired, else the newest other one, else "".
    """
    model, version = manifest.parse_release(ref)
    query = select(release.c.version).where(
        release.c.model == model,
        release.c.state == "released",
        release.c.version != version,
        release.c.retired_at == 0,
    )
    others = sorted(db.scalars(query).all(), key=lambda one: (one > version, -one))
    return next((r for one in others if not why_release(db, r := f"{model}@{one}")), "")
