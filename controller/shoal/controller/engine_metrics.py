"""What the engine's process measures of itself and of the database, for Prometheus.

It is written to a file in the controller's folder, so that the web process serves it and a scrape
costs no query. Families, labels and what to alert on: docs/monitoring-the-controller.md.
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from sqlalchemy import ColumnElement, Connection, Table, func, select

from shoal.controller.alerts.alerts import UNRESOLVED
from shoal.controller.fleet.io.ca import load_certificate
from shoal.controller.host.context import Context
from shoal.controller.host.io.metrics_file import write_metrics
from shoal.controller.store.rollout_tables import assignment, rollout
from shoal.controller.store.tables import alert, device, operation
from shoal.errors import ShoalError

#: Seconds between two looks at the database, and at the keys.
EVERY_S, _KEYS_EVERY_S = 15.0, 600.0
#: Upper bounds of the histograms' buckets, seconds.
BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
#: Certificates of devices that end within so many days are counted.
SOON_DAYS = 30
_DAY_S = 86_400
_CERTIFICATES = ("root", "intermediate", "server", "controller")


class EngineMetrics:
    """Numbers of one engine's process."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(namespace="shoal_engine", registry=self.registry)
        self._messages = self._counter("ingest_messages", "Messages stored, or refused for good.")
        self._batches = Histogram(
            "shoal_ingest_batch_seconds", "Time to store a batch of messages.", buckets=BOUNDS,
            registry=self.registry,
        )  # fmt: skip
        self._queue = self.gauge("ingest_queue_messages", "Messages that wait to be stored.")
        self._waited = self.gauge(
            "ingest_wait_seconds", "How long the message had waited that was taken last."
        )
        self._acks = self.gauge("acks_pending", "Acknowledgements that wait for the broker.")
        self._connected = self.gauge("broker_connected", "1 while the engine is connected.")
        self._jobs = Histogram(
            "shoal_job_seconds", "Time of one run of a periodic job.", ["job"], buckets=BOUNDS,
            registry=self.registry,
        )  # fmt: skip
        self._failures = Counter(
            "shoal_job_failures", "Runs of a periodic job that failed.", ["job"],
            registry=self.registry,
        )  # fmt: skip
        self._done = self.gauge(
            "job_success_timestamp_seconds", "When a periodic job last succeeded.", "job"
        )
        self._written = self.gauge("engine_timestamp_seconds", "When these numbers were written.")

    def gauge(self, name: str, title: str, *labels: str) -> Gauge:
        """shoal_<name>."""
        return Gauge(f"shoal_{name}", title, labels, registry=self.registry)

    def _counter(self, name: str, title: str) -> Counter:
        return Counter(f"shoal_{name}", title, registry=self.registry)

    def note_batch(self, messages: int, seconds: float) -> None:
        """A batch was stored."""
        self._messages.inc(messages)
        self._batches.observe(seconds)

    def note_job(self, name: str, seconds: float, succeeded_at: float | None) -> None:
        """A run of a job ended; succeeded_at: Unix seconds, None if it failed."""
        self._jobs.labels(name).observe(seconds)
        if succeeded_at is None:
            self._failures.labels(name).inc()
        else:
            self._done.labels(name).set(succeeded_at)

    def note_rest(self, name: str, at: float) -> None:
        """A job rests at Unix second `at`: nothing is to do, so what it did is not old."""
        self._done.labels(name).set(at)

    def note_queues(self, *, waiting: int, waited_s: float, acks: int, connected: bool) -> None:
        """As they are now."""
        self._queue.set(waiting)
        self._waited.set(waited_s)
        self._acks.set(acks)
        self._connected.set(connected)

    def write(self, folder: Path, now: float) -> None:
        """Write all of it for the web process."""
        self._written.set(now)
        write_metrics(folder, generate_latest(self.registry))


class StoredMetrics:
    """Gauges of the database, keys and disk; `measure` reads them anew.

    What cannot be read is left out, and counted in shoal_metrics_unread.
    """

    def __init__(self, metrics: EngineMetrics) -> None:
        gauge = metrics.gauge
        self._unread = gauge("metrics_unread", "Groups of gauges that could not be read.")
        self._devices = gauge("fleet_devices", "Devices by state and link.", "state", "link")
        self._rollouts = gauge("rollouts", "Rollouts by state.", "state")
        self._operations = gauge("operations", "Operations by state.", "state")
        self._alerts = gauge("alerts", "Alerts that are not resolved, by severity.", "severity")
        self._orders = gauge("orders_waiting", "Signed orders that wait to be published.")
        self._soon = gauge(
            "device_certificates_expiring", f"Devices whose certificate ends in {SOON_DAYS} days."
        )
        self._certificate = gauge(
            "certificate_expiry_timestamp_seconds", "When a certificate ends.", "name"
        )
        self._metadata = gauge(
            "metadata_expiry_timestamp_seconds", "When signed metadata expires.", "role"
        )
        self._free = gauge("disk_free_bytes", "Free space of the controller's disk.")
        self._database = gauge("database_bytes", "Size of the database's files.", "part")
        self._keys_at = -_KEYS_EVERY_S

    def measure(self, ctx: Context) -> None:
        groups: list[Callable[[Context], None]] = [
            self._measure_database, self._measure_keys, self._measure_disk,
        ]  # fmt: skip
        unread = 0
        for group in groups:
            try:
                group(ctx)
            except (ShoalError, OSError):
                unread += 1
        self._unread.set(unread)

    def _measure_database(self, ctx: Context) -> None:
        with ctx.store.read() as db:
            _by_label(self._rollouts, _counted(db, rollout, rollout.c.state))
            _by_label(self._operations, _counted(db, operation, operation.c.state))
            unresolved = alert.c.state.in_(UNRESOLVED)
            _by_label(self._alerts, _counted(db, alert, alert.c.severity, where=unresolved))
            self._devices.clear()
            for state, online, count in db.execute(
                select(device.c.state, device.c.online, func.count()).group_by(
                    device.c.state, device.c.online
                )
            ):
                self._devices.labels(state, "online" if online else "offline").set(count)
            self._orders.set(
                _count(db, assignment, assignment.c.sent_version < assignment.c.version)
            )
            until = ctx.clock() + SOON_DAYS * _DAY_S
            expires = device.c.certificate_expires_at
            ending = (device.c.state == "enrolled") & (expires > 0) & (expires < until)
            self._soon.set(_count(db, device, ending))

    def _measure_keys(self, ctx: Context) -> None:
        """They last for days, and of each model there is a file."""
        if ctx.clock() < self._keys_at + _KEYS_EVERY_S:
            return
        self._keys_at = ctx.clock()
        for name in _CERTIFICATES:
            path = ctx.folder / "pki" / f"{name}.crt"
            if path.exists():
                end = load_certificate(path).not_valid_after_utc
                self._certificate.labels(name).set(end.timestamp())
        for role, expires in ctx.signer.expiries().items():
            self._metadata.labels(role).set(expires)

    def _measure_disk(self, ctx: Context) -> None:
        self._free.set(shutil.disk_usage(ctx.folder).free)
        for part in ("controller.db", "controller.windows"):
            self._database.labels(part).set(_size(ctx.folder, part))


def _counted(
    db: Connection,
    table: Table,
    by: ColumnElement[str],
    where: ColumnElement[bool] | None = None,
) -> Iterable[tuple[str, int]]:
    query = select(by, func.count()).select_from(table).group_by(by)
    found = db.execute(query if where is None else query.where(where))
    return [(str(value), int(count)) for value, count in found]


def _count(db: Connection, table: Table, where: ColumnElement[bool]) -> int:
    return db.scalar(select(func.count()).select_from(table).where(where)) or 0


def _by_label(gauge: Gauge, values: Iterable[tuple[str, int]]) -> None:
    """What is no longer there is 0 no more, but gone."""
    gauge.clear()
    for label, value in values:
        gauge.labels(label).set(value)


def _size(folder: Path, part: str) -> int:
    """Of a file with its -wal and -shm, or of a folder's files."""
    paths = [*folder.glob(f"{part}*"), *folder.glob(f"{part}/*")]
    return sum(path.stat().st_size for path in paths if path.is_file())
