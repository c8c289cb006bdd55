"""The broker's process: runs nats-server and lets in exactly who the device table says."""

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from sqlalchemy import func, select

from shoal.controller.broker.io.nats import NatsServer
from shoal.controller.fleet.certificates import common_name
from shoal.controller.host.io.processes import how_it_ended
from shoal.controller.store.io.database import Store
from shoal.controller.store.tables import device
from shoal.errors import LinkError, StorageError

ENROLLED = "enrolled"
#: The table is looked at so often; reloads of a big list come seldomer (nats-server looks at
#: every connection again at each).
LOOK_S, PER_DEVICE_S = 0.25, 0.0005
_log = logging.getLogger("shoal.broker")
Mark = tuple[int, int, float]


class Admits(Protocol):
    """Something that lets devices in, by the names in their certificates."""

    def admit(self, devices: frozenset[str]) -> None: ...


class Enrolled:
    """Who in the device table may connect, each by the name in its certificate."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def mark(self) -> Mark:
        """Cheap, and different after every enrolment and decommission."""
        enrolled = func.count().filter(device.c.state == ENROLLED)
        query = select(func.count(), enrolled, func.coalesce(func.max(device.c.enrolled_at), 0.0))
        with self._store.read() as db:
            row = db.execute(query).one()
        return (row[0], row[1], row[2])

    def names(self) -> frozenset[str]:
        with self._store.read() as db:
            query = select(device.c.name, device.c.generation)
            rows = db.execute(query.where(device.c.state == ENROLLED))
            return frozenset(common_name(row.name, row.generation) for row in rows)


class Follower:
    """Hands the table's changes on to a broker that knows `names` already."""

    def __init__(self, enrolled: Enrolled, broker: Admits, names: frozenset[str]) -> None:
        self._enrolled, self._broker, self._names = enrolled, broker, names
        self._mark: Mark | None = None

    def look(self) -> float:
        """Hand on what changed, if anything did; return seconds until the next look."""
        try:
            mark = self._enrolled.mark()
            if mark != self._mark:
                self._admit(self._enrolled.names())
                self._mark = mark
        except StorageError as error:  # busy, or full: the next look tries again
            _log.warning("cannot read who is enrolled: %s", error)
        return LOOK_S + len(self._names) * PER_DEVICE_S

    def _admit(self, names: frozenset[str]) -> None:
        if names == self._names:
            return
        gone, come = len(self._names - names), len(names - self._names)
        _log.info("devices let in: %d (%d new, %d cut off)", len(names), come, gone)
        self._broker.admit(names)
        self._names = names


def run(server: NatsServer, enrolled: Enrolled, stopping: threading.Event) -> None:
    """Run the broker until `stopping`; LinkError when nats-server ends by itself."""
    names = enrolled.names()
    server.start(names)
    follower = Follower(enrolled, server, names)
    try:
        wait_s = follower.look()
        while not stopping.wait(wait_s):
            if server.exit_code is not None:
                raise LinkError(f"nats-server {how_it_ended(server.exit_code)}")
            wait_s = follower.look()
    finally:
        server.stop()


def follow(
    enrolled: Enrolled, broker: Admits, names: frozenset[str], wait: Callable[[float], bool]
) -> None:
    """Keep a broker that knows `names` up to date until `wait` says to stop."""
    follower = Follower(enrolled, broker, names)
    while not wait(follower.look()):
        pass
