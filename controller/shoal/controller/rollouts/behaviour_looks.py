"""Looks of behaviour gates: what they read, and the records of what they found.

Reads sums of windows by hour, of a panel that is frozen when the stage begins: its size, not the
fleet's, is what a look costs. An hour is read again while windows may still come, then never.
"""

import hashlib
import importlib.metadata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import msgspec
from sqlalchemy import Connection, Row, select
from sqlalchemy.dialects.sqlite import insert

from shoal.controller.host.context import Context
from shoal.controller.rollouts import behaviour, device_states
from shoal.controller.rollouts.behaviour_records import (
    METRICS,
    Counts,
    Evidence,
    HourCounts,
    Panel,
    Receipt,
)
from shoal.controller.rollouts.receipts import KeptLook, ReceiptExport
from shoal.controller.rollouts.records import RolloutPlan, Stage
from shoal.controller.store import window_sums
from shoal.controller.store.chunks import chunks
from shoal.controller.store.rollout_tables import gate_input, gate_look, rollout_device
from shoal.controller.store.tables import device
from shoal.controller.store.window_sums import HOUR, DeviceHour
from shoal.controller.store.window_tables import window_subject

#: Seconds between two looks of a stage.
LOOK_S = 300.0
#: Devices of a panel at most: canaries, control.
CANARIES, CONTROL = 200, 400
#: Hours of the past that a device is compared with.
PAST_HOURS = 72
#: Hours that are read again: windows come late.
OPEN_HOURS = 2
#: A call is slow above this quantile of the device's own past, if that has so many calls.
SLOW_QUANTILE, SLOW_CALLS = 0.95, 100
_T = TypeVar("_T")


class Look(NamedTuple):
    """A new look. inputs: SHA-256 -> JSON, of those that are new."""

    rollout: str
    since: float
    evidence: Evidence
    receipt: Receipt
    inputs: Mapping[str, bytes]


def find(
    db: Connection, ctx: Context, whole: Row[Any], plan: RolloutPlan, stage: Stage
) -> Look | None:
    """A look at a running stage, if one is due; without the write lock."""
    now = ctx.clock()
    expired = bool(stage.analysing_at) and now > stage.analysing_at + plan.analyse_s
    last = _newest(db, whole.id, stage)
    if last is not None:
        decided = last.outcome != "WAIT"
        if decided or (now < last.at + LOOK_S and not expired):
            return None
    before = msgspec.convert(last.receipt, Receipt) if last is not None else None
    inputs: dict[str, bytes] = {}
    if before is None:
        panel = _new_panel(db, whole, stage)
        panel_hash = _add(inputs, panel)
    else:
        panel_hash = before.panel
        panel = _read(db, whole.id, [panel_hash], Panel)[0]
    kept = before.hours[:-OPEN_HOURS] if before is not None else []
    hours = _read(db, whole.id, kept, HourCounts)
    first = hours[-1].hour + HOUR if hours else int(stage.started_at // HOUR) * HOUR
    fresh = _hours(db, whole.model, panel, range(first, int(now) + 1, HOUR))
    receipt = Receipt(
        formula=behaviour.FORMULA,
        version=importlib.metadata.version("shoal"),
        gates=plan.gates,
        running=_running(db, whole.id, stage.name, panel),
        expired=expired,
        panel=panel_hash,
        hours=[*kept, *(_add(inputs, one) for one in fresh)],
    )
    evidence = behaviour.judge(
        stage.name, now, panel, [*hours, *fresh], plan.gates, running=receipt.running,
        expired=expired,
    )  # fmt: skip
    return Look(whole.id, stage.started_at, evidence, receipt, inputs)


def store(db: Connection, look: Look) -> None:
    """Store a look and its inputs."""
    found = look.evidence
    keys = {"rollout": look.rollout, "stage": found.stage, "since": look.since, "at": found.at}
    builtins = msgspec.to_builtins
    values = {"evidence": builtins(found), "receipt": builtins(look.receipt)}
    db.execute(
        insert(gate_look).values(**keys, outcome=found.outcome, **values).on_conflict_do_nothing()
    )
    rows = [
        {"rollout": look.rollout, "sha256": name, "at": found.at, "body": zlib.compress(body)}
        for name, body in look.inputs.items()
    ]
    if rows:
        db.execute(insert(gate_input).on_conflict_do_nothing(), rows)


def newest(db: Connection, rollout: str, stage: Stage) -> Evidence | None:
    """What the newest look of a stage found, since it began."""
    row = _newest(db, rollout, stage)
    return None if row is None else msgspec.convert(row.evidence, Evidence)


def evidence(db: Connection, rollout: str, stage: str, before: float, limit: int) -> list[Evidence]:
    """What the looks of a rollout, or of one stage, found before a time: newest first."""
    c = gate_look.c
    wanted = [c.rollout == rollout, c.at < before, *([c.stage == stage] if stage else [])]
    query = select(c.evidence).where(*wanted).order_by(c.at.desc(), c.stage).limit(limit)
    return [msgspec.convert(one, Evidence) for one in db.scalars(query)]


def export(db: Connection, rollout: str, release: str) -> ReceiptExport:
    """Receipts of a rollout with all their inputs."""
    c, given = gate_look.c, gate_input.c
    looks = select(c.evidence, c.receipt).where(c.rollout == rollout).order_by(c.at, c.stage)
    bodies = select(given.sha256, given.body).where(given.rollout == rollout)
    return ReceiptExport(
        rollout=rollout,
        release=release,
        looks=[
            KeptLook(
                evidence=msgspec.convert(row.evidence, Evidence),
                receipt=msgspec.convert(row.receipt, Receipt),
            )
            for row in db.execute(looks)
        ],
        inputs={row.sha256: zlib.decompress(row.body).decode() for row in db.execute(bodies)},
    )


def has_control(found: Evidence) -> bool:
    """Whether there are devices with another release to compare with."""
    return any(one.control.devices for one in found.metrics)


# --- reading ------------------------------------------------------------------------------------


def _newest(db: Connection, rollout: str, stage: Stage) -> Row[Any] | None:
    c = gate_look.c
    mine = (c.rollout == rollout) & (c.stage == stage.name) & (c.since == stage.started_at)
    return db.execute(select(gate_look).where(mine).order_by(c.at.desc()).limit(1)).first()


def _new_panel(db: Connection, whole: Row[Any], stage: Stage) -> Panel:
    """Devices of the stage, devices that run another release, and what they sent before."""
    first = int(stage.started_at // HOUR - PAST_HOURS) * HOUR
    mine = rollout_device.c
    begun = [one["name"] for one in whole.stages]
    begun = begun[: begun.index(stage.name) + 1]
    in_stage = (mine.rollout == whole.id) & (mine.stage == stage.name)
    query = select(mine.device).where(in_stage, mine.state.not_in(sorted(device_states.EXCLUDED)))
    canary = _draw(whole.id, db.scalars(query), CANARIES)
    serving = window_subject.c
    others = (
        select(serving.subject)
        .join(device, device.c.name == serving.subject)
        .where(
            serving.model == whole.model, serving.scope == "device", serving.start_at >= first,
            serving.release != whole.release, device.c.state == "enrolled",
            serving.subject.not_in(
                select(mine.device).where(mine.rollout == whole.id, mine.stage.in_(begun))
            ),
        )
    )  # fmt: skip
    control = _draw(whole.id, db.scalars(others), CONTROL)
    panel = Panel(
        release=whole.release, canary=canary, control=control, first_hour=first, hours=PAST_HOURS,
        slow_bin=[], past={},
    )  # fmt: skip
    return _with_past(db, whole.model, panel)


def _draw(rollout: str, names: Iterator[str], most: int) -> list[str]:
    """So many of the devices, by hash: the same in every process."""

    def place(name: str) -> bytes:
        return hashlib.sha256(f"{rollout}/{name}".encode()).digest()

    return sorted(names, key=place)[:most]


def _with_past(db: Connection, model: str, panel: Panel) -> Panel:
    names = [*panel.canary, *panel.control]
    place = {name: i for i, name in enumerate(names)}
    begins = range(panel.first_hour, panel.first_hour + panel.hours * HOUR, HOUR)
    rows = [
        row
        for some in chunks(names)
        for row in window_sums.of_devices(db, model, some, begins)
        if row.release != panel.release
    ]
    calls = [[0] * 96 for _ in names]
    for row in rows:
        mine = calls[place[row.device]]
        for i, count in enumerate(row.latency):
            mine[i] += count
    panel = msgspec.structs.replace(panel, slow_bin=[_slow_bin(counts) for counts in calls])
    size = len(names) * panel.hours
    past = {name: Counts(trials=[0] * size, events=[0] * size) for name in METRICS}
    for row in rows:
        hour = (row.at - panel.first_hour) // HOUR
        _count(past, place[row.device] * panel.hours + hour, row, panel.slow_bin[place[row.device]])
    return msgspec.structs.replace(panel, past=past)


def _slow_bin(counts: Sequence[int]) -> int:
    """The bin above which at most 5 % of calls are; -1 of too few calls."""
    total = sum(counts)
    if total < SLOW_CALLS:
        return -1
    return next(i for i, n in enumerate(accumulate(counts)) if n >= SLOW_QUANTILE * total)


def _hours(db: Connection, model: str, panel: Panel, begins: Sequence[int]) -> list[HourCounts]:
    """What the panel sent in each of these hours: canaries with the release, others without."""
    names = [*panel.canary, *panel.control]
    place = {name: i for i, name in enumerate(names)}
    size = len(names)
    found = {
        hour: {name: Counts(trials=[0] * size, events=[0] * size) for name in METRICS}
        for hour in begins
    }
    for some in chunks(names):
        for row in window_sums.of_devices(db, model, some, begins):
            i = place[row.device]
            if (row.release == panel.release) == (i < len(panel.canary)):
                _count(found[row.at], i, row, panel.slow_bin[i])
    return [HourCounts(hour=hour, counts=counts) for hour, counts in found.items()]


def _count(counts: Mapping[str, Counts], at: int, row: DeviceHour, slow_bin: int) -> None:
    """Add a device's hour to the counts of each metric."""
    added = {
        "errors": (row.rows, row.errors),
        "accuracy": (row.labelled, row.labelled - row.correct),
    }
    if slow_bin >= 0:
        added["latency"] = (sum(row.latency), sum(row.latency[slow_bin + 1 :]))
    for name, (trials, events) in added.items():
        counts[name].trials[at] += trials
        counts[name].events[at] += events


def _running(db: Connection, rollout: str, stage: str, panel: Panel) -> list[int]:
    """Indexes of the canaries that have finished and run the release."""
    mine = rollout_device.c
    found: set[str] = set()
    for some in chunks(panel.canary):
        query = select(mine.device).where(
            mine.rollout == rollout, mine.stage == stage, mine.device.in_(some),
            mine.state.in_(sorted(device_states.SUCCESSES)),
        )  # fmt: skip
        found |= set(db.scalars(query))
    return [i for i, name in enumerate(panel.canary) if name in found]


# --- inputs by content --------------------------------------------------------------------------


def _add(inputs: dict[str, bytes], one: Panel | HourCounts) -> str:
    body = msgspec.json.encode(one)
    name = hashlib.sha256(body).hexdigest()
    inputs[name] = body
    return name


def _read(db: Connection, rollout: str, names: Sequence[str], kind: type[_T]) -> list[_T]:
    """Inputs of a rollout by their hashes, in order."""
    c = gate_input.c
    bodies: dict[str, bytes] = {}
    for some in chunks(names):
        query = select(c.sha256, c.body).where(c.rollout == rollout, c.sha256.in_(some))
        bodies |= {row.sha256: row.body for row in db.execute(query)}
    return [msgspec.json.decode(zlib.decompress(bodies[name]), type=kind) for name in names]
