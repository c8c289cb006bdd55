"""Version numbers of deleted releases and datasets, which are never used again."""

from sqlalchemy import Connection, select, update

from shoal.controller.store.tables import used_version


def use(db: Connection, kind: str, name: str, version: int) -> None:
    """Note that `version` of a "model" or "dataset" was used."""
    mine = (used_version.c.kind == kind) & (used_version.c.name == name)
    known = db.scalar(select(used_version.c.version).where(mine))
    if known is None:
        db.execute(used_version.insert().values(kind=kind, name=name, version=version))
    elif known < version:
        db.execute(update(used_version).where(mine).values(version=version))


def newest(db: Connection, kind: str, name: str) -> int:
    """The highest version that was used by something deleted; 0 for none."""
    mine = (used_version.c.kind == kind) & (used_version.c.name == name)
    return db.scalar(select(used_version.c.version).where(mine)) or 0
