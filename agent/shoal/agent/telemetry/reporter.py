"""Reports to the controller: telemetry, events and faults through the outbox; status, inventory."""

import collections
import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from shoal import topics, wire
from shoal.agent.host.clock import DeviceClock
from shoal.agent.host.faults import Fault, Faults, StandingFaults, disk_fault
from shoal.agent.host.ports import Random
from shoal.agent.installed.record import Record, Slot, State
from shoal.agent.telemetry.outbox import Outbox
from shoal.errors import LinkError, StorageError
from shoal.federated import messages
from shoal.profile import Profile

_log = logging.getLogger(__name__)

#: Messages kept in memory while the disk refuses; seconds between two status messages.
_UNSAVED, _STATUS_S = 200, 120.0
_LONGEST = 500
#: Unacknowledged messages at once, and seconds until one is sent again.
WINDOW, RESEND_S = 64, 30.0
#: Windows of the backlog sent in the time of one new window: a week's takes three hours.
CATCH_UP = 60


class Identity(NamedTuple):
    """Identity of this device in its inventory. version: of the agent."""

    device: str
    site: str
    ring: str
    profile: Profile
    line: str = ""
    labels: dict[str, str] = {}  # noqa: RUF012 (a NamedTuple's default is never written to)
    facts: dict[str, Any] = {}  # noqa: RUF012
    version: str = ""


class Link(Protocol):
    """To the broker. publish raises LinkError when not connected."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None: ...


class ReporterPorts(NamedTuple):
    """What the reporter is built from. random: names of processes and sessions."""

    link: Link
    outbox: Outbox
    random: Random


class BacklogLimiter:
    """Token bucket for the backlog, so that new messages never wait for it.

    A device sends a window each `window_s`; of its backlog it may send CATCH_UP times as many,
    starting `pause_s` after it connected, so that a fleet does not all at once.

    >>> limiter = BacklogLimiter(); limiter.connect(0.0, 10.0)
    >>> limiter.allowed(5.0, 60.0), limiter.allowed(11.0, 60.0), limiter.allowed(15.0, 60.0)
    (0, 1, 5)
    >>> limiter.sent(5); limiter.allowed(15.0, 60.0)
    0
    """

    def __init__(self) -> None:
        self._tokens = self._at = 0.0

    def connect(self, now_s: float, pause_s: float) -> None:
        """A new connection: nothing until `pause_s` from now."""
        self._tokens, self._at = 0.0, now_s + pause_s

    def allowed(self, now_s: float, window_s: float) -> int:
        """Windows of the backlog that may be sent now."""
        if now_s > self._at:
            rate = CATCH_UP / max(window_s, 1.0)
            self._tokens = min(WINDOW, self._tokens + (now_s - self._at) * rate)
            self._at = now_s
        return int(self._tokens)

    def sent(self, windows: int) -> None:
        self._tokens = max(0.0, self._tokens - windows)


class SendWindow:
    """Sliding window over the sequence numbers: bounded in flight, in order, resent after a while.

    >>> window = SendWindow()
    >>> window.connect(); window.sent(1, 0.0); window.sent(2, 0.0)
    >>> window.acked([1]); window.start_after(10.0), window.start_after(31.0)
    (2, 1)
    """

    def __init__(self, window: int = WINDOW, resend_s: float = RESEND_S) -> None:
        self._window, self._resend_s = window, resend_s
        self._in_flight: dict[int, float] = {}
        self._last = 0

    def connect(self) -> None:
        """A new connection: messages in flight may be lost."""
        self._in_flight.clear()
        self._last = 0

    def start_after(self, now_s: float) -> int:
        """Send messages with a higher number than this next."""
        if self._in_flight and now_s - min(self._in_flight.values()) >= self._resend_s:
            self._last = min(self._in_flight) - 1
            self._in_flight.clear()
        return self._last

    @property
    def free(self) -> int:
        """Number of messages that may be sent now."""
        return max(0, self._window - len(self._in_flight))

    def sent(self, seq: int, now_s: float) -> None:
        self._in_flight[seq] = now_s
        self._last = max(self._last, seq)

    def acked(self, seqs: Iterable[int]) -> None:
        for seq in seqs:
            self._in_flight.pop(seq, None)


class Reporter:
    """Telemetry, faults, status and inventory of one device. Intervals are of the monotonic clock.

    connected, since_s   state of the connection, and since when: Unix seconds
    standing             faults that are not over, for the status
    disk_refuses         whether the journal waits for the disk
    window_s, pause_s    of the fleet's budget: window length, delay of the backlog
    """

    def __init__(self, identity: Identity, ports: ReporterPorts, clock: DeviceClock) -> None:
        self._identity, self._ports, self._clock = identity, ports, clock
        self.connected, self.since_s, self._session = False, clock(), ""
        self._process, self._connections = f"{ports.random.getrandbits(32):08x}", 0
        self.standing, self.disk_refuses = StandingFaults(), False
        self._window, self._limiter, self._faults = SendWindow(), BacklogLimiter(), Faults()
        self.window_s, self.pause_s = 60.0, 0.0
        self._unsaved: collections.deque[tuple[wire.Upward, str]] = collections.deque(
            maxlen=_UNSAVED
        )
        self._status_at, self._skew_sent, self._boot = 0.0, self._clock.skew, ports.outbox.boot

    def will(self) -> tuple[str, bytes]:
        """Last will of the next connection, which gets a new session name."""
        chance = self._ports.random.getrandbits(32)
        self._session = f"{self._process}-{self._connections}-{chance:08x}"
        return topics.up(self._identity.device, "status"), wire.encode(self._status(online=False))

    def on_connection(self, up: bool) -> None:
        """The connection was made or lost."""
        self.connected, self.since_s = up, self._clock()
        if up:
            self._connections += 1
            self._window.connect()
            self._limiter.connect(self._clock.monotonic(), self.pause_s)
            self._ports.outbox.connected()
            self.status(online=True)

    def on_ack(self, ack: wire.Ack) -> None:
        """Delete messages that the controller's database has."""
        self._ports.outbox.ack(ack.boot, ack.seqs)
        if ack.boot == self._ports.outbox.boot:
            self._window.acked(ack.seqs)

    def update(self, record: Record) -> None:
        """Report the state of an update attempt: each state once, however often it is called."""
        order = record.order
        if order is None or record.state is State.IDLE:
            return
        event = wire.UpdateEvent(
            **self._sender(),
            model=record.model,
            release=order.release,
            rollout=order.rollout,
            attempt=order.attempt,
            state=record.state.name,
            cause=record.cause,
            detail=record.detail[:_LONGEST],
            facts=record.facts,
        )
        self.add(event, f"{order.rollout}/{order.attempt}/{order.release}/{record.state.name}")

    def fault(self, fault: Fault) -> None:
        """Report a fault, or its end; repeated ones are counted and reported later."""
        if fault.facts.get("ended") is True:
            self._end(fault.cause)
            return
        now = self._clock.monotonic()
        due = self._faults.note(fault, now)
        if due is not None:
            self._report(due)
        else:
            self.standing.touch(fault.cause, now)

    def _end(self, cause: str) -> None:
        """Report that a fault is over, if it stands: the controller clears the device's error."""
        detail = self.standing.remove(cause)
        if detail is not None:
            self._faults.forget(cause)
            facts = {"ended": detail[:_LONGEST]}
            self._report(Fault(cause, "it is over", "info", facts=facts))

    def add(self, message: wire.Upward, key: str = "") -> bool:
        """Add to the outbox, in memory while the disk refuses; whether all is on the disk now."""
        named = msgspec.structs.replace(message, device=self._identity.device)
        self._unsaved.append((named, key))
        self._save()
        return self.saved

    @property
    def waiting(self) -> int:
        """Messages that the controller has not acknowledged."""
        return self._ports.outbox.waiting + len(self._unsaved)

    @property
    def saved(self) -> bool:
        """Whether every message is on the disk."""
        return not self._unsaved

    def tick(self) -> None:
        """Report counted faults, save what the disk refused, send what is due."""
        now = self._clock.monotonic()
        for fault in self._faults.due(now):
            met_s = self.standing.met_s(fault.cause, now)
            self._report(fault)
            self.standing.touch(fault.cause, met_s)  # what was counted happened before
        self._save()
        refuses = self.disk_refuses or not self.saved or bool(self._ports.outbox.degraded)
        for cause in self.standing.over(now, disk_refuses=refuses):
            self._end(cause)
        self._send()

    def answer(self, attempt: bytes, answer: messages.DeviceMessage) -> bool:
        """Publish a message of a round, without the outbox: the controller asks again."""
        message = wire.RoundAnswer(**self._sender(), attempt=attempt, said=answer)
        try:
            topic = topics.up(self._identity.device, "round")
            self._ports.link.publish(topic, wire.encode(message))
        except LinkError as error:
            _log.debug("message of a round not sent: %s", error)
            return False
        return True

    def heartbeat(self) -> None:
        """Publish the status when the last one is old."""
        if self.connected and self._clock.monotonic() - self._status_at >= _STATUS_S:
            self.status(online=True)

    def status(self, *, online: bool) -> None:
        if self.connected:
            self._publish("status", self._with_time_request(self._status(online=online)))
            self._status_at = self._clock.monotonic()

    def on_time(self, time: wire.Time) -> None:
        """Record the controller's clock."""
        self._clock.controller.answered(time.asked_s, time.now_s, self._clock.monotonic())

    @property
    def clock_changed(self) -> bool:
        """Whether the clock skew differs from the one in the last inventory."""
        skew, sent = self._clock.skew, self._skew_sent
        if skew is None:
            return False
        return sent is None or abs(skew.skew_s - sent.skew_s) > max(1.0, skew.error_s)

    def inventory(
        self,
        slots: Sequence[Slot],
        floors: dict[str, float],
        endpoint: str,
        facts: dict[str, Any] | None = None,
    ) -> wire.Inventory:
        """Publish the inventory, and return it.

        slots   that serve; facts: that may have changed since the start
        """
        identity, skew = self._identity, self._clock.skew
        clock = {"clock_skew_s": skew.skew_s, "clock_error_s": skew.error_s} if skew else {}
        inventory = wire.Inventory(
            **self._sender(),
            agent=identity.version,
            profile=identity.profile.name,
            ring=identity.ring,
            site=identity.site,
            line=identity.line,
            labels=identity.labels,
            facts=identity.facts | clock | (facts or {}),
            installed=[_installed(slot) for slot in slots],
            floors=floors,
            endpoint=endpoint,
        )
        if self.connected:
            self._publish("inventory", inventory)
            self._skew_sent = skew
        return inventory

    def _report(self, fault: Fault) -> None:
        self.add(self._event(fault))

    def _event(self, fault: Fault) -> wire.FaultEvent:
        """The message of a fault, which is logged and on the status page from now on."""
        _log.warning("%s: %s", fault.cause, fault.detail)
        if fault.severity != "info":
            self.standing.note(fault, self._clock.monotonic())
        return wire.FaultEvent(
            **self._sender(),
            cause=fault.cause,
            detail=fault.detail[:_LONGEST],
            severity=fault.severity,
            count=fault.times,
            facts=fault.facts,
        )

    def _save(self) -> None:
        while self._unsaved:
            message, key = self._unsaved[0]
            immediately = self.connected and self._ports.outbox.waiting < WINDOW
            try:
                self._ports.outbox.add(message, key, number=immediately)
            except StorageError as error:
                due = self._faults.note(disk_fault(str(error)), self._clock.monotonic())
                if due is not None:
                    self._unsaved.append((self._event(due), ""))
                return
            self._unsaved.popleft()
        for fault in self._ports.outbox.faults():
            self.fault(fault)

    def _send(self) -> None:
        if not self.connected or not self._ports.outbox.waiting or not self._window.free:
            return
        now = self._clock.monotonic()
        if self._boot != self._ports.outbox.boot:  # numbers begin anew
            self._boot = self._ports.outbox.boot
            self._window.connect()
        try:
            after, before = self._window.start_after(now), self._ports.outbox.caught_up
            backlog = self._limiter.allowed(now, self.window_s)
            batch = self._ports.outbox.after(after, self._window.free, backlog)
            self._limiter.sent(self._ports.outbox.caught_up - before)
            for message in batch:
                topic = topics.up(self._identity.device, message.kind)
                self._ports.link.publish(topic, message.payload)
                self._window.sent(message.seq, now)
        except (LinkError, StorageError) as error:
            _log.debug("outbox not sent: %s", error)

    def _publish(self, kind: str, message: wire.Upward) -> None:
        topic = topics.up(self._identity.device, kind)
        try:
            self._ports.link.publish(topic, wire.encode(message), retain=True)
        except LinkError as error:
            _log.debug("%s not sent, waits for the next connection: %s", kind, error)

    def _status(self, *, online: bool) -> wire.Status:
        since = self.since_s if online else self._clock()
        return wire.Status(**self._sender(), online=online, since_s=since, session=self._session)

    def _with_time_request(self, status: wire.Status) -> wire.Status:
        """The status, which asks for the controller's time when that is due."""
        now = self._clock.monotonic()
        if not status.online or not self._clock.controller.due(now):
            return status
        self._clock.controller.asked(status.sent_s, now)
        return msgspec.structs.replace(status, asks_time=True)

    def _sender(self) -> dict[str, Any]:
        boot = self._ports.outbox.boot
        return {"device": self._identity.device, "boot": boot, "seq": 0, "sent_s": self._clock()}


def _installed(slot: Slot) -> wire.Installed:
    return wire.Installed(
        model=slot.model,
        release=slot.release,
        variant=slot.variant,
        sha256=slot.model_sha256,
        slot=slot.slot,
        role=slot.role,
        since_s=slot.since_s,
        timings_us=slot.timings_us,
    )
