"""The control loop: dispatches messages and results to updates, telemetry, serving and rounds.

Items come in by `Inbox.post` from any thread; `tick` processes them. It is synchronous and takes
its clocks and adapters as arguments, so that tests run whole fleets on a virtual clock.
"""

import collections
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from shoal import wire
from shoal.agent.federated.client import Callbacks, RoundClient
from shoal.agent.federated.ports import FederatedPorts
from shoal.agent.feeds.frames import FeedHealth
from shoal.agent.host.clock import DeviceClock
from shoal.agent.host.faults import Fault, disk_fault
from shoal.agent.host.ports import HostPorts
from shoal.agent.installed.record import Record
from shoal.agent.serving.served_model import ServedModel
from shoal.agent.serving.throttling import Throttling
from shoal.agent.status import DeviceStatus, ModelStatus, model_status
from shoal.agent.telemetry.reporter import Identity, Reporter, ReporterPorts
from shoal.agent.update.ports import UpdatePorts, UpdateSettings
from shoal.agent.update.runner import Callbacks as UpdateCallbacks
from shoal.agent.update.runner import Updates
from shoal.errors import ExpiredError, StorageError, TrustError, WireError
from shoal.federated import messages
from shoal.trust import director_expiry_s

_log = logging.getLogger(__name__)

#: Seconds: longest sleep between ticks, pause before an item is processed again after a disk error.
LONGEST_S, RETRY_S = 1.0, 2.0


#: A function to run on the control loop, or a fault to report.
Item = Callable[[], None] | Fault


class Inbox:
    """Queue of the control loop, for any thread. wake: called after each item."""

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self._items: collections.deque[Item] = collections.deque()
        self._wake = wake

    def post(self, item: Item) -> None:
        self._items.append(item)
        self._wake()

    def on_fault(self, fault: Fault) -> None:
        """Report a fault of another thread."""
        self.post(fault)

    def pop(self) -> Item | None:
        """The oldest item; None when there is none."""
        return self._items.popleft() if self._items else None

    @property
    def waiting(self) -> int:
        return len(self._items)


def _latest_s(director_root: bytes) -> float:
    """Upper bound of the clock's floor: the expiry of the director's root; inf if it is unreadable.

    No assignment is accepted by an unreadable root; the committed releases go on serving.
    """
    try:
        return director_expiry_s(director_root)
    except TrustError:
        return math.inf


class Agent:
    """The agent of one device.

    host, updates, reporter   ports of each domain
    rounds          ports of federated learning, None where it is not available
    director_root   TUF root.json with the keys that sign assignments
    window_s        length of a window until the controller sends the fleet's budget
    facts           facts of the inventory that may change while it runs
    """

    def __init__(
        self,
        identity: Identity,
        host: HostPorts,
        *,
        updates: UpdatePorts,
        reporter: ReporterPorts,
        rounds: FederatedPorts | None = None,
        director_root: bytes,
        settings: UpdateSettings = UpdateSettings(),  # noqa: B008 (immutable)
        window_s: float = 60.0,
        inbox: Inbox | None = None,
        facts: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.identity, self._host = identity, host
        self._journal, self._outbox = updates.journal, reporter.outbox
        self._loader = updates.loader
        self._endpoint, self._facts = "", facts
        self.restart_requested = self.started = False
        self.serving: dict[str, ServedModel] = {}
        self._inbox = inbox if inbox is not None else Inbox()
        self.post, self.on_fault = self._inbox.post, self._inbox.on_fault
        floors = updates.journal.floors().until(_latest_s(director_root))
        self.clock = DeviceClock(
            wall=host.wall, monotonic=host.monotonic, floor_s=floors.time_s,
            disciplined=host.disciplined,
        )  # fmt: skip
        self.reporter = Reporter(identity, reporter, self.clock)
        self.updates = Updates(
            identity,
            updates,
            self.reporter,
            self.clock,
            settings,
            UpdateCallbacks(self._serving, self._health, self.inventory, self.post),
            floors=floors,
            director_root=director_root,
        )
        self._window_s, self._jitter = window_s, host.random.random()
        self.reporter.window_s = window_s
        self.throttling = Throttling(
            updates.loader,
            host,
            identity.profile,
            health=self._health,
            fault=self.on_fault,
            report=self.reporter.add,
            post=self.post,
        )
        self.rounds = self._round_client(rounds)
        self._reported_facts: dict[str, Any] = {}
        self._jitter_s = self._window_end = 0.0
        self._later: list[tuple[float, Item]] = []

    # ------------------------------------------------------------------ from other threads

    def on_message(self, topic: str, payload: bytes) -> None:
        """A message from the broker arrived."""
        self.post(lambda: self._process_message(topic, payload))

    def on_connection(self, up: bool) -> None:
        """The connection to the broker was made or lost."""
        self.post(lambda: self._process_connection(up))

    def on_director_root(self, root: bytes) -> None:
        """The director has a new root, signed by its predecessor."""
        self.post(lambda: self.updates.follow_director(root))

    # ------------------------------------------------------------------ start, tick, stop

    def start(self, endpoint: str = "") -> None:
        """Load the committed release of each model and resume interrupted updates.

        endpoint   address of the local endpoint, for the inventory
        """
        self._endpoint = endpoint
        if self._journal.lost:
            self.reporter.fault(Fault("journal-lost", self._journal.lost, "critical"))
        if self._journal.degraded:
            detail = f"{self._journal.degraded}; what was committed serves, updates wait"
            self.reporter.fault(disk_fault(detail))
        self.updates.start()
        self.started = True
        if self.rounds is not None:
            self._contain(self.rounds.start)
        self._schedule_window()
        self._loader.trim()

    def tick(self) -> float:
        """Process the inbox and what is due; seconds until the next call."""
        while (item := self._inbox.pop()) is not None:
            self._process(item)
        now = self._host.monotonic()
        for item in [item for at, item in self._later if at <= now]:
            self._process(item)
        self._later = [(at, item) for at, item in self._later if at > now]
        self.updates.tick()
        self.throttling.tick(self.serving, self.updates.is_idle)
        self._close_windows()
        self.reporter.disk_refuses = bool(self._journal.degraded)
        self.reporter.tick()
        idle = min(LONGEST_S, self._window_end - self.clock(), self._tick_rounds())
        return 0.0 if self._inbox.waiting else max(0.0, idle)

    def stop(self) -> None:
        """Stop cleanly: cancel jobs, save the open windows, report the device offline."""
        self.updates.stop()
        if self.rounds is not None:
            self._contain(self.rounds.stop)
        self._window_end = 0.0
        self._close_windows()
        self.reporter.tick()
        self.reporter.status(online=False)

    def status(
        self, feeds: Sequence[FeedHealth] = (), peers: str = "", link_fault: str = ""
    ) -> DeviceStatus:
        """Everything on the status page.

        peers        a line on sharing downloads
        link_fault   why the broker is not connected
        """
        return DeviceStatus(
            device=self.identity.device,
            site=self.identity.site,
            profile=self.identity.profile.name,
            ring=self.identity.ring,
            agent=self.identity.version,
            now_s=self.clock(),
            running=True,
            connected=self.reporter.connected,
            connection_since_s=self.reporter.since_s,
            connection_fault="" if self.reporter.connected else link_fault,
            clock_synced=self.clock.synced,
            clock=self.clock.skew,
            endpoint=self._endpoint,
            sharing=peers,
            waiting=self.reporter.waiting,
            models=[self._model_status(record) for record in self.updates.records],
            faults=self.reporter.standing.texts,
            health=msgspec.to_builtins(self._health()),
            feeds=list(feeds),
            level=self.throttling.level.current.name,
            learning=self.rounds.status_line if self.rounds is not None else "",
        )

    # ------------------------------------------------------------------ items of the inbox

    def _process(self, item: Item) -> None:
        try:
            if isinstance(item, Fault):
                self.reporter.fault(item)
            else:
                item()
        except (WireError, TrustError) as error:
            severity = "critical" if isinstance(error, TrustError) else "warning"
            cause, detail = error.code, str(error)
            if isinstance(error, ExpiredError) and self.clock.fault:
                cause, detail = "clock", f"{error.message}: {self.clock.fault}; set it"
            self.reporter.fault(Fault(cause, detail, severity))
        except StorageError as error:
            self._later.append((self._host.monotonic() + RETRY_S, item))
            self.reporter.fault(disk_fault(str(error)))

    def _process_connection(self, up: bool) -> None:
        self.reporter.on_connection(up)
        self.inventory()

    def _process_message(self, topic: str, payload: bytes) -> None:
        kind = topic.rpartition("/")[2]
        if kind == "assignment" and not payload:
            return  # the broker forgets what it retained: there is nothing to follow
        message = wire.decode_down(kind, payload)
        if isinstance(message, wire.Assignment):
            self.updates.on_assignment(message, payload)
        elif isinstance(message, wire.Ack):
            self.reporter.on_ack(message)
        elif isinstance(message, wire.Time):
            self.reporter.on_time(message)
            self._report_clock_change()
        elif isinstance(message, wire.Budget):
            self._on_budget(message)
        elif isinstance(message, wire.Command):
            self._on_command(message)
        elif isinstance(message, wire.RoundCall):
            self._on_round_call(message)

    def _on_round_call(self, call: wire.RoundCall) -> None:
        rounds = self.rounds
        if rounds is not None:
            self._catch_bugs(lambda: rounds.on_call(call))
        elif not isinstance(call.said, messages.Dismiss):
            self.reporter.answer(call.attempt, messages.Refuse(reason="not-enabled"))

    def _on_budget(self, budget: wire.Budget) -> None:
        if budget.window_s >= 1.0 and (budget.window_s, budget.jitter_s) != (
            self._window_s,
            self._jitter_s,
        ):
            self._window_s, self._jitter_s = budget.window_s, budget.jitter_s
            self.reporter.window_s = budget.window_s
            self.reporter.pause_s = self._jitter * budget.jitter_s
            self._schedule_window()

    def _on_command(self, command: wire.Command) -> None:
        if command.expires_at_s < self.clock():
            return
        if command.verb == "report":
            self.inventory()
        elif command.verb == "log-level":
            logging.getLogger("shoal").setLevel(str(command.args.get("level", "INFO")).upper())
        elif command.verb == "restart":
            self.restart_requested = True
        else:
            detail = f"command {command.verb[:40]!r}: update the agent"
            self.reporter.fault(Fault("unknown-command", detail))

    # ------------------------------------------------------------------ reports

    def _schedule_window(self) -> None:
        """End windows at multiples of their length, plus this device's jitter."""
        now, length = self.clock(), self._window_s
        jitter = self._jitter * self._jitter_s
        self._window_end = ((now - jitter) // length + 1) * length + jitter

    def _close_windows(self) -> None:
        left_s = self._window_end - self.clock()
        # More than a window is left when the clock was set back.
        if 0 < left_s <= self._window_s + self._jitter_s:
            return
        health = self._health()
        for serving in self.serving.values():
            report = serving.collect(health)
            if report is not None:
                self.reporter.add(report)
        self._schedule_window()
        self._report_clock_change()
        self._report_row_changes()
        self.reporter.heartbeat()
        self._loader.trim()

    def inventory(self) -> wire.Inventory:
        """Report what is on the device."""
        engines = [serving.engine for serving in self.serving.values()]
        return self.reporter.inventory(
            [engine.slot for engine in engines if engine is not None],
            self.updates.floors.flat(),
            self._endpoint,
            self._facts() | self._round_facts(),
        )

    def _round_facts(self) -> dict[str, Any]:
        """Facts for client selection; empty where the device takes no part in rounds."""
        found: dict[str, Any] = {}
        if self.rounds is not None:
            self._contain(lambda: found.update(learning=self._row_facts()))
        return found

    def _row_facts(self) -> dict[str, Any]:
        assert self.rounds is not None
        self._reported_facts = self.rounds.facts()
        return self._reported_facts

    def _report_row_changes(self) -> None:
        """Report the inventory again when the row counts have changed."""
        before = self._reported_facts
        if self._round_facts().get("learning", {}) != before:
            self.inventory()

    def _report_clock_change(self) -> None:
        if self.reporter.clock_changed:
            self.inventory()

    def _health(self) -> wire.Health:
        """Health of the machine, with clock and throttling of the agent."""
        found = self._host.health()
        return msgspec.structs.replace(
            found,
            clock_synced=self.clock.synced,
            clock=self.clock.skew or msgspec.UNSET,
            throttled=found.throttled or self.throttling.is_active,
            outbox=self.reporter.waiting,
        )

    def _model_status(self, record: Record) -> ModelStatus:
        serving = self.serving.get(record.model)
        slot = serving.engine.slot if serving and serving.engine else None
        vitals = serving.vitals if serving else None
        return model_status(
            record,
            slot,
            requests=vitals.requests if vitals else 0,
            errors=vitals.errors if vitals else 0,
        )

    def _round_client(self, ports: FederatedPorts | None) -> RoundClient | None:
        if ports is None:
            return None
        return RoundClient(
            self.identity.device,
            ports,
            self.clock,
            Callbacks(
                answer=self.reporter.answer,
                post=lambda finish: self.post(lambda: self._catch_bugs(finish)),
                fault=self.reporter.fault,
                serving=self.serving,
                throttled=lambda: self.throttling.is_active,
                seen=lambda: self.updates.floors.seen,
            ),
        )

    def _tick_rounds(self) -> float:
        """Tick the round client; seconds until its next tick."""
        if self.rounds is None:
            return LONGEST_S
        due = [LONGEST_S]
        rounds = self.rounds
        self._contain(lambda: due.append(rounds.tick()))
        return min(due)

    def _catch_bugs(self, work: Callable[[], None]) -> None:
        """Contain any error to the round; the device keeps serving."""
        try:
            work()
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 see above
            _log.exception("in a round")
            self.reporter.fault(Fault("agent-bug", f"in a round: {type(error).__name__}: {error}"))

    def _contain(self, work: Callable[[], None]) -> None:
        """Contain disk errors, too, to the round."""
        try:
            self._catch_bugs(work)
        except StorageError as error:
            self.reporter.fault(disk_fault(str(error)))

    def _serving(self, model: str) -> ServedModel:
        if model not in self.serving:
            self.serving[model] = ServedModel(
                model, clock=self.clock, timer=self._host.timer, lock=self._host.lock()
            )
        return self.serving[model]
