"""What the fleet consists of: the values that its devices' filters can take."""

from typing import NamedTuple

from sqlalchemy import Column, Connection, Text, cast, select

from shoal.controller.host.context import Context
from shoal.controller.store.tables import device, release

MOST = 200


class Facets(NamedTuple):
    """Each in order, at most MOST of them. releases: "model@version", newest first."""

    sites: list[str]
    profiles: list[str]
    releases: list[str]


def facets(ctx: Context) -> Facets:
    """Sites and profiles that some device has, and releases that a device could serve."""
    ref = release.c.model + "@" + cast(release.c.version, Text)
    newest = select(ref).order_by(release.c.created_at.desc()).limit(MOST)
    with ctx.store.read() as db:
        return Facets(
            _values(db, device.c.site), _values(db, device.c.profile), list(db.scalars(newest))
        )


def _values(db: Connection, column: Column[str]) -> list[str]:
    """Every value once, in order: grouping walks an index where there is one."""
    return list(db.scalars(select(column).where(column != "").group_by(column).limit(MOST)))
