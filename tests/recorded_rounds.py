"""Federated tasks with finished rounds, as the engine records them."""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import msgspec
import numpy as np
from onnx import ModelProto

from controllers import add_digits, make_context, reopened, run
from shoal.controller.federated.planning.plans import plan_of
from shoal.controller.federated.records import (
    AskedBudget,
    AskedLearning,
    AskedPace,
    AskedPrivacy,
    Participation,
    Prepared,
    TaskPlan,
)
from shoal.controller.federated.rounds import machine, rows
from shoal.controller.host.context import Context
from shoal.controller.releases import releases
from shoal.controller.releases.records import Release
from shoal.controller.store.tables import device, federated_round, federated_task, participation
from shoal.controller.training import training
from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import loss_graph, prepare, step_graph
from shoal.params import F32

DEVICES = {"press-1": "north", "press-2": "north", "mill-1": "south", "mill-2": "south"}
UPDATED, LOST, REFUSED = machine.Mark.UPDATED, machine.Mark.LOST, machine.Mark.REFUSED


def trained(folder: Path) -> Context:
    """A controller with lot-codes@1, trained on digits, and its capability key."""
    shutil.copytree(_template(), folder, dirs_exist_ok=True)
    return reopened(folder)


@functools.cache
def _template() -> Path:
    """The same, trained once in each process of tests."""
    folder = Path(tempfile.mkdtemp(prefix="shoal-trained-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ctx = make_context(folder)
    (folder / "keys").mkdir(exist_ok=True)
    (folder / "keys" / "capability.key").write_bytes(bytes(32))
    add_digits(ctx)
    run(ctx, training.start_training(ctx, actor="ana", model="lot-codes", dataset="stations"))
    ctx.store.close()
    return folder


def equip(ctx: Context, ref: str, away: Set[str] = frozenset()) -> None:
    """Publish a release of lot-codes; DEVICES serve it, and all but `away` are online."""
    releases.publish(ctx, actor="ana", ref=ref)
    with ctx.store.write() as db:
        for name, site in DEVICES.items():
            db.execute(
                device.insert().values(
                    name=name, site=site, line="", labels={}, ring="stable", facts={},
                    profile="x86-vnni", state="enrolled", online=name not in away,
                    releases={"lot-codes": ref}, variants={},
                )
            )  # fmt: skip


def prepared_of(ctx: Context, base: Release) -> tuple[Prepared, F32]:
    """Graphs and theta of a task that starts from this release."""
    manifest, _ = releases.manifest_of(ctx, base.ref)
    model = ModelProto.FromString(ctx.blobs.read(manifest.variant("fp32").file.sha256))
    made = prepare(model, Loss("cross-entropy"))
    files = {
        "graph": step_graph(made).SerializeToString(),
        "loss_graph": loss_graph(made).SerializeToString(),
        "inference": made.inference.SerializeToString(),
        "theta": made.theta.tobytes(),
    }
    kept = {name: ctx.blobs.put_bytes(data).sha256 for name, data in files.items()}
    return msgspec.convert(kept | {"size": made.theta.size}, Prepared), made.theta


def add_task(
    ctx: Context,
    name: str,
    release: str,
    prepared: Prepared,
    *,
    private: bool = False,
    candidate: int = 0,
    budget: float = 0,
) -> TaskPlan:
    """Add a ready task."""
    plan = TaskPlan(
        name=name, release=release, learning=AskedLearning(lr=0.1), candidate=candidate,
        pace=AskedPace(goal=3, least=2), settings={"most_examples": 1} if private else {},
        budget=AskedBudget(epsilon=budget, delta=1e-6) if budget else None,
        privacy=AskedPrivacy(where="central", clip=1.0, noise=1.0) if private else None,
    )  # fmt: skip
    with ctx.store.write() as db:
        db.execute(
            federated_task.insert().values(
                name=name, model=release.partition("@")[0], release=release, state=rows.READY,
                plan=msgspec.to_builtins(plan), prepared=msgspec.to_builtins(prepared), spent=[],
                created_at=ctx.clock(), created_by="ana", checkpoint=prepared.theta,
            )
        )  # fmt: skip
    return plan


def add_round(
    ctx: Context,
    plan: TaskPlan,
    number: int,
    theta: F32,
    *,
    parent: int | None = None,
    state: machine.State = machine.State.DONE,
    marks: Mapping[str, machine.Mark] | None = None,
    result: Mapping[str, object] | None = None,
    facts: Mapping[str, Mapping[str, object]] | None = None,
    carried: Mapping[str, machine.Origin] | None = None,
    late: int = 0,
    still: Set[str] = frozenset(),
    refusal: str = "busy",
    sites: Mapping[str, str] = DEVICES,
) -> str:
    """Add a round with checkpoint `theta` as the task's newest; return its id."""
    parent = number - 1 if parent is None else parent
    marks = marks or dict.fromkeys(DEVICES, UPDATED)
    attempt = number.to_bytes(16)
    asked = plan_of(plan, number=number, attempt=attempt, invited=4, now_s=ctx.clock())
    done = state is machine.State.DONE
    sha256 = ctx.blobs.put_bytes(theta.astype("<f4").tobytes()).sha256 if done else ""
    reasons = {
        n: refusal if m is REFUSED else "no-answer"
        for n, m in marks.items()
        if m in (REFUSED, LOST)
    }
    journal = machine.RoundRecord(
        task=plan.name, number=number, attempt=attempt, pace=plan.pace, state=state,
        marks=dict(marks), carried=dict(carried or {}), late=late,
        reasons=reasons | dict.fromkeys(still, machine.STILL_TRAINING),
    )  # fmt: skip
    ident = f"{plan.name}.{number}"
    with ctx.store.write() as db:
        task = rows.task_of(rows.task_row(db, plan.name))
        db.execute(
            federated_round.insert().values(
                id=ident, task=plan.name, number=number, attempt=1, state=state.value,
                journal=msgspec.to_builtins(journal), plan=msgspec.to_builtins(asked),
                parent=parent, theta=task.checkpoint, checkpoint=sha256,
                result=dict(result or {}), started_at=ctx.clock() - 60,
                ended_at=ctx.clock() if state in machine.ENDED else 0.0,
            )
        )  # fmt: skip
        parts = _participations(journal, ident, facts or {}, sites)
        db.execute(participation.insert(), [msgspec.to_builtins(one) for one in parts])
        if done:
            rows.set_task(
                db, ctx, plan.name, checkpoint=sha256, parent=number, rounds=task.rounds + 1
            )
    return ident


def walk(theta: F32, steps: int, seed: int = 0) -> Sequence[F32]:
    """Thetas close to each other, like those of successive rounds."""
    random = np.random.default_rng(seed)
    return [
        (theta + random.normal(size=theta.size) * 1e-3 * step).astype(np.float32)
        for step in range(1, steps + 1)
    ]


def _participations(
    journal: machine.RoundRecord,
    ident: str,
    facts: Mapping[str, Mapping[str, object]],
    sites: Mapping[str, str],
) -> list[Participation]:
    took_part = {"examples": 10, "chosen": True}
    return [
        Participation(
            round=ident, device=name, site=sites.get(name, "east"), task=journal.task,
            number=journal.number, mark=mark.value, reason=journal.reasons.get(name, ""),
            **(took_part | dict(facts.get(name, {})) if mark not in (REFUSED, LOST) else {}),  # type: ignore[arg-type]
        )
        for name, mark in journal.marks.items()
    ]  # fmt: skip
