"""Releases that a poisoned round is in: nobody may publish them or roll them out.

It is looked up, not written on the release: a release that is being built while its round is
found to be poisoned is in quarantine the moment that it is there.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select

from shoal import manifest
from shoal.controller.io.tables import federated_round, release
from shoal.controller.records import Release
from shoal.errors import ConflictError

_MEND = "release an earlier checkpoint: shoal round release TASK --round N"


def why(db: Connection, origin: Mapping[str, Any] | None) -> str:
    """The first poisoned round that is in it, and why; "" when there is none.

    origin   shoal.controller.origin.Origin as builtins; None for a release that no federated round
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
        raise ConflictError(f"{found.ref} is in quarantine: {found.quarantined}", _MEND)


def check_release(db: Connection, ref: str) -> None:
    """As `check`, by name."""
    if reason := why(db, origin_of(db, ref)):
        raise ConflictError(f"{ref} is in quarantine: {reason}", _MEND)
