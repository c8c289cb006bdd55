"""Devices of a stage, as the gate and the stepper ask for them, by query."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, or_, select

from shoal.controller.rollouts import device_states, gate
from shoal.controller.rollouts.gate import Failure
from shoal.controller.store.rollout_tables import rollout_device
from shoal.controller.store.tables import device

_mine = rollout_device.c
_LEFT = _mine.state.not_in(sorted(device_states.ENDED))


class StageMembers:
    """The devices of one stage. since: when it began, Unix seconds."""

    def __init__(self, db: Connection, rollout: str, stage: str, since: float) -> None:
        self._db = db
        self._in_stage = (_mine.rollout == rollout) & (_mine.stage == stage)
        self._seen = device.c.seen_at >= since

    def is_awaited(self) -> bool:
        """See gate.Members."""
        waiting = self._names(_mine.state == device_states.WAITING, limit=1)
        reachable = or_(device.c.online, self._seen)
        query = _joined(select(_mine.device)).where(self._in_stage, _LEFT, reachable).limit(1)
        return bool(waiting) or self._db.execute(query).first() is not None

    def unseen(self) -> tuple[int, Sequence[str]]:
        """See gate.Members."""
        wanted = (self._in_stage, _LEFT, ~self._seen)
        number = self._db.scalar(_joined(select(func.count())).where(*wanted)) or 0
        query = _joined(select(_mine.device)).where(*wanted).order_by(_mine.device)
        return number, list(self._db.scalars(query.limit(gate.NAMED)))

    def failures(self) -> list[Failure]:
        """See gate.Members."""
        failed = _mine.state.in_(sorted(device_states.FAILURES))
        query = (
            select(_mine.cause, _mine.state, func.count(), func.min(_mine.device))
            .where(self._in_stage, failed)
            .group_by(_mine.cause, _mine.state)
        )
        found = []
        for cause, state, number, first in self._db.execute(query).all():
            same = (_mine.cause == cause) & (_mine.state == state)
            detail = self._db.scalar(
                select(_mine.detail).where(self._in_stage, _mine.device == first)
            )
            names = self._names(same)
            found.append(Failure(cause or state.lower(), number, names, detail or ""))
        return found

    def most_disagreeing(self) -> tuple[str, float]:
        """See gate.Members."""
        disagree = _mine.facts["disagree"].as_float()
        query = select(_mine.device, disagree).where(self._in_stage, disagree.is_not(None))
        row = self._db.execute(query.order_by(disagree.desc(), _mine.device)).first()
        return (row[0], row[1]) if row else ("", 0.0)

    def first(self) -> tuple[str, str]:
        """See gate.Members."""
        query = select(_mine.device, _mine.detail).where(self._in_stage).order_by(_mine.device)
        row = self._db.execute(query.limit(1)).first()
        return (row.device, row.detail) if row else ("", "")

    def late(self, ordered_before: float, limit: int) -> list[Row[Any]]:
        """Devices in progress that were ordered before then and have reported since the stage
        began, or that were decommissioned.

        Rows of rollout_device; the device's state as `enrolled`; its online, clock_skew_s and
        clock_error_s.
        """
        more = (
            device.c.state.label("enrolled"), device.c.online, device.c.clock_skew_s,
            device.c.clock_error_s,
        )  # fmt: skip
        query = _joined(select(rollout_device, *more)).where(
            self._in_stage,
            _LEFT,
            _mine.state != device_states.WAITING,
            or_(device.c.state != "enrolled", (_mine.ordered_at < ordered_before) & self._seen),
        )
        return list(self._db.execute(query.limit(limit)))

    def due(self, rings: Sequence[str], max_attempts: int, limit: int) -> list[Row[Any]]:
        """Devices in `rings` that are to be ordered the release: those that wait, and those that
        failed and have attempts left; rows of rollout_device with the device's columns."""
        columns = (
            device.c.profile, device.c.releases, device.c.facts["schemas"].label("schemas"),
            device.c.state.label("enrolled"),
        )  # fmt: skip
        again = _mine.state.in_(sorted(device_states.RETRIED)) & (_mine.attempt < max_attempts)
        found: list[Row[Any]] = []
        for wanted in (_mine.state == device_states.WAITING, again)[: min(2, max_attempts)]:
            query = _joined(select(rollout_device, *columns)).where(
                self._in_stage, wanted, device.c.ring.in_(rings)
            )
            found += self._db.execute(query.order_by(_mine.device).limit(limit - len(found)))
        return found

    def retried(self, max_attempts: int) -> int:
        """Failed devices that have attempts left."""
        if max_attempts == 1:
            return 0
        failed = _mine.state.in_(sorted(device_states.RETRIED)) & (_mine.attempt < max_attempts)
        return self._count(failed)

    def working(self) -> int:
        """Devices in progress that are online."""
        query = _joined(select(func.count())).where(
            self._in_stage, _LEFT, _mine.state != device_states.WAITING, device.c.online
        )
        return self._db.scalar(query) or 0

    def waiting_outside(self, rings: Sequence[str]) -> int:
        """Waiting devices that are not in `rings`."""
        query = _joined(select(func.count())).where(
            self._in_stage, _mine.state == device_states.WAITING, device.c.ring.not_in(rings)
        )
        return self._db.scalar(query) or 0

    def _names(self, wanted: ColumnElement[bool], limit: int = gate.NAMED) -> list[str]:
        query = select(_mine.device).where(self._in_stage, wanted).order_by(_mine.device)
        return list(self._db.scalars(query.limit(limit)))

    def _count(self, wanted: ColumnElement[bool]) -> int:
        query = select(func.count()).select_from(rollout_device).where(self._in_stage, wanted)
        return self._db.scalar(query) or 0


def _joined(query: Any) -> Any:
    return query.select_from(rollout_device).join(device, device.c.name == _mine.device)
