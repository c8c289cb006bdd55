"""What the device says to the controller: kept until it is known to have arrived."""

import collections
import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from shoal import topics, wire
from shoal.agent.host.clock import DeviceClock
from shoal.agent.host.faults import Fault, Faults
from shoal.agent.installed.record import Record, Slot, State
from shoal.agent.telemetry.ports import ReporterPorts
from shoal.errors import LinkError, StorageError
from shoal.federated import messages
from shoal.profile import Profile

_log = logging.getLogger(__name__)

#: Messages kept in memory while the disk refuses; seconds after which a quiet device speaks up.
_UNSAVED, _STATUS_S = 200, 120.0
_LONGEST = 500
#: Most unacknowledged messages, and seconds until one is sent again.
WINDOW, RESEND_S = 64, 30.0
#: Backlog windows sent in the time of one window: a week offline takes three hours.
CATCH_UP = 60


class Identity(NamedTuple):
    """Who this device is. version: of the agent."""

    device: str
    site: str
    ring: str
    profile: Profile
    line: str = ""
    labels: dict[str, str] = {}  # noqa: RUF012 (a NamedTuple's default is never written to)
    facts: dict[str, Any] = {}  # noqa: RUF012
    version: str = ""


class CatchUp:
    """Rate limit of the backlog, relative to the fleet's window, so that new data never waits.

    A device sends a window each `window_s`; of its backlog it may send CATCH_UP times as many,
    starting up to `jitter_s` after it connected, so that a fleet does not start at once.

    >>> pace = CatchUp(); pace.connect(0.0, 10.0)
    >>> pace.allowed(5.0, 60.0), pace.allowed(11.0, 60.0), pace.allowed(15.0, 60.0)
    (0, 1, 5)
    >>> pace.sent(5); pace.allowed(15.0, 60.0)
    0
    """

    def __init__(self, most: int = WINDOW) -> None:
        self._most, self._tokens, self._at = most, 0.0, 0.0

    def connect(self, now_s: float, pause_s: float) -> None:
        """A new connection: nothing until `pause_s` from now."""
        self._tokens, self._at = 0.0, now_s + pause_s

    def allowed(self, now_s: float, window_s: float) -> int:
        """Number of backlog messages that may be sent now."""
        if now_s > self._at:
            rate = CATCH_UP / max(window_s, 1.0)
            self._tokens = min(self._most, self._tokens + (now_s - self._at) * rate)
            self._at = now_s
        return int(self._tokens)

    def sent(self, letters: int) -> None:
        self._tokens = max(0.0, self._tokens - letters)


class Courier:
    """Window of unacknowledged messages, in order; resends those without an acknowledgement.

    >>> courier = Courier()
    >>> courier.connect(); courier.sent(1, 0.0); courier.sent(2, 0.0)
    >>> courier.acked([1]); courier.start_after(10.0), courier.start_after(31.0)
    (2, 1)
    """

    def __init__(self, window: int = WINDOW, resend_s: float = RESEND_S) -> None:
        self._window, self._resend_s = window, resend_s
        self._under_way: dict[int, float] = {}
        self._last = 0

    def connect(self) -> None:
        """A new connection: unacknowledged messages may be lost and are sent again."""
        self._under_way.clear()
        self._last = 0

    def start_after(self, now_s: float) -> int:
        """The number after which to send next."""
        if self._under_way and now_s - min(self._under_way.values()) >= self._resend_s:
            self._last = min(self._under_way) - 1
            self._under_way.clear()
        return self._last

    @property
    def room(self) -> int:
        """Number of messages that may be sent before an acknowledgement."""
        return max(0, self._window - len(self._under_way))

    def sent(self, seq: int, now_s: float) -> None:
        self._under_way[seq] = now_s
        self._last = max(self._last, seq)

    def acked(self, seqs: Iterable[int]) -> None:
        for seq in seqs:
            self._under_way.pop(seq, None)


class Voice:
    """Reports, faults, status and inventory of one device.

    What is due after a while is timed by a clock that nobody sets.
    """

    def __init__(self, identity: Identity, ports: ReporterPorts, clock: DeviceClock) -> None:
        self._identity, self._ports, self._clock = identity, ports, clock
        self.connected, self.since_s, self._session = False, clock(), ""
        self._process, self._ups = f"{ports.random.getrandbits(32):08x}", 0
        self.told: collections.deque[str] = collections.deque(maxlen=5)
        self._courier, self._catch_up, self._faults = Courier(), CatchUp(), Faults()
        self.window_s, self.pause_s = 60.0, 0.0  # the fleet's pace, and this device's place in it
        self._unsaved: collections.deque[tuple[wire.Upward, str]] = collections.deque(
            maxlen=_UNSAVED
        )
        self._status_at, self._skew_told = 0.0, self._clock.skew

    def will(self) -> tuple[str, bytes]:
        """What the broker shall say when this connection is lost; names a new session."""
        chance = self._ports.random.getrandbits(32)
        self._session = f"{self._process}-{self._ups}-{chance:08x}"
        return topics.up(self._identity.device, "status"), wire.encode(self._status(online=False))

    def connection(self, up: bool) -> None:
        """The connection came or went."""
        self.connected, self.since_s = up, self._clock()
        if up:
            self._ups += 1
            self._courier.connect()
            self._catch_up.connect(self._clock.monotonic(), self.pause_s)
            self._ports.outbox.connected()
            self.status(online=True)

    def acked(self, ack: wire.Ack) -> None:
        """The controller's database has these."""
        self._ports.outbox.ack(ack.boot, ack.seqs)
        if ack.boot == self._ports.outbox.boot:
            self._courier.acked(ack.seqs)

    def update(self, record: Record) -> None:
        """Report the state that an attempt has reached: once, however often it is said."""
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
        """Report something wrong; what comes often is counted first."""
        told = self._faults.note(fault, self._clock.monotonic())
        if told is not None:
            self._tell(told)

    def add(self, message: wire.Upward, key: str = "") -> bool:
        """Into the outbox; kept in memory while the disk refuses. Whether all is on disk now."""
        named = msgspec.structs.replace(message, device=self._identity.device)
        self._unsaved.append((named, key))
        self._save()
        return self.saved

    @property
    def saved(self) -> bool:
        """Whether the disk has all that was said."""
        return not self._unsaved

    def due(self) -> None:
        """Whatever waits: held back faults, what the disk refused, what is not sent yet."""
        for fault in self._faults.due(self._clock.monotonic()):
            self._tell(fault)
        self._save()
        self._send()

    def answer(self, attempt: bytes, said: messages.DeviceMessage) -> bool:
        """Say something in a round, now or not at all: it is asked for again. Whether it went."""
        message = wire.RoundAnswer(**self._sender(), attempt=attempt, said=said)
        try:
            topic = topics.up(self._identity.device, "round")
            self._ports.link.publish(topic, wire.encode(message))
        except LinkError as error:
            _log.debug("a round's answer waits to be asked for again: %s", error)
            return False
        return True

    def heartbeat(self) -> None:
        """Say that this device is there, when it has said nothing for a while."""
        if self.connected and self._clock.monotonic() - self._status_at >= _STATUS_S:
            self.status(online=True)

    def status(self, *, online: bool) -> None:
        if self.connected:
            self._publish("status", self._asking(self._status(online=online)))
            self._status_at = self._clock.monotonic()

    def timed(self, time: wire.Time) -> None:
        """The controller has said what its clock shows."""
        self._clock.controller.answered(time.asked_s, time.now_s, self._clock.monotonic())

    @property
    def clock_news(self) -> bool:
        """Whether the controller should hear how far this clock is from its own."""
        skew, told = self._clock.skew, self._skew_told
        if skew is None:
            return False
        return told is None or abs(skew.skew_s - told.skew_s) > max(1.0, skew.error_s)

    def inventory(
        self,
        slots: Sequence[Slot],
        floors: dict[str, float],
        endpoint: str,
        facts: dict[str, Any] | None = None,
    ) -> wire.Inventory:
        """What is on the device, published and returned.

        slots   those that serve; facts: that may have changed since the start
        """
        who, skew = self._identity, self._clock.skew
        clock = {"clock_skew_s": skew.skew_s, "clock_error_s": skew.error_s} if skew else {}
        inventory = wire.Inventory(
            **self._sender(),
            agent=who.version,
            profile=who.profile.name,
            ring=who.ring,
            site=who.site,
            line=who.line,
            labels=who.labels,
            facts=who.facts | clock | (facts or {}),
            installed=[_installed(slot) for slot in slots],
            floors=floors,
            endpoint=endpoint,
        )
        if self.connected:
            self._publish("inventory", inventory)
            self._skew_told = skew
        return inventory

    def _tell(self, fault: Fault) -> None:
        _log.warning("%s: %s", fault.cause, fault.detail)
        if fault.severity != "info":
            self.told.append(f"{fault.cause}: {fault.detail}")
        self.add(
            wire.FaultEvent(
                **self._sender(),
                cause=fault.cause,
                detail=fault.detail[:_LONGEST],
                severity=fault.severity,
                count=fault.times,
                facts=fault.facts,
            )
        )

    def _save(self) -> None:
        while self._unsaved:
            message, key = self._unsaved[0]
            soon = self.connected and self._ports.outbox.waiting < WINDOW
            try:
                self._ports.outbox.add(message, key, number=soon)
            except StorageError as error:
                _log.warning("outbox: %s", error)
                return
            self._unsaved.popleft()
        for fault in self._ports.outbox.faults():
            self.fault(fault)

    def _send(self) -> None:
        if not self.connected or not self._ports.outbox.waiting or not self._courier.room:
            return
        now = self._clock.monotonic()
        try:
            after, before = self._courier.start_after(now), self._ports.outbox.caught_up
            backlog = self._catch_up.allowed(now, self.window_s)
            letters = self._ports.outbox.after(after, self._courier.room, backlog)
            self._catch_up.sent(self._ports.outbox.caught_up - before)
            for letter in letters:
                topic = topics.up(self._identity.device, letter.kind)
                self._ports.link.publish(topic, letter.payload)
                self._courier.sent(letter.seq, now)
        except (LinkError, StorageError) as error:
            _log.debug("sending waits: %s", error)

    def _publish(self, kind: str, message: wire.Upward) -> None:
        topic = topics.up(self._identity.device, kind)
        try:
            self._ports.link.publish(topic, wire.encode(message), retain=True)
        except LinkError as error:
            _log.debug("%s waits for the next connection: %s", kind, error)

    def _status(self, *, online: bool) -> wire.Status:
        since = self.since_s if online else self._clock()
        return wire.Status(**self._sender(), online=online, since_s=since, session=self._session)

    def _asking(self, status: wire.Status) -> wire.Status:
        """The same, asking for the controller's time when that is due."""
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
