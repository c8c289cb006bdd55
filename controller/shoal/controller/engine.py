"""The controller's heart: takes what devices say, and does what is due.

One thread takes messages in batches and acks them after the commit, one does the periodic work,
one looks at windows. The first wakes the second: a rollout follows a device's word within a tenth
of a second. Work that fails is logged and tried again the next time; it stops nothing else.
"""

import collections
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import delete, update

from shoal import topics, wire
from shoal.controller.alerts import alerts
from shoal.controller.federated.checkpoints import candidates, retention
from shoal.controller.federated.io import round_thread
from shoal.controller.federated.planning import drift_trigger
from shoal.controller.fleet import clock_skew, duplicate_devices
from shoal.controller.host.context import Context
from shoal.controller.ingest.ingest import ingest
from shoal.controller.monitoring import drift_monitor, triggers
from shoal.controller.operations.io.runner import Operations
from shoal.controller.rollouts import assignments, quarantine_withdrawal, stepper
from shoal.controller.rollouts.io.delta_prefetch import Ahead
from shoal.controller.store import changes, tables
from shoal.errors import LinkError, StorageError
from shoal.mqtt import Link

_log = logging.getLogger(__name__)

BATCH, GATHER_S = 500, 0.02
#: Messages in memory; more are dropped, and come again, for they are not acked.
WAITING = 20_000
#: After the disk refused.
PAUSE_S = 1.0
CHANGES_S = 3_600.0


def run(ctx: Context, stopping: threading.Event) -> None:
    """Run until `stopping`."""
    Engine(ctx, stopping).run()


class Tick(NamedTuple):
    """Something to do every so often.

    woken   also at once when something happened
    apart   takes long: has a thread of its own, lest a rollout wait for it
    bell    likewise at once when it rings
    """

    name: str
    every_s: float
    act: Callable[[], object]
    woken: bool = False
    apart: bool = False
    bell: threading.Event | None = None


class Engine:
    """One controller's engine: there must be no second for the same folder.

    `run` is the loop; `drain` and `work` are what it does, for who has a loop and a clock of his
    own. link, operations: what else may stand in for the broker and for subprocesses.
    """

    def __init__(
        self,
        ctx: Context,
        stopping: threading.Event,
        link: Callable[..., Link] = Link,
        operations: Operations | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ctx, self._stopping, self._monotonic = ctx, stopping, monotonic
        self._queue: queue.Queue[tuple[str, bytes]] = queue.Queue(WAITING)
        self._wake = threading.Event()
        self._dropped = 0
        self._owed: collections.deque[tuple[str, wire.Ack | wire.Time]] = collections.deque(
            maxlen=WAITING
        )
        self._greet = False
        self._stamp = b""
        self._operations = operations or Operations(ctx)
        self._due: dict[str, float] = {}
        self._drift_cache = drift_monitor.DriftCache()
        self._rounds = round_thread.Rounds(ctx, self._post)
        self._ahead = Ahead(ctx)
        self._returns = duplicate_devices.ReturnCounter(monotonic)
        pki, network = ctx.folder / "pki", ctx.settings.network
        host = "localhost" if "localhost" in network.names else network.names[0]
        self._link = link(
            url=network.broker or f"mqtts://{host}:{network.mqtt}",
            client_id="controller",
            ca=pki / "ca.pem",
            certificate=pki / "controller.crt",
            key=pki / "controller.key",
            subscriptions=[topics.ALL_UP],
            random=ctx.random,
        )

    def connect(self) -> None:
        """Start the link to the broker."""
        self._link.start(self._heard, self._connected)

    def run(self) -> None:
        """Run until told to stop."""
        apart = [functools.partial(self._repeat, tick) for tick in self.ticks() if tick.apart]
        loops: list[Callable[[], None]] = [self._take, *apart]
        threads = [threading.Thread(target=loop, name="engine", daemon=True) for loop in loops]
        self.connect()
        for thread in threads:
            thread.start()
        _log.info("engine runs")
        while not self._stopping.is_set():
            self._wake.wait(min(max(0.01, self.work(apart=False)), 0.25))
        self._link.stop()
        for thread in threads:
            thread.join(5)
        self._operations.stop()

    def ticks(self) -> list[Tick]:
        """Everything periodic, in the order in which it is done."""
        ctx, window_s = self.ctx, self.ctx.settings.fleet.window_s
        return [
            Tick("greet", 1.0, self._say_hello, woken=True),
            Tick("rollouts", 0.25, lambda: stepper.step_all(ctx), woken=True),
            Tick("assignments", 0.25, self._publish_assignments, woken=True),
            Tick("operations", 0.25, self._operations.step),
            Tick(
                "monitoring",
                min(5.0, max(0.25, window_s / 8)),
                lambda: drift_monitor.evaluate_all(ctx, self._drift_cache),
                apart=True,
            ),
            Tick("rounds", 0.5, self._rounds.work, apart=True, bell=self._rounds.bell),
            Tick("deltas", 0.25, self._ahead.look, apart=True),
            Tick("alerts", 2.0, lambda: alerts.sweep(ctx)),
            Tick("quarantine alerts", 2.0, lambda: quarantine_withdrawal.close_alerts(ctx)),
            Tick("triggers", 1.0, lambda: triggers.evaluate(ctx)),
            Tick("on drift", 5.0, lambda: drift_trigger.evaluate(ctx)),
            Tick("candidates", 5.0, lambda: candidates.evaluate(ctx)),
            Tick("offline", 5.0, lambda: offline(ctx)),
            Tick("clocks", 15.0, lambda: clock_skew.update_alerts(ctx)),
            Tick("copies", 60.0, lambda: duplicate_devices.close_alerts(ctx)),
            Tick("timestamps", 60.0, self._refresh_timestamps),
            Tick("renewal", 600.0, lambda: assignments.renew(ctx)),
            Tick("retention", 3_600.0, lambda: forget(ctx)),
            Tick("checkpoints", 3_600.0, lambda: retention.prune(ctx)),
        ]

    # --- messages -----------------------------------------------------------------------------

    def _heard(self, topic: str, payload: bytes) -> None:
        """On the link's thread: only enqueue."""
        if round_thread.is_answer(topic):
            self._rounds.put(topic, payload)
            return
        try:
            self._queue.put_nowait((topic, payload))
        except queue.Full:
            self._dropped += 1

    def _connected(self, up: bool) -> None:
        self._greet = up
        self._wake.set()

    def _take(self) -> None:
        while not self._stopping.is_set():
            self.drain(patience_s=0.25)

    def drain(self, patience_s: float = 0.0) -> int:
        """Take one batch, and ack what is durable; how many messages that were.

        patience_s   how long to wait for the first of them
        """
        batch = self._gather(min(patience_s, GATHER_S) if self._owed else patience_s)
        while batch and not self._stopping.is_set():
            try:
                acks = ingest(self.ctx, batch, self._returns)
                self._owed.extend((device, ack) for device in acks for ack in acks[device])
                self._wake.set()
                break
            except StorageError as error:
                _log.error("cannot take %d messages: %s", len(batch), error)
                self._stopping.wait(PAUSE_S)
        self._ack()
        return len(batch)

    def _gather(self, patience_s: float) -> list[tuple[str, bytes]]:
        """What is there within GATHER_S of the first message, BATCH at most."""
        try:
            batch = [self._queue.get(patience_s > 0, patience_s or None)]
        except queue.Empty:
            return []
        end = self._monotonic() + GATHER_S
        while len(batch) < BATCH and (left := end - self._monotonic()) > 0:
            try:
                batch.append(self._queue.get(patience_s > 0, left))
            except queue.Empty:
                break
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            _log.warning("%d messages dropped, they will come again: ingest is behind", dropped)
        return batch

    def _ack(self) -> None:
        """Send the acks that are owed. What the link does not take now is sent after the next
        batch: a device that is not acked says everything again."""
        try:
            while self._owed:
                device, answer = self._owed[0]
                topic = topics.down(device, wire.DOWN_KIND[type(answer)])
                self._link.publish(topic, wire.encode(answer))
                self._owed.popleft()
        except LinkError as error:
            _log.debug("%d acks wait: %s", len(self._owed), error)

    # --- ticks --------------------------------------------------------------------------------

    def work(self, *, apart: bool = True) -> float:
        """Do what is due; seconds until something is due again. apart: also what takes long."""
        woken = self._wake.is_set()
        self._wake.clear()
        for tick in self.ticks():
            now = self._monotonic()
            rung = tick.bell is not None and tick.bell.is_set()
            early = self._due.get(tick.name, now) > now and not ((woken and tick.woken) or rung)
            if early or (tick.apart and not apart):
                continue
            self._due[tick.name] = now + tick.every_s
            self._do(tick)
        return min(self._due.values()) - self._monotonic()

    def _repeat(self, tick: Tick) -> None:
        if tick.bell is None:
            while not self._stopping.wait(tick.every_s):
                self._do(tick)
            return
        while not self._stopping.is_set():
            tick.bell.wait(tick.every_s)
            self._do(tick)

    def _do(self, tick: Tick) -> None:
        try:
            tick.act()
        except Exception as error:  # noqa: BLE001 - one tick must not stop the others
            said = isinstance(error, (LinkError, StorageError))
            _log.error("%s: %s", tick.name, error, exc_info=not said)

    def _post(self, device: str, call: wire.RoundCall) -> None:
        """LinkError when there is no connection: it is said again."""
        if not self._link.connected:
            raise LinkError("not connected")
        self._link.publish(round_thread.topic_of(device), wire.encode(call))

    def _say_hello(self) -> None:
        """After each connection: what every device should find on the broker."""
        if not (self._greet and self._link.connected):
            return
        fleet = self.ctx.settings.fleet
        budget = wire.Budget(window_s=fleet.window_s, jitter_s=fleet.jitter_s)
        self._link.publish(topics.BUDGET, wire.encode(budget), retain=True)
        self._greet, self._stamp = False, b""
        self._publish_timestamp()

    def _publish_assignments(self) -> None:
        waiting = assignments.pending(self.ctx) if self._link.connected else []
        sent = []
        try:
            for one in waiting:
                topic = topics.down(one.device, "assignment")
                self._link.publish(topic, one.message, retain=True)
                sent.append(one)
        finally:
            if sent:
                assignments.mark_sent(self.ctx, sent)

    def _refresh_timestamps(self) -> None:
        renewed = self.ctx.signer.refresh_timestamps(self.ctx.clock())
        if renewed:
            _log.info("signed anew: %s", ", ".join(renewed))
        self._publish_timestamp()

    def _publish_timestamp(self) -> None:
        stamp = self.ctx.signer.timestamp
        if stamp != self._stamp and self._link.connected:
            message = wire.encode(wire.Timestamp(signed=stamp))
            self._link.publish(topics.TIMESTAMP, message, retain=True)
            self._stamp = stamp


def offline(ctx: Context) -> int:
    """Mark who was not heard of for too long; a status of the same session brings it back."""
    gone = (
        update(tables.device)
        .where(
            tables.device.c.online,
            tables.device.c.seen_at < ctx.clock() - ctx.settings.fleet.offline_s,
        )
        .values(online=False)
        .returning(tables.device.c.name)
    )
    with ctx.store.write() as db:
        names = list(db.scalars(gone))
        for name in names:
            changes.note(db, ctx, "device", name)
    return len(names)


def forget(ctx: Context) -> None:
    """Drop telemetry past its retention, and changes that nobody will ask for."""
    now = ctx.clock()
    before = now - ctx.settings.fleet.retention_days * 86_400
    old = (
        delete(tables.window).where(tables.window.c.received_at < before),
        delete(tables.drift_point).where(tables.drift_point.c.at < before),
        delete(tables.finding).where(tables.finding.c.at < before),
        delete(tables.device_event).where(tables.device_event.c.received_at < before),
    )
    with ctx.store.write() as db:
        for statement in old:
            db.execute(statement)
        changes.forget(db, now - CHANGES_S)
