"""The broker's process: runs nats-server and keeps its user list equal to the device table."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from sqlalchemy import func, select

from shoal.controller.broker.io.nats import NatsServer
from shoal.controller.fleet.certificates import common_name
from shoal.controller.host.io.processes import exit_description
from shoal.controller.store.flood_tables import flood
from shoal.controller.store.io.database import Store
from shoal.controller.store.tables import device
from shoal.errors import LinkError, StorageError

ENROLLED = "enrolled"
#: Interval of polling the table; longer for a big list (a reload rechecks every connection).
POLL_S, PER_DEVICE_S = 0.25, 0.0005
_log = logging.getLogger("shoal.broker")
Fingerprint = tuple[int, int, float, int, float]


class AccessList(Protocol):
    """A broker whose users are set by the names in their certificates."""

    def set_devices(self, devices: frozenset[str]) -> None: ...


class EnrolledDevices:
    """Enrolled devices in the device table, by the names in their certificates.

    Those that are cut off for a while, because they send far more than their budget, are not among
    them (ingest.flooding).
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store, self._clock = store, clock

    def fingerprint(self) -> Fingerprint:
        """Changes with every enrolment, decommissioning and cut; cheap to read."""
        enrolled = func.count().filter(device.c.state == ENROLLED)
        query = select(func.count(), enrolled, func.coalesce(func.max(device.c.enrolled_at), 0.0))
        cut = select(func.count(), func.coalesce(func.max(flood.c.cut_until), 0.0))
        with self._store.read() as db:
            row = db.execute(query).one()
            out = db.execute(cut.where(flood.c.cut_until > self._clock())).one()
        return (row[0], row[1], row[2], out[0], out[1])

    def names(self) -> frozenset[str]:
        with self._store.read() as db:
            query = select(device.c.name, device.c.generation)
            out = select(flood.c.device).where(flood.c.cut_until > self._clock())
            rows = db.execute(query.where(device.c.state == ENROLLED, device.c.name.not_in(out)))
            return frozenset(common_name(row.name, row.generation) for row in rows)


class AccessUpdater:
    """Applies changes of the table to a broker that has `names` already."""

    def __init__(
        self, enrolled: EnrolledDevices, broker: AccessList, names: frozenset[str]
    ) -> None:
        self._enrolled, self._broker, self._names = enrolled, broker, names
        self._fingerprint: Fingerprint | None = None

    def poll(self) -> float:
        """Apply changes, if there are any; seconds until the next poll."""
        try:
            fingerprint = self._enrolled.fingerprint()
            if fingerprint != self._fingerprint:
                self._apply(self._enrolled.names())
                self._fingerprint = fingerprint
        except StorageError as error:  # busy or full: the next poll tries again
            _log.warning("cannot read the enrolled devices: %s", error)
        return POLL_S + len(self._names) * PER_DEVICE_S

    def _apply(self, names: frozenset[str]) -> None:
        if names == self._names:
            return
        gone, come = len(self._names - names), len(names - self._names)
        _log.info("devices allowed: %d (%d new, %d removed)", len(names), come, gone)
        self._broker.set_devices(names)
        self._names = names


def run(server: NatsServer, enrolled: EnrolledDevices, stopping: threading.Event) -> None:
    """Run the broker until `stopping`; LinkError if nats-server ends by itself."""
    names = enrolled.names()
    server.start(names)
    updater = AccessUpdater(enrolled, server, names)
    try:
        wait_s = updater.poll()
        while not stopping.wait(wait_s):
            if server.exit_code is not None:
                raise LinkError(f"nats-server {exit_description(server.exit_code)}")
            wait_s = updater.poll()
    finally:
        server.stop()


def keep_updated(
    enrolled: EnrolledDevices,
    broker: AccessList,
    names: frozenset[str],
    wait: Callable[[float], bool],
) -> None:
    """Keep the access list of a broker up to date until `wait` returns True."""
    updater = AccessUpdater(enrolled, broker, names)
    while not wait(updater.poll()):
        pass
