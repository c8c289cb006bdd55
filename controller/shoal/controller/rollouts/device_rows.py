"""Devices of rollouts, and the counts of their stages: both change in one transaction, here alone.

What a stage's gate asks is a sum over its devices. It is kept per stage and state, so that an event
costs the same in a rollout of ten devices and of a hundred thousand.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, select, tuple_, update

from shoal.controller.host.context import Context
from shoal.controller.rollouts import device_states
from shoal.controller.rollouts.gate import Count
from shoal.controller.store.chunks import chunks
from shoal.controller.store.group_tables import trailing_stage
from shoal.controller.store.rollout_tables import rollout, rollout_count, rollout_device

#: Columns that change.
_COLUMNS = (
    "stage", "state", "attempt", "cause", "detail", "previous", "ordered_at", "boot", "seq",
    "facts", "updated_at",
)  # fmt: skip


class Change(NamedTuple):
    """New values of one row. row: as it was read, with all columns of rollout_device."""

    row: Row[Any]
    values: dict[str, Any]


def add(db: Connection, ctx: Context, ident: str, stages: Mapping[str, str]) -> None:
    """Add devices to a rollout. stages: device -> stage."""
    rows = [
        {
            "rollout": ident, "device": name, "stage": stage, "state": device_states.WAITING,
            "attempt": 0, "updated_at": ctx.clock(), "facts": {},
        }
        for name, stage in stages.items()
    ]  # fmt: skip
    if not rows:
        return
    db.execute(rollout_device.insert(), rows)
    stage_counts = Counter(stages.values())
    _add_counts(db, {(ident, s, device_states.WAITING): Count(n) for s, n in stage_counts.items()})


def change(db: Connection, ctx: Context, changes: Iterable[Change]) -> None:
    """Change rows, one change a row, and the counts of their stages."""
    rows, moved = [], defaultdict[tuple[str, str, str], Count](Count)
    for row, values in changes:
        after = {name: getattr(row, name) for name in _COLUMNS} | {"updated_at": ctx.clock()}
        after |= values
        rows.append({"of_rollout": row.rollout, "of_device": row.device, **after})
        old, new = (
            (row.rollout, row.stage, row.state),
            (row.rollout, after["stage"], after["state"]),
        )
        moved[old] = moved[old].plus(_count(row.facts), -1)
        moved[new] = moved[new].plus(_count(after["facts"]))
    if rows:
        db.execute(_UPDATE, rows)
        _add_counts(db, moved)


def unchanged(db: Connection, rows: Sequence[Row[Any]]) -> list[Row[Any]]:
    """Those of the rows, read in an earlier transaction, whose state and attempt are the same."""
    mine, kept = rollout_device.c, []
    for some in chunks(rows):
        keys = tuple_(mine.rollout, mine.device).in_([(row.rollout, row.device) for row in some])
        query = select(mine.rollout, mine.device, mine.state, mine.attempt).where(keys)
        now = {(r.rollout, r.device): (r.state, r.attempt) for r in db.execute(query)}
        kept += [r for r in some if now.get((r.rollout, r.device)) == (r.state, r.attempt)]
    return kept


def names_in(db: Connection, ident: str, names: Sequence[str]) -> set[str]:
    """Those of the devices that are in a rollout."""
    found: set[str] = set()
    mine = rollout_device.c
    for some in chunks(names):
        query = select(mine.device).where(mine.rollout == ident, mine.device.in_(some))
        found |= set(db.scalars(query))
    return found


def counts(db: Connection, ident: str) -> dict[str, dict[str, Count]]:
    """Stage -> state -> count; states without devices are absent."""
    return counts_of(db, [ident]).get(ident, defaultdict(dict))


def counts_of(
    db: Connection, idents: Sequence[str]
) -> dict[str, defaultdict[str, dict[str, Count]]]:
    """Rollout -> stage -> state -> count, of rollouts that have devices."""
    found: dict[str, defaultdict[str, dict[str, Count]]] = {}
    query = select(rollout_count).where(rollout_count.c.rollout.in_(idents))
    for row in db.execute(query.where(rollout_count.c.devices != 0)):
        count = Count(row.devices, row.comparing, row.compared, row.disagreed)
        found.setdefault(row.rollout, defaultdict(dict))[row.stage][row.state] = count
    return found


def wake(db: Connection, idents: Iterable[str]) -> None:
    """Have the stepper look at these rollouts, and at their trailing stages, at once."""
    these = sorted(idents)
    db.execute(update(rollout).where(rollout.c.id.in_(these)).values(due_at=0.0))
    trailing = update(trailing_stage).where(trailing_stage.c.rollout.in_(these))
    db.execute(trailing.values(due_at=0.0))


def _count(facts: Mapping[str, Any]) -> Count:
    """What one device with these facts adds."""
    compared = facts.get("compared", 0)
    if not compared:
        return Count(1)
    return Count(1, 1, compared, round(facts.get("disagree", 0.0) * compared))


def _add_counts(db: Connection, added: Mapping[tuple[str, str, str], Count]) -> None:
    table = rollout_count
    for (ident, stage, state), count in added.items():
        if not any(count):
            continue
        mine = (table.c.rollout == ident) & (table.c.stage == stage) & (table.c.state == state)
        more = {name: table.c[name] + value for name, value in count._asdict().items() if value}
        if not db.execute(update(table).where(mine).values(**more)).rowcount:
            key = {"rollout": ident, "stage": stage, "state": state}
            db.execute(table.insert().values(**key, **count._asdict()))


_UPDATE = update(rollout_device).where(
    rollout_device.c.rollout == bindparam("of_rollout"),
    rollout_device.c.device == bindparam("of_device"),
)
