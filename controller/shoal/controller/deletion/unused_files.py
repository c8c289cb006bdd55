"""Files of deleted releases and datasets: freed once nothing else refers to them.

A few at a time, and only while no operation is queued or running, since one may be about to refer
to a file again. A file that was stored again meanwhile is left alone.
"""

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, func, select

from shoal.controller.host.context import Context
from shoal.controller.operations import operations
from shoal.controller.store.tables import (
    dataset,
    federated_round,
    federated_task,
    operation,
    release,
    unused_file,
)
from shoal.errors import AbsentError

_log = logging.getLogger(__name__)
#: Files freed in one transaction; seconds from deletion until a file is freed.
AT_ONCE, PATIENCE_S = 20, 60.0
_SHA256 = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_OF_ROUNDS = (
    federated_round.c.theta, federated_round.c.old_memory, federated_round.c.checkpoint,
    federated_round.c.memory,
)  # fmt: skip


def of_release(manifest: bytes, params: Mapping[str, Any]) -> set[str]:
    """SHA-256 of a release's files: its manifest, those named in it, and those of its operation."""
    fields = ("onnx", "variants", "sample", "steps", "data", "script")
    uploaded = {name: params.get(name) for name in fields}
    named = _named(manifest) | _named(msgspec.json.encode(uploaded))
    return named | {hashlib.sha256(manifest).hexdigest()}


def leave(db: Connection, ctx: Context, files: Iterable[str]) -> None:
    """Note files that may be unused from now on."""
    known = set(db.scalars(select(unused_file.c.sha256)))
    rows = [
        {"sha256": one, "written_at": _written_at(ctx, one), "at": ctx.clock()}
        for one in sorted({*files} - known)
        if ctx.blobs.exists(one)
    ]
    if rows:
        db.execute(unused_file.insert(), rows)


def free(ctx: Context) -> int:
    """Delete some files that nothing refers to, and the deltas from and to them; how many."""
    old = unused_file.c.at <= ctx.clock() - PATIENCE_S
    with ctx.store.read() as db:
        some = db.execute(select(unused_file).where(old).limit(AT_ONCE)).all()
        if not some or _busy(db):
            return 0
        before, needed = _stamp(db), _referenced(db)
    with ctx.store.write() as db:  # nothing new refers to them meanwhile
        if _busy(db) or _stamp(db) != before:
            return 0
        names = [row.sha256 for row in some]
        gone = [
            row.sha256
            for row in some
            if row.sha256 not in needed and _written_at(ctx, row.sha256) == row.written_at
        ]
        for sha256 in gone:
            ctx.blobs.remove(sha256)
            _remove_deltas(ctx, sha256)
        db.execute(delete(unused_file).where(unused_file.c.sha256.in_(names)))
    _log.info("%d files of deleted releases and datasets are freed", len(gone))
    return len(gone)


def _busy(db: Connection) -> bool:
    unfinished = select(operation.c.id).where(operation.c.state.not_in(operations.ENDED))
    return db.scalar(unfinished.limit(1)) is not None


def _stamp(db: Connection) -> tuple[Any, ...]:
    """Changes when a row is added that may refer to a file."""
    columns = (release.c.created_at, dataset.c.created_at, federated_task.c.created_at)
    found: list[Any] = [db.execute(select(func.max(one), func.count(one))).one() for one in columns]
    return (*found, db.scalar(select(func.max(federated_round.c.started_at))))


def _referenced(db: Connection) -> set[str]:
    tables = set(db.scalars(select(dataset.c.sha256).where(dataset.c.erased_at == 0)))
    erased = set(db.scalars(select(dataset.c.sha256).where(dataset.c.erased_at > 0))) - tables
    found = {*tables}
    for data in db.scalars(select(release.c.manifest)):
        found |= _named(bytes(data)) | {hashlib.sha256(data).hexdigest()}
    script = operation.c.params["script"].as_string()  # retraining runs it again
    made_by = release.c.operation == operation.c.id
    found |= set(db.scalars(select(script).join(release, made_by).where(script.is_not(None))))
    for row in db.execute(
        select(federated_task.c.checkpoint, federated_task.c.memory, federated_task.c.prepared)
    ):
        found |= {row.checkpoint, row.memory} | _named(msgspec.json.encode(row.prepared))
    for files in db.execute(select(*_OF_ROUNDS)).all():
        found |= {*files}
    return found - erased  # which manifests of releases still name


def _named(data: bytes) -> set[str]:
    return {match.decode() for match in _SHA256.findall(data)}


def _written_at(ctx: Context, sha256: str) -> float:
    try:
        return ctx.blobs.path(sha256).stat().st_mtime
    except (AbsentError, FileNotFoundError):
        return 0.0


def _remove_deltas(ctx: Context, sha256: str) -> None:
    folder = ctx.folder / "deltas"
    for path in (*folder.glob(f"{sha256}-*"), *folder.glob(f"*-{sha256}")):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
