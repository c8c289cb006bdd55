"""What devices are to run, for many at once: their rows, orders and places in rollouts are read
together, and each device and model is decided on by desired_state."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, func, select

from shoal.controller.fleet import changed_devices
from shoal.controller.host.context import Context
from shoal.controller.releases import quarantine, retirement, revocation
from shoal.controller.rollouts import (
    assignments,
    cohort,
    device_states,
    group_releases,
    group_selection,
    overrides,
    trailing,
)
from shoal.controller.rollouts.cohort import candidate
from shoal.controller.rollouts.desired_state import Decision, Desired, Known, Place, decide
from shoal.controller.rollouts.group_records import Override
from shoal.controller.rollouts.group_selection import Runs
from shoal.controller.rollouts.machine import ENDED
from shoal.controller.rollouts.records import RolloutPlan, Stage
from shoal.controller.store.chunks import chunks
from shoal.controller.store.group_tables import deviation
from shoal.controller.store.rollout_tables import (
    assignment,
    rollout,
    rollout_device,
    undeployment,
)
from shoal.controller.store.tables import device, device_event
from shoal.errors import AbsentError, ConflictError
from shoal.orders import Order

_ENDED = [state.value for state in ENDED]


class Looked(NamedTuple):
    """One device and one model, decided on.

    row      of the device; by: what its group runs; None without a group
    place    its row in the rollout that moved its group; active: in an unfinished one
    """

    row: Row[Any]
    model: str
    by: Runs | None
    desired: Desired
    known: Known
    decision: Decision
    place: Row[Any] | None
    active: Row[Any] | None


def look(
    db: Connection, ctx: Context, names: Sequence[str], why: Mapping[str, set[str]]
) -> list[Looked]:
    """Decide on every model of these devices. why: device -> reasons of changed_devices."""
    return list(_Look(db, ctx, names).decisions(why))


class _Look:
    """What is known of some devices, read in one transaction."""

    def __init__(self, db: Connection, ctx: Context, names: Sequence[str]) -> None:
        self._db, self._now = db, ctx.clock()
        self._runs = group_releases.runs(db)
        self._rows = _devices(db, names)
        self._orders = _orders(db, names)
        self._overrides = overrides.overrides_of(db, names)
        self._listed = _listed(db, names)
        self._active = _unfinished(db)
        idents = {one.rollout for one in self._runs} | set(self._active.values())
        self._places = _places(db, idents, names)
        self._paused = trailing.reasons(db)
        self._missing = cache(self._why_missing)
        self._ended = cache(self._ended_rollout)
        self._revoked = revocation.revoked_releases(db)
        self._quarantined = cache(lambda ref: quarantine.why_release(db, ref))

    def decisions(self, why: Mapping[str, set[str]]) -> Iterable[Looked]:
        for name, row in self._rows.items():
            mine = self._overrides.get(name, [])
            runs: dict[str, Runs] = {}
            if row.state == "enrolled":
                runs = group_selection.deciding(self._runs, candidate(row))
            else:
                mine = []
            models = {*runs, *(o.model for o in mine if o.kind == overrides.PIN)}
            for model in sorted(models | self._listed.get(name, set())):
                yield self._decided(row, model, runs.get(model), mine, why.get(name, set()))

    def _decided(
        self, row: Row[Any], model: str, by: Runs | None, mine: list[Override], why: set[str]
    ) -> Looked:
        active_in = self._active.get(model, "")
        active = self._places.get((active_in, row.name)) if active_in else None
        place = self._places.get((by.rollout, row.name)) if by else None
        desired = self._desired(by, model, mine, active_in)
        serves = (row.releases or {}).get(model, "")
        order = self._order(row.name, model)
        known = Known(
            online=bool(row.online),
            heard=bool(why & changed_devices.HEARD),
            fresh=bool(why & changed_devices.FRESH),
            decided=changed_devices.DECIDED in why,
            serves=serves,
            order=order,
            place=_place(place, row),
            active=_place(active, row),
            pinned=self._pin_state(row.name, order) if desired.pin else None,
            paused=self._paused.get(by.rollout, "") if by else "",
        )
        if by is not None and serves != by.release:
            known = known._replace(keeps=self._keeps(row, serves, order, by))
        decision = decide(known, desired, self._now)
        return Looked(row, model, by, desired, known, decision, place, active)

    def _desired(
        self, by: Runs | None, model: str, mine: list[Override], active_in: str
    ) -> Desired:
        pin = next((o.release for o in mine if (o.kind, o.model) == (overrides.PIN, model)), "")
        of_group: dict[str, Any] = {
            "release": by.release, "group": by.group, "rollout": by.rollout,
            "moving": by.rollout == active_in,
            "missing": self._missing(by.release) if by.release else "",
        } if by else {}  # fmt: skip
        return Desired(
            **of_group,
            pin=pin,
            pin_missing=self._missing(pin) if pin else "",
            held=next((o.reason for o in mine if o.kind == overrides.HOLD), None),
            excluded=next(
                (o.reason for o in mine if (o.kind, o.model) == (overrides.EXCLUDE, model)), None
            ),
        )

    def _why_missing(self, ref: str) -> str:
        try:
            assignments.role_of(self._db, ref)
            retirement.check_release(self._db, ref)
        except (AbsentError, ConflictError) as error:
            return str(error)
        return ""

    def _keeps(self, row: Row[Any], serves: str, order: Order | None, by: Runs) -> str:
        """Why a device is left what it serves, although its group runs another release."""
        if serves and serves in self._revoked:
            return ""
        if serves and (why := self._quarantined(serves)):
            return f"{serves} is in quarantine ({why}): put it back by a rollout of {by.release}"
        if order is None or order.rollout == by.rollout:
            return ""
        ended = self._ended(order.rollout)
        if ended is None or order.release != serves:
            return ""
        if ended.at < by.since or (ended.at == by.since and not order.removes):
            return ""  # an undeployment starts after every rollout has ended: at a tie it is later
        if order.removes:
            return f"{by.model} was removed by {order.rollout}"
        whose = candidate(row)
        if any(cohort.fits(one, whose) for one in ended.moved):
            return ""
        return f"{order.rollout}, which {ended.how}, left it {serves}"

    def _ended_rollout(self, ident: str) -> "_Ended | None":
        made = select(undeployment.c.created_at).where(undeployment.c.id == ident)
        if (at := self._db.scalar(made)) is not None:
            return _Ended(float(at), "", [])
        row = self._db.execute(select(rollout).where(rollout.c.id == ident)).first()
        if row is None or row.state not in _ENDED:
            return None
        plan = msgspec.convert(row.plan, RolloutPlan)
        stages = msgspec.convert(row.stages, list[Stage])
        names = [one.name for one in stages if one.state == "SUCCESSFUL"]
        moved = group_selection.moved(plan.stages, names) if row.state != "ROLLED_BACK" else []
        how = "was stopped" if row.state == "STOPPED" else f"is {row.state}"
        return _Ended(float(row.finished_at), how, moved)

    def _order(self, name: str, model: str) -> Order | None:
        stored = self._orders.get(name, {}).get(model)
        return msgspec.convert(stored, Order) if stored else None

    def _pin_state(self, name: str, order: Order | None) -> Place | None:
        """The last report of a device about its pin's order; ASSIGNED without one."""
        if order is None:
            return None
        mine = device_event.c
        query = select(mine.state, mine.cause, mine.detail).where(
            mine.device == name, mine.kind == "update", mine.rollout == order.rollout,
            mine.attempt == order.attempt,
        )  # fmt: skip
        last = self._db.execute(query.order_by(mine.received_at.desc(), mine.seq.desc())).first()
        state, cause, detail = last or (device_states.ASSIGNED, "", "")
        return Place("", state, order.attempt, cause, detail, order.attempt, replaced=False)


class _Ended(NamedTuple):
    """A rollout or undeployment that has ended. moved: selectors whose groups it moved."""

    at: float
    how: str
    moved: list[Any]


def _place(row: Row[Any] | None, of: Row[Any]) -> Place | None:
    if row is None:
        return None
    return Place(
        stage=row.stage, state=row.state, attempt=row.attempt, cause=row.cause, detail=row.detail,
        tries=int((row.facts or {}).get("tries", 0)), replaced=of.enrolled_at > row.updated_at,
        rollout=row.rollout,
    )  # fmt: skip


def _devices(db: Connection, names: Sequence[str]) -> dict[str, Any]:
    columns = (
        device.c.name, device.c.site, device.c.line, device.c.labels, device.c.ring,
        device.c.profile, device.c.state, device.c.online, device.c.enrolled_at,
        device.c.releases,
    )  # fmt: skip
    found = {}
    for some in chunks(names):
        for row in db.execute(select(*columns).where(device.c.name.in_(some))):
            found[row.name] = row
    return found


def _orders(db: Connection, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for some in chunks(names):
        query = select(assignment.c.device, assignment.c.orders)
        for row in db.execute(query.where(assignment.c.device.in_(some))):
            found[row.device] = row.orders
    return found


def _listed(db: Connection, names: Sequence[str]) -> dict[str, set[str]]:
    """Device -> models of its deviations."""
    found: dict[str, set[str]] = defaultdict(set)
    for some in chunks(names):
        query = select(deviation.c.device, deviation.c.model)
        for row in db.execute(query.where(deviation.c.device.in_(some))):
            found[row.device].add(row.model)
    return found


def _unfinished(db: Connection) -> dict[str, str]:
    """Model -> its rollout that has not ended."""
    query = select(rollout.c.model, rollout.c.id).where(rollout.c.state.not_in(_ENDED))
    return dict(db.execute(query).all())


def _places(
    db: Connection, idents: Iterable[str], names: Sequence[str]
) -> dict[tuple[str, str], Row[Any]]:
    """(rollout, device) -> its row."""
    mine = rollout_device.c
    found: dict[tuple[str, str], Row[Any]] = {}
    for ident in sorted({*idents}):
        for some in chunks(names):
            query = select(rollout_device).where(mine.rollout == ident, mine.device.in_(some))
            found |= {(ident, row.device): row for row in db.execute(query)}
    return found


def deviating(db: Connection) -> dict[tuple[str, str], int]:
    """(group, model) -> devices that deviate."""
    mine = deviation.c
    query = select(mine.group, mine.model, func.count()).group_by(mine.group, mine.model)
    return {(group, model): number for group, model, number in db.execute(query)}
