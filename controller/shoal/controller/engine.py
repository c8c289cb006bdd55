"""The engine's loop: ingests messages in batches, publishes, and runs the periodic jobs.

One thread ingests messages and acks them after the commit, one runs the short jobs, each long job
has its own. Messages wake the jobs: a rollout reacts to a device's event within a tenth of a
second. A job that fails is logged and tried again the next time; the others go on.
"""

import collections
import functools
import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from shoal import topics, wire
from shoal.address import url_of
from shoal.controller.conditions import uptime
from shoal.controller.engine_metrics import EVERY_S, EngineMetrics, StoredMetrics
from shoal.controller.federated.io import round_thread
from shoal.controller.fleet import duplicate_devices
from shoal.controller.host.context import Context
from shoal.controller.host.io.probes import reachable_host
from shoal.controller.ingest import flooding
from shoal.controller.ingest.ingest import ingest
from shoal.controller.ingest.io.intake import Intake
from shoal.controller.ingest.message_budgets import Rates
from shoal.controller.rollouts import assignments
from shoal.errors import LinkError, StorageError
from shoal.mqtt import Link

_log = logging.getLogger(__name__)

BATCH, GATHER_S = 500, 0.02
#: Answers that wait for the link.
QUEUE_SIZE = 20_000
#: Seconds to wait after a storage error.
RETRY_S = 1.0


class Periodic(NamedTuple):
    """A job that runs every `every_s` seconds.

    run          may return the Unix time, a float, at which time alone makes something due
    on_message   also at once after messages were ingested
    own_thread   takes long: would delay the others
    event        also at once when it is set
    quiet_s      its pace while nothing is written to the database and nothing is due by time alone.
                 0: every_s then too, as for a job that waits for something else than the database
    """

    name: str
    every_s: float
    run: Callable[[], object]
    on_message: bool = False
    own_thread: bool = False
    event: threading.Event | None = None
    quiet_s: float = 0.0


class Engine:
    """One controller's engine: there must be no second for the same folder.

    `run` is the loop; a test with its own loop and clock calls `drain` and `work`.

    jobs   in the order in which they run; what they sign is published after them
    link   constructor of the connection to the broker
    """

    def __init__(
        self,
        ctx: Context,
        stopping: threading.Event,
        jobs: Sequence[Periodic],
        link: Callable[..., Link],
        monotonic: Callable[[], float],
    ) -> None:
        self.ctx, self._stopping, self._monotonic = ctx, stopping, monotonic
        self._drained_at = monotonic()  # when the ingest thread last looked for messages
        limits = ctx.settings.ingest
        rates = Rates(limits.device_messages_s, limits.device_kib_s * 1_024)
        self._intake = Intake(rates, monotonic)
        self._wake = threading.Event()
        self._error: BaseException | None = None
        self._metrics = EngineMetrics()
        self._pending_acks: collections.deque[tuple[str, wire.Ack | wire.Time]] = collections.deque(
            maxlen=QUEUE_SIZE
        )
        self._is_new_connection = False
        self._sent_lately: collections.deque[tuple[float, str]] = collections.deque()
        self._is_first_connection = True
        self._published_timestamp = b""
        self._due: dict[str, float] = {}
        self._rests: dict[str, tuple[float, object]] = {}  # until when, unless others commit
        self._rounds = round_thread.RoundThread(ctx, self._publish_call)
        self._returns = duplicate_devices.ReturnCounter(monotonic)
        rounds = self._rounds
        self.jobs = [
            Periodic("uptime", uptime.EVERY_S, self._note_uptime),
            Periodic("retained messages", 1.0, self._publish_retained, on_message=True),
            *jobs,
            Periodic("assignments", 0.25, self._publish_assignments, on_message=True, quiet_s=15.0),
            Periodic("floods", 5.0, self._report_floods, own_thread=True, event=self._intake.bell),
            Periodic("rounds", 0.5, rounds.work, own_thread=True, event=rounds.bell, quiet_s=5.0),
            Periodic("timestamps", 60.0, self._refresh_timestamps),
        ]
        pki, network = ctx.folder / "pki", ctx.settings.network
        host = reachable_host(network.host)
        self._link = link(
            url=network.broker or url_of("mqtts", host, network.mqtt),
            server_name="" if network.broker else network.names[0],
            client_id="controller",
            ca=pki / "ca.pem",
            certificate=pki / "controller.crt",
            key=pki / "controller.key",
            subscriptions=[topics.ALL_UP],
            random=ctx.random,
        )

    def connect(self) -> None:
        """Start the link to the broker."""
        self._link.start(self._on_message, self._on_connection)

    def run(self) -> None:
        """Run until `stopping` is set, or a thread ends by an error, which is raised: a process
        that goes on without it would look alive."""
        own = [functools.partial(self._repeat, job) for job in self.jobs if job.own_thread]
        loops: list[Callable[[], None]] = [self._ingest, self._measure, *own]
        guarded = [functools.partial(self._until_it_fails, loop) for loop in loops]
        threads = [threading.Thread(target=loop, name="engine", daemon=True) for loop in guarded]
        self.connect()
        for thread in threads:
            thread.start()
        _log.info("engine runs")
        while not self._stopping.is_set():
            self._wake.wait(min(max(0.01, self.work(own_thread=False)), 0.25))
        self._link.stop()
        for thread in threads:
            thread.join(5)
        if self._error is not None:
            raise self._error

    def _until_it_fails(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            self._error = error
            self._stopping.set()
            self._wake.set()

    # --- messages -----------------------------------------------------------------------------

    def _on_message(self, topic: str, payload: bytes) -> None:
        """Runs on the link's thread: only enqueues what is within its device's budget."""
        if not round_thread.is_round_message(topic):
            self._intake.put(topic, payload)
        elif self._intake.admit_round(topic, payload):
            self._rounds.put(topic, payload)

    def _on_connection(self, up: bool) -> None:
        self._is_new_connection = up
        self._rests.clear()  # what could not be sent can be now
        self._wake.set()

    def _ingest(self) -> None:
        while not self._stopping.is_set():
            self.drain(timeout_s=0.25)

    def drain(self, timeout_s: float = 0.0) -> int:
        """Ingest one batch and ack it once it is durable; the number of messages.

        timeout_s   how long to wait for the first message
        """
        self._drained_at = self._monotonic()
        batch = self._gather(min(timeout_s, GATHER_S) if self._pending_acks else timeout_s)
        while batch and not self._stopping.is_set():
            began = self._monotonic()
            try:
                acks = ingest(self.ctx, batch, self._returns, self._intake.charge)
                self._pending_acks.extend((device, ack) for device in acks for ack in acks[device])
                self._metrics.note_batch(len(batch), self._monotonic() - began)
                self._wake.set()
                break
            except StorageError as error:
                _log.error("cannot ingest %d messages: %s", len(batch), error)
                self._stopping.wait(RETRY_S)
        self._ack()
        return len(batch)

    def _gather(self, timeout_s: float) -> list[tuple[str, bytes]]:
        """Messages that arrive within GATHER_S of the first, BATCH at most."""
        batch = self._intake.take(BATCH, timeout_s)
        end = self._monotonic() + GATHER_S
        while batch and len(batch) < BATCH and timeout_s > 0:
            more = self._intake.take(BATCH - len(batch), end - self._monotonic())
            if not more:
                break
            batch += more
        return batch

    def _ack(self) -> None:
        """Send pending acks. Those that the link does not accept now are sent after the next batch;
        a device without an ack sends its messages again."""
        try:
            while self._pending_acks:
                device, answer = self._pending_acks[0]
                topic = topics.down(device, wire.DOWN_KIND[type(answer)])
                self._link.publish(topic, wire.encode(answer))
                self._pending_acks.popleft()
        except LinkError as error:
            _log.debug("%d acks pending: %s", len(self._pending_acks), error)

    def _report_floods(self) -> None:
        """Store what was refused of devices that send too much; new messages are judged on."""
        flooding.record(self.ctx, self._intake.take_excess())

    # --- jobs --------------------------------------------------------------------------------

    def work(self, *, own_thread: bool = True) -> float:
        """Run the jobs that are due; seconds until the next is. own_thread: the long ones too."""
        woken = self._wake.is_set()
        self._wake.clear()
        for job in self.jobs:
            now = self._monotonic()
            is_set = job.event is not None and job.event.is_set()
            early = self._due.get(job.name, now) > now and not (
                (woken and job.on_message) or is_set
            )
            if early or (job.own_thread and not own_thread):
                continue
            self._due[job.name] = now + job.every_s
            if is_set or not self._is_quiet(job):
                self._run(job)
        return min(self._due.values()) - self._monotonic()

    def _repeat(self, job: Periodic) -> None:
        bell = job.event or self._stopping
        while not self._stopping.is_set():
            is_set = bell.wait(job.every_s)
            if not self._stopping.is_set() and (is_set or not self._is_quiet(job)):
                self._run(job)

    def _is_quiet(self, job: Periodic) -> bool:
        """Whether nothing was written since the job's last run, which is not quiet_s ago."""
        until, commits = self._rests.get(job.name, (0.0, None))
        if commits is None or self._monotonic() >= until:
            return False
        try:
            rests = self.ctx.store.commits() == commits
        except StorageError:
            return False  # the job says it
        if rests:
            self._metrics.note_rest(job.name, self.ctx.clock())
        return rests

    def _run(self, job: Periodic) -> None:
        began, succeeded_at = self._monotonic(), None
        self._rests.pop(job.name, None)
        try:
            commits = self.ctx.store.commits() if job.quiet_s else None
            next_at = job.run()
            succeeded_at = self.ctx.clock()
            due_s = next_at - succeeded_at if isinstance(next_at, float) else job.quiet_s
            self._rests[job.name] = began + min(job.quiet_s, due_s), commits
        except Exception as error:  # noqa: BLE001 - one job must not stop the others
            expected = isinstance(error, (LinkError, StorageError))
            _log.error("%s: %s", job.name, error, exc_info=not expected)
        self._metrics.note_job(job.name, self._monotonic() - began, succeeded_at)

    def _measure(self) -> None:
        """Write metrics every few seconds; those of the database less often."""
        stored = StoredMetrics(self._metrics)
        while not self._stopping.is_set():
            try:
                stored.measure(self.ctx)
                self.write_metrics()
            except StorageError as error:
                _log.error("metrics: %s", error)
            self._stopping.wait(EVERY_S)

    def write_metrics(self) -> None:
        """Write the process's own numbers as they are now."""
        self._metrics.note_queues(
            waiting=self._intake.waiting,
            waited_s=self._intake.waited_s,
            acks=len(self._pending_acks),
            connected=self._link.connected,
        )
        self._metrics.write(self.ctx.folder, self.ctx.clock())

    def _note_uptime(self) -> None:
        ingests = self._monotonic() - self._drained_at < uptime.EVERY_S
        uptime.note(self.ctx, self._link.connected and ingests)

    def _publish_call(self, device: str, call: wire.RoundCall) -> None:
        """LinkError without a connection: the caller publishes it again."""
        if not self._link.connected:
            raise LinkError("not connected")
        self._link.publish(round_thread.call_topic(device), wire.encode(call))

    def _publish_retained(self) -> None:
        """Publish the retained budget and timestamp after each connection, and the last orders."""
        if not (self._is_new_connection and self._link.connected):
            return
        names = None if self._is_first_connection else [name for _, name in self._sent_lately]
        if names is None or names:
            assignments.send_again(self.ctx, names)
        self._is_first_connection = False
        fleet = self.ctx.settings.fleet
        budget = wire.Budget(window_s=fleet.window_s, jitter_s=fleet.jitter_s)
        self._link.publish(topics.BUDGET, wire.encode(budget), retain=True)
        self._is_new_connection, self._published_timestamp = False, b""
        self._publish_timestamp()

    def _publish_assignments(self) -> float:
        if not self._link.connected:
            return 0.0  # it does not rest until it has asked
        waiting = assignments.pending(self.ctx)
        sent = []
        try:
            for one in waiting:
                topic = topics.down(one.device, "assignment")
                self._link.publish(topic, one.message, retain=True)
                sent.append(one)
        finally:
            if sent:
                assignments.mark_sent(self.ctx, sent)
                self._remember(sent)
        return math.inf

    def _remember(self, sent: Sequence[assignments.Pending]) -> None:
        """Keep the names of the last seconds: a broker that is killed may lose their orders."""
        now = self._monotonic()
        self._sent_lately.extend((now, one.device) for one in sent)
        while self._sent_lately and self._sent_lately[0][0] < now - assignments.LAST_S:
            self._sent_lately.popleft()

    def _refresh_timestamps(self) -> None:
        renewed = self.ctx.signer.refresh_timestamps(self.ctx.clock())
        if renewed:
            _log.info("metadata renewed: %s", ", ".join(renewed))
        self._publish_timestamp()

    def _publish_timestamp(self) -> None:
        stamp = self.ctx.signer.timestamp
        if stamp != self._published_timestamp and self._link.connected:
            message = wire.encode(wire.Timestamp(signed=stamp))
            self._link.publish(topics.TIMESTAMP, message, retain=True)
            self._published_timestamp = stamp
