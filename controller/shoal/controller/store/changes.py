"""Change log in commit order: other processes read it for the console's live stream."""

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from shoal.controller.host.context import Context
from shoal.controller.store.tables import change

KINDS = frozenset(
    {
        "alert", "dataset", "device", "event", "group", "model", "operation", "release", "rollout",
        "round", "task", "window",
    }
)  # fmt: skip


class Change(NamedTuple):
    """id rises in commit order; kind is one of KINDS; subject: name or id of the changed object."""

    id: int
    at: float
    kind: str
    subject: str


def note(db: Connection, ctx: Context, kind: str, subject: str) -> None:
    """Log the change of one subject, in the transaction that makes it."""
    note_all(db, ctx, kind, [subject])


def note_all(db: Connection, ctx: Context, kind: str, subjects: Iterable[str]) -> None:
    """Log the change of several subjects, in order, in one statement."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of change {kind!r}")
    rows = [{"at": ctx.clock(), "kind": kind, "subject": subject} for subject in subjects]
    if rows:
        db.execute(change.insert(), rows)


def since(ctx: Context, after: int, limit: int = 500) -> list[Change]:
    """Changes with a higher id than `after`, oldest first."""
    query = select(change).where(change.c.id > after).order_by(change.c.id).limit(limit)
    with ctx.store.read() as db:
        return [Change(*row) for row in db.execute(query)]


def newest(ctx: Context) -> int:
    """Id of the last change, 0 when there was none."""
    with ctx.store.read() as db:
        return db.scalar(select(func.max(change.c.id))) or 0
