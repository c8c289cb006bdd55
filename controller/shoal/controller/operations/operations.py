"""Operations: long work, requested through the API and run in a subprocess, one at a time."""

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select, update

from shoal.controller.access import audit
from shoal.controller.host.context import Context
from shoal.controller.store import changes
from shoal.controller.store.paging import Orders, has_text, page_of
from shoal.controller.store.records import Page, Record
from shoal.controller.store.tables import operation
from shoal.errors import AbsentError, ConflictError, ShoalError

QUEUED, RUNNING, SUCCEEDED, FAILED = "queued", "running", "succeeded", "failed"
CANCELED = "canceled"
STATES = (QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELED)
ENDED = frozenset({SUCCEEDED, FAILED, CANCELED})
_ENDINGS = {SUCCEEDED: "has succeeded", FAILED: "has failed", CANCELED: "was canceled"}


class Operation(Record, frozen=True, kw_only=True):
    """An operation: "train", "import", "checkpoint" or "federate" (prepare a federated task).

    state     queued, running, succeeded, failed, canceled
    progress  0 to 1; step: the current one
    result    e.g. {"release": "lot-codes@2"}; error: why it failed, with the hint
    limit_s   seconds it may run before it is ended; 0 for no limit
    canceled_by  user that canceled it; a running one is killed shortly after
    position  in the queue: 1 for the next to run; 0 when it is not queued
    """

    id: str
    kind: str
    state: str
    progress: float
    step: str
    subject: str
    created_at: float
    created_by: str
    started_at: float = 0.0
    finished_at: float = 0.0
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    result: dict[str, Any] = msgspec.field(default_factory=dict)
    error: str = ""
    limit_s: float = 0.0
    canceled_by: str = ""
    position: int = 0


#: What libraries say when an allocation fails.
_NO_MEMORY = ("bad_alloc", "Failed to allocate memory", "Unable to allocate", "realloc of size")
#: Bytes of an operation's output that are shown, its end.
LOG_BYTES = 65_536
#: Order in which queued operations run.
_QUEUE = (operation.c.created_at, operation.c.id)
_ORDERS: Orders = {
    "created": (operation.c.created_at, operation.c.id),
    "finished": (operation.c.finished_at, operation.c.id),
    "subject": (operation.c.subject, operation.c.created_at, operation.c.id),
    "state": (operation.c.state, operation.c.created_at, operation.c.id),
}
#: Reports how far the work is, 0 to 1, and the current step.
Report = Callable[[float, str], None]
#: The work of one kind of operation; returns the operation's result.
Work = Callable[[Context, Operation, Report], dict[str, Any]]


def enqueue(
    ctx: Context, *, actor: str, kind: str, subject: str, params: dict[str, Any]
) -> Operation:
    """Queue an operation of `kind` on `subject`."""
    ident = f"op-{ctx.random.getrandbits(48):012x}"
    with ctx.store.write() as db:
        db.execute(
            operation.insert().values(
                id=ident, kind=kind, state=QUEUED, step="waiting", subject=subject,
                created_at=ctx.clock(), created_by=actor, params=params, result={},
                limit_s=ctx.settings.operations.limit_s,
            )
        )  # fmt: skip
        audit.record(db, ctx, actor, kind, subject, operation=ident, **params)
        changes.note(db, ctx, "operation", ident)
    return get_operation(ctx, ident)


def claim_next(ctx: Context) -> Operation | None:
    """Mark the oldest queued operation as running and return it; None if none is queued."""
    oldest = select(operation.c.id).where(operation.c.state == QUEUED)
    with ctx.store.write() as db:
        ident = db.scalar(oldest.order_by(*_QUEUE).limit(1))
        if ident is None:
            return None
        _set(db, ctx, ident, state=RUNNING, step="starting", started_at=ctx.clock())
    return get_operation(ctx, ident)


def run(ctx: Context, ident: str, kinds: Mapping[str, Work], memory_mb: int = 0) -> Operation:
    """Run a claimed operation to its end; an error fails the operation and is stored in it.

    kinds      operation kind -> its work
    memory_mb  that this process may take; 0 where it has no limit
    """
    one = get_operation(ctx, ident)
    try:
        result = kinds[one.kind](ctx, one, lambda share, step: progress(ctx, ident, share, step))
    except ShoalError as error:
        return finish(ctx, ident, error=_limit_met(ctx, error, memory_mb) or str(error))
    except Exception as error:
        if met := _limit_met(ctx, error, memory_mb):
            return finish(ctx, ident, error=met)
        finish(ctx, ident, error=f"{type(error).__name__}: {error!s:.500}")
        raise  # a bug: its traceback belongs in the operation's log
    return finish(ctx, ident, result=result)


def _limit_met(ctx: Context, error: Exception, memory_mb: int) -> str:
    """Which limit of the process an error comes from, and its setting; "" for none."""
    text = str(error)
    if memory_mb and (isinstance(error, MemoryError) or any(word in text for word in _NO_MEMORY)):
        return too_much_memory(memory_mb)
    if os.strerror(errno.EFBIG) in text:
        most = ctx.settings.operations.file_mb
        return (
            f"it wrote a file of more than {most} MB, the most that an operation may; raise "
            "file_mb under [operations] in controller.toml if that is right"
        )
    return ""


def too_much_memory(memory_mb: int) -> str:
    """Error of an operation that met its limit of memory."""
    return (
        f"it needed more than {memory_mb} MB of memory, the most that an operation may take; use a "
        "smaller model or dataset, or raise memory_mb under [operations] in controller.toml"
    )


def progress(ctx: Context, ident: str, fraction: float, step: str) -> None:
    """Report progress of a running operation: 0 to 1, and the current step."""
    with ctx.store.write() as db:
        _set(db, ctx, ident, progress=fraction, step=step)


def finish(
    ctx: Context, ident: str, result: dict[str, Any] | None = None, error: str = ""
) -> Operation:
    """End an operation: succeeded with `result`, or failed with `error`, which includes the hint.

    ConflictError if it has ended already.
    """
    with ctx.store.write() as db:
        state = db.scalar(select(operation.c.state).where(operation.c.id == ident))
        if state in ENDED:
            raise ConflictError(f"operation {ident} {_ENDINGS[state]} already")
        done = {"state": FAILED, "error": error} if error else {"state": SUCCEEDED, "progress": 1.0}
        _set(db, ctx, ident, finished_at=ctx.clock(), step="", result=result or {}, **done)
    return get_operation(ctx, ident)


def cancel(ctx: Context, *, actor: str, ident: str) -> Operation:
    """Cancel an operation. A queued one ends here; a running one is killed by the engine.

    Idempotent. AbsentError; ConflictError if it has ended already.
    """
    with ctx.store.write() as db:
        one = db.execute(select(operation).where(operation.c.id == ident)).first()
        if one is None:
            raise AbsentError("operation", ident)
        if one.state in ENDED:
            raise ConflictError(f"operation {ident} {_ENDINGS[one.state]} already")
        if not one.canceled_by:
            _set(db, ctx, ident, canceled_by=actor)
            audit.record(db, ctx, actor, f"{one.kind}.cancel", one.subject, operation=ident)
        if one.state == QUEUED:
            _cancel(db, ctx, ident, actor)
    return get_operation(ctx, ident)


def end_canceled(ctx: Context, ident: str) -> None:
    """End an operation that was canceled while it ran."""
    one = get_operation(ctx, ident)
    with ctx.store.write() as db:
        _cancel(db, ctx, ident, one.canceled_by)


def _cancel(db: Connection, ctx: Context, ident: str, actor: str) -> None:
    error = f"canceled by {actor}"
    _set(db, ctx, ident, state=CANCELED, step="", finished_at=ctx.clock(), error=error)


def get_operation(ctx: Context, ident: str) -> Operation:
    """One operation; AbsentError if there is none such."""
    with ctx.store.read() as db:
        row = db.execute(select(operation).where(operation.c.id == ident)).first()
        if row is None:
            raise AbsentError("operation", ident)
        [found] = _records(db, [row])
    return found


def log_path(ctx: Context, ident: str) -> Path:
    """Where the output of an operation's process goes."""
    return ctx.folder / "log" / f"{ident}.log"


def log_of(ctx: Context, ident: str) -> str:
    """The end of an operation's output, LOG_BYTES at most; "" where there is none (yet)."""
    path = log_path(ctx, get_operation(ctx, ident).id)
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            return file.read(LOG_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""


def list_operations(ctx: Context, *, state: str = "", limit: int = 100) -> list[Operation]:
    """Operations, newest first."""
    query = select(operation).order_by(operation.c.created_at.desc(), operation.c.id).limit(limit)
    if state:
        query = query.where(operation.c.state == state)
    with ctx.store.read() as db:
        return _records(db, db.execute(query).all())


def page(
    ctx: Context,
    *,
    state: str = "",
    kind: str = "",
    subject: str = "",
    q: str = "",
    sort: str = "-created",
    cursor: str = "",
    limit: int = 50,
) -> tuple[list[Operation], Page]:
    """Operations that match every given filter, newest first unless `sort` says otherwise.

    q   part of the id, the subject, the error or who asked for it
    Raises InputError for an unknown order, an invalid limit or cursor.
    """
    mine = operation.c
    given = {"state": state, "kind": kind, "subject": subject}
    wanted = [mine[name] == value for name, value in given.items() if value]
    wanted += has_text(q, mine.id, mine.subject, mine.error, mine.created_by)
    query = select(operation).where(*wanted)
    with ctx.store.read() as db:
        rows, made = page_of(db, query, _ORDERS, sort=sort, cursor=cursor, limit=limit)
        return _records(db, rows), made


def kinds(ctx: Context) -> list[str]:
    """Kinds of all operations, in order."""
    with ctx.store.read() as db:
        return list(db.scalars(select(operation.c.kind).distinct().order_by(operation.c.kind)))


def _records(db: Connection, rows: Sequence[Row[Any]]) -> list[Operation]:
    """Operations of rows, with their places in the queue."""
    places: dict[str, int] = {}
    if any(row.state == QUEUED for row in rows):
        queued = select(operation.c.id).where(operation.c.state == QUEUED).order_by(*_QUEUE)
        places = {ident: place for place, ident in enumerate(db.scalars(queued), 1)}
    return [Operation.of_row(row, position=places.get(row.id, 0)) for row in rows]


def _set(db: Connection, ctx: Context, ident: str, **values: Any) -> None:
    db.execute(update(operation).where(operation.c.id == ident).values(**values))
    changes.note(db, ctx, "operation", ident)
