"""A ready federated task, without preceding training."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import insert, update

from bench.releases import MODEL
from shoal.controller.federated.records import (
    AskedCompression,
    AskedLearning,
    AskedPace,
    Prepared,
    TaskPlan,
)
from shoal.controller.federated.rounds import rows
from shoal.controller.host.context import Context
from shoal.controller.store import tables
from shoal.federated.plan import Compression
from shoal.params import F32

TASK = "bench"


def add_task(
    ctx: Context,
    graph: bytes,
    theta: F32,
    devices: Sequence[str],
    strategy: str = "fedavg",
    compression: Compression = Compression(),  # noqa: B008 (immutable)
    features: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> TaskPlan:
    """All the devices take part in every round; nothing is evaluated."""
    plan = TaskPlan(
        name=TASK,
        release=f"{MODEL}@1",
        strategy=strategy,
        learning=AskedLearning(lr=0.05, epochs=1, batch=32),
        compression=AskedCompression(**msgspec.structs.asdict(compression)),
        pace=AskedPace(goal=len(devices), least=len(devices), over=1.0),
        evaluate=0,
    )
    kept = ctx.blobs.put_bytes(theta.astype("<f4").tobytes()).sha256
    prepared = Prepared(
        graph=ctx.blobs.put_bytes(graph).sha256,
        loss_graph="",
        inference="",
        theta=kept,
        size=theta.size,
        labels=list(labels),
        features=list(features),
    )
    row = {
        "name": TASK,
        "model": MODEL,
        "release": plan.release,
        "state": rows.READY,
        "plan": msgspec.to_builtins(plan),
        "prepared": msgspec.to_builtins(prepared),
        "spent": [],
        "created_at": ctx.clock(),
        "created_by": "bench",
        "checkpoint": kept,
    }
    with ctx.store.write() as db:
        db.execute(insert(tables.federated_task).values(**row))
    return plan


def set_online(ctx: Context) -> None:
    """Rows of devices that serve the model."""
    with ctx.store.write() as db:
        db.execute(
            update(tables.device).values(online=True, ring="stable", releases={MODEL: f"{MODEL}@1"})
        )
