"""Delivery at least once, effect exactly once: whatever is lost, doubled, late, or killed.

The real outbox and reporter of an agent, and the real ingest on a real database. hypothesis plays
the network, the broker and the power; only these are stand-ins.
"""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fakes import memory_folder
from fleet import MODEL, Fleet
from shoal import wire
from shoal.agent.host.clock import DeviceClock
from shoal.agent.telemetry.io.outbox_store import SqliteOutbox
from shoal.agent.telemetry.reporter import Identity, Reporter
from shoal.controller.fleet import ledger
from shoal.controller.ingest.ingest import ingest
from shoal.controller.monitoring import window_validation
from shoal.errors import LinkError
from shoal.profile import load_profiles
from shoal.wire import WindowReport

pytestmark = pytest.mark.scenario


class Network:
    """What is under way between a device and the controller; a broker that dies loses it all."""

    def __init__(self) -> None:
        self.connected = False
        self.up: list[tuple[str, bytes]] = []
        self.acks: list[wire.Ack] = []

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        if not self.connected:
            raise LinkError("not connected")
        if not retain:
            self.up.append((topic, payload))

    def die(self) -> None:
        self.up, self.acks, self.connected = [], [], False


class Journey(RuleBasedStateMachine):
    """Windows on their way from one device to the database."""

    fleet: Fleet
    reference: str
    names = 0

    @initialize()
    def begin(self) -> None:
        type(self).names += 1
        self.name = f"dev-{self.names}"
        self.fleet.station(self.name, start=False)
        self.network, self.now = Network(), self.fleet.clock()
        self.folder = tempfile.TemporaryDirectory(dir=self.fleet.folder)
        self.boots = random.Random(self.names)
        self.made = 0
        self.outbox: SqliteOutbox | None = None
        self.power_on()

    def teardown(self) -> None:
        if self.outbox is None:
            return
        try:
            self.all_is_well_again()
        finally:
            self.outbox.close()
            self.folder.cleanup()

    # ------------------------------------------------------------------ the device

    def power_on(self) -> None:
        self.outbox = SqliteOutbox(
            Path(self.folder.name) / "outbox.db",
            limit_bytes=24_000,  # more than may have a number: what has none can merge
            boot_name=lambda: f"{self.boots.getrandbits(64):016x}",
        )
        clock = DeviceClock(wall=lambda: self.now, monotonic=lambda: self.now)
        ports: Any = SimpleNamespace(outbox=self.outbox, link=self.network, random=random.Random(1))
        who = Identity(self.name, "north", "stable", load_profiles()["x86-vnni"])
        self.reporter = Reporter(who, ports, clock)

    @rule(count=st.integers(1, 40))
    def windows_close(self, count: int) -> None:
        for _ in range(count):
            self.made += 1
            self.reporter.add(self.window(self.made))

    def window(self, number: int) -> WindowReport:
        return WindowReport(
            device="", boot="", seq=0, sent_s=self.now, model=MODEL, release=f"{MODEL}@1",
            reference=self.reference, window_start_s=self.now + number / 1e3, window_s=1e-3, rows=0,
            errors=1, latency=[1], labelled=number,
        )  # fmt: skip

    @rule(seconds=st.sampled_from([0.5, 5.0, 31.0, 300.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.reporter.tick()

    @rule()
    def the_device_is_killed(self) -> None:
        assert self.outbox is not None
        self.outbox.close()
        self.network.connected = False
        self.power_on()

    # ------------------------------------------------------------------ what lies between

    @rule()
    def the_connection_comes(self) -> None:
        if not self.network.connected:
            self.network.connected = True
            self.reporter.on_connection(True)

    @rule()
    def the_connection_goes(self) -> None:
        if self.network.connected:
            self.network.connected = False
            self.reporter.on_connection(False)

    @rule()
    def the_broker_is_killed(self) -> None:
        self.network.die()
        if self.reporter.connected:
            self.reporter.on_connection(False)

    @rule(dice=st.randoms(use_true_random=False))
    def messages_are_lost_doubled_and_shuffled(self, dice: random.Random) -> None:
        up = self.network.up
        self.network.up = [m for m in up for _ in range(dice.choice((0, 1, 1, 2)))]
        dice.shuffle(self.network.up)
        dice.shuffle(self.network.acks)

    # ------------------------------------------------------------------ the controller

    @rule(most=st.integers(1, 50), dies=st.sampled_from(["not", "before", "after"]))
    def the_controller_takes_a_batch(self, most: int, dies: str) -> None:
        """dies: when it is killed; before the commit nothing is kept, after it nothing is acked."""
        batch = self.network.up[:most]
        del self.network.up[:most]
        if dies == "before" or not batch:
            return
        acks = ingest(self.fleet.ctx, batch).get(self.name, [])
        if dies == "not":
            self.network.acks += acks

    @rule(again=st.booleans())
    def acks_arrive(self, again: bool) -> None:
        acks = list(self.network.acks)
        if not again:
            self.network.acks = []
        for ack in acks:
            self.reporter.on_ack(ack)

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def no_window_counts_twice(self) -> None:
        if getattr(self, "outbox", None) is None:
            return
        found = self.stored()
        assert sum(row.labelled for row in found) <= self.made * (self.made + 1) // 2
        assert sum(row.merged for row in found) <= self.made

    def stored(self) -> list[Any]:
        return self.fleet.windows(self.name)

    def all_is_well_again(self) -> None:
        """The network recovers for good: then everything arrives, once, and the outbox is empty."""
        assert self.outbox is not None
        self.the_broker_is_killed()
        self.the_connection_comes()
        for _ in range(200):
            self.time_passes(31.0)
            while self.network.up:
                self.the_controller_takes_a_batch(500, "not")
            self.acks_arrive(again=False)
            if not self.outbox.waiting:
                break
        assert self.outbox.waiting == 0
        found = self.stored()
        assert sum(row.labelled for row in found) == self.made * (self.made + 1) // 2
        assert sum(row.merged for row in found) == self.made
        assert sum(book.missing for book in ledger.ledgers(self.fleet.ctx, self.name)) == 0


@pytest.fixture
def journey() -> Iterator[type[Journey]]:
    """Journeys to one controller, with one release."""
    with memory_folder() as folder:
        Journey.fleet = Fleet(folder)
        Journey.fleet.release()
        with Journey.fleet.ctx.store.read() as db:
            Journey.reference = window_validation.references_of(db, f"{MODEL}@1").id
        yield Journey


def test_while_the_controller_is_away_windows_merge_and_none_is_dropped(
    journey: type[Journey],
) -> None:
    """The broker takes everything, and nobody acknowledges."""
    one = journey()
    one.begin()
    one.the_connection_comes()
    for _ in range(50):
        one.windows_close(10)
        one.time_passes(31.0)
    assert one.made == 500
    one.teardown()


def test_every_window_counts_exactly_once_whatever_is_lost_doubled_late_or_killed(
    journey: type[Journey],
) -> None:
    run_state_machine_as_test(
        journey,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
