"""CPU of a rollout on the controller: ordering, publishing, reports of devices, and doing nothing.

A controller's own database, keys and use cases in this process, without a broker: what a device
costs at ten thousand devices against what it costs at a hundred. The write lock is timed at every
transaction.
"""

import contextlib
import gc
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, insert, select, update

from bench import controllers
from bench.measuring import cpu_seconds
from bench.releases import MODEL, make_release, perceptron
from bench.report import Aim, Found, Row
from shoal import topics, wire
from shoal.controller.engine import BATCH
from shoal.controller.fleet import changed_devices
from shoal.controller.host.context import Context, Store
from shoal.controller.ingest.ingest import ingest
from shoal.controller.rollouts import assignments, convergence, rollouts, stepper
from shoal.controller.rollouts.machine import ENDED
from shoal.controller.rollouts.records import RolloutPlan, StagePlan
from shoal.controller.store import group_tables, rollout_tables, tables

SMALL, LARGE = 100, 10_000
#: States that a device reports in an update that succeeds.
STATES = (
    "QUEUED", "DOWNLOADING", "DOWNLOADED", "INSTALLING", "PROBING", "ACTIVATING", "OBSERVING",
    "COMMITTING", "SUCCEEDED",
)  # fmt: skip
_PROFILES = ("x86-avx2", "rpi4", "rpi5", "jetson-orin")
_IDLE = 20


class Measured(NamedTuple):
    """CPU seconds of each step over the fleet; locked_s: the longest write transaction.

    looked_s   all devices of the group that a rollout has moved are looked at, and have it
    joined_s   as many new devices enrol, are queued and ordered what their group runs
    """

    order_s: float
    events_s: float
    idle_s: float
    back_s: float
    locked_s: float
    looked_s: float
    joined_s: float


def run(*, quick: bool) -> Found:
    """A rollout of a hundred and of ten thousand devices, and back."""
    small, large = (20, 200) if quick else (SMALL, LARGE)
    few, many = _measure(small), _measure(large)
    what = f"{large} devices"
    return Found(
        rows=[
            _per_device(f"order and publish, {what}", "order_s", few, many, small, large, 0.3),
            _per_device(
                f"an update event, {what}", "events_s", few, many, small * 9, large * 9, 0.3
            ),
            _per_device(f"order to go back, {what}", "back_s", few, many, small, large, None),
            _per_device(
                f"look at a group that moved, {what}", "looked_s", few, many, small, large, 0.3
            ),
            _per_device(
                f"a device that joins later, {what}", "joined_s", few, many, small, large, 1.0
            ),
            _row(
                f"a step with nothing to do, {what}",
                "µs",
                many.idle_s * 1e6,
                few.idle_s * 1e6,
                small,
                None,
            ),
            _row(
                f"longest write lock, {what}",
                "ms",
                many.locked_s * 1e3,
                few.locked_s * 1e3,
                small,
                Aim(at_most=100.0),
            ),
        ]
    )


def _per_device(
    what: str, name: str, few: Measured, many: Measured, small: int, large: int, aim: float | None
) -> Row:
    ours, raw = getattr(many, name) / large * 1e3, getattr(few, name) / small * 1e3
    return _row(what, "ms", ours, raw, small, Aim(at_most=aim) if aim else None)


def _row(what: str, unit: str, ours: float, raw: float, small: int, aim: Aim | None) -> Row:
    return Row(
        what=what, unit=unit, ours=ours, against=f"{small} devices", raw=raw,
        ratio=ours / raw, over=ours - raw, aim=aim.text(unit) if aim else "",
        held=aim.holds(ours) if aim else None,
    )  # fmt: skip


def _measure(devices: int) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        ctx = controllers.make_controller(Path(folder) / "controller")
        releases = [make_release(perceptron(8), features=8, version=v) for v in (1, 2)]
        first, second = (controllers.add_release(ctx, release) for release in releases)
        names = [f"cam-{i:05}" for i in range(devices)]
        _add_devices(ctx, names, first)
        return _roll_out(ctx, names, second)


def _add_devices(ctx: Context, names: list[str], release: str) -> None:
    now = ctx.clock()
    rows = [
        {
            "name": name, "site": f"site-{i // 20:04}", "state": "enrolled", "enrolled_at": 1.0,
            "ring": "stable", "profile": _PROFILES[i % len(_PROFILES)], "labels": {},
            "releases": {MODEL: release} if release else {}, "variants": {MODEL: "fp32"},
            "online": True, "seen_at": now, "session": "s",
            "facts": {"peer": f"10.0.{i // 250}.{i % 250}:8555", "removes": True},
        }
        for i, name in enumerate(names)
    ]  # fmt: skip
    with ctx.store.write() as db:
        db.execute(insert(tables.device), rows)


def _roll_out(ctx: Context, names: list[str], release: str) -> Measured:
    held: list[float] = []
    setting_up, ctx = ctx, ctx._replace(store=_Timed(ctx.store, held))
    plan = RolloutPlan(release=release, stages=[StagePlan(name="all")])
    started: list[str] = []
    sent: list[assignments.Pending] = []

    def order() -> None:
        started.append(rollouts.start(ctx, actor="bench", plan=plan).id)
        _order(ctx, sent)

    order_s = cpu_seconds(order)
    idle = sorted(cpu_seconds(lambda: stepper.step_all(ctx)) for _ in range(_IDLE))
    seqs = dict.fromkeys(names, 0)
    events = [
        _event(ctx, seqs, one, state, release, started[0]) for state in STATES for one in sent
    ]
    gc.collect()
    gc.freeze()  # the garbage collector would look through this bench's own events
    events_s = cpu_seconds(lambda: _ingest(ctx, events))
    assert rollouts.get_rollout(ctx, started[0]).state in ENDED
    with setting_up.store.write() as db:
        db.execute(update(tables.device).values(releases={MODEL: release}))
    looked_s = cpu_seconds(lambda: _converge(ctx))
    _add_devices(setting_up, [f"new-{name}" for name in names], "")
    with setting_up.store.write() as db:
        new = [f"new-{name}" for name in names]
        changed_devices.add(db, new, changed_devices.ENROLLED)
    joined_s = cpu_seconds(lambda: _converge(ctx))
    _order(ctx, [])
    with setting_up.store.write() as db:
        mine = tables.device.c.name.startswith("new-")
        db.execute(update(tables.device).where(mine).values(state="decommissioned"))
    back = RolloutPlan(release=f"{MODEL}@1", stages=plan.stages)
    again = rollouts.start(ctx, actor="bench", plan=back).id
    _order(ctx, [])

    def go_back() -> None:
        rollouts.abort(ctx, actor="bench", id=again, rollback=True)
        _order(ctx, [])

    back_s = cpu_seconds(go_back)
    return Measured(order_s, events_s, idle[_IDLE // 2], back_s, max(held), looked_s, joined_s)


def _ingest(ctx: Context, events: list[tuple[str, bytes]]) -> None:
    for first in range(0, len(events), BATCH):
        ingest(ctx, events[first : first + BATCH])
        stepper.step_all(ctx)


def _converge(ctx: Context) -> None:
    """Look at changed devices, and order them, until both queues are empty."""
    while True:
        convergence.step_all(ctx)
        with ctx.store.read() as db:
            left = db.execute(select(group_tables.changed_device).limit(1)).first()
            left = left or db.execute(select(group_tables.device_sweep).limit(1)).first()
            waiting = rollout_tables.rollout_device.c.state == "WAITING"
            left = (
                left
                or db.execute(select(rollout_tables.rollout_device).where(waiting).limit(1)).first()
            )
        if left is None:
            return


def _order(ctx: Context, sent: list[assignments.Pending]) -> None:
    """Step and publish until no order is left to be made."""
    while True:
        stepper.step_all(ctx)
        waiting = assignments.pending(ctx)
        if not waiting:
            return
        assignments.mark_sent(ctx, waiting)
        sent += waiting


def _event(
    ctx: Context,
    seqs: dict[str, int],
    one: assignments.Pending,
    state: str,
    release: str,
    rollout: str,
) -> tuple[str, bytes]:
    seqs[one.device] += 1
    event = wire.UpdateEvent(
        device=one.device, boot="b", seq=seqs[one.device], sent_s=ctx.clock(), model=MODEL,
        release=release, rollout=rollout, attempt=1, state=state,
    )  # fmt: skip
    return topics.up(one.device, "event"), wire.encode(event)


class _Timed:
    """A store that notes how long each write transaction was held, in CPU seconds."""

    def __init__(self, store: Store, held: list[float]) -> None:
        self._store, self._held = store, held
        self.windows = store.windows

    def read(self) -> contextlib.AbstractContextManager[Connection]:
        return self._store.read()

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        with self._store.write() as db:
            begun = time.thread_time()
            yield db
        self._held.append(time.thread_time() - begun)

    def commits(self) -> object:
        return self._store.commits()

    def close(self) -> None:
        self._store.close()
