"""JSON values that the controller keeps by name: positions of its jobs, and what they did last."""

from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from shoal.controller.store.tables import setting


def read(db: Connection, name: str) -> Any:
    """The value that was written last, None for none."""
    return db.scalar(select(setting.c.value).where(setting.c.name == name))


def write(db: Connection, name: str, value: Any) -> None:
    """Keep a value in place of the one before."""
    row = insert(setting).values(name=name, value=value)
    db.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": value}))
