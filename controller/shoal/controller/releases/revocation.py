"""Revocations as stored: which releases must never run again, and each model's security epoch.

rollouts.release_revocation revokes; shoal.epochs says what devices make of the epoch.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, exists, func, select

from shoal import manifest
from shoal.controller.store.tables import release, revocation
from shoal.epochs import FIRST

#: Release -> its row of the table.
Revoked = Mapping[str, Row[Any]]
#: Condition on a row of the table of releases.
IS_REVOKED = exists().where(
    revocation.c.model == release.c.model, revocation.c.version == release.c.version
)


def revoked_releases(db: Connection, model: str = "") -> Revoked:
    """Revoked releases of one model, or of all."""
    query = select(revocation)
    if model:
        query = query.where(revocation.c.model == model)
    return {f"{row.model}@{row.version}": row for row in db.execute(query)}


def why(db: Connection, ref: str) -> str:
    """Why the release, by name, may not be ordered: it was revoked; "" if it was not."""
    row = find(db, ref)
    return why_of(row) if row is not None else ""


def why_of(row: Row[Any]) -> str:
    """By whom a release was revoked, and why."""
    return f"revoked by {row.by}: {row.reason}"


def find(db: Connection, ref: str) -> Row[Any] | None:
    """The release's row; None if it was not revoked."""
    model, version = manifest.parse_release(ref)
    mine = (revocation.c.model == model) & (revocation.c.version == version)
    return db.execute(select(revocation).where(mine)).first()


def epochs(db: Connection) -> dict[str, int]:
    """Model -> its security epoch in signed metadata; models without a revocation are absent."""
    query = select(revocation.c.model, func.max(revocation.c.epoch)).group_by(revocation.c.model)
    return {model: int(epoch) for model, epoch in db.execute(query) if epoch > FIRST}


def epoch_of(db: Connection, model: str) -> int:
    """The security epoch that a release of the model is packed with now."""
    newest = select(func.max(revocation.c.epoch)).where(revocation.c.model == model)
    return max(FIRST, db.scalar(newest) or 0)
