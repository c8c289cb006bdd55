"""Attack: one enrolled device sends as fast as it can, to stop what the others have to say."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import insert, select

from broker.conftest import authority  # noqa: F401 - a fixture
from broker.real import ENROLLED, Mosquitto, Nats, Party, Site, running_site
from controllers import make_context
from shoal import wire
from shoal.controller.alerts import alerts
from shoal.controller.broker.io.process import AccessUpdater, EnrolledDevices
from shoal.controller.engine import Engine
from shoal.controller.fleet.io.ca import Authority
from shoal.controller.host.context import Context
from shoal.controller.host.settings import Network
from shoal.controller.ingest import flooding
from shoal.controller.ingest.io.intake import Intake
from shoal.controller.ingest.message_budgets import (
    CUT_AFTER_S,
    SAVED_S,
    Excess,
    MessageBudgets,
    Rates,
)
from shoal.controller.store import tables
from shoal.mqtt import Link
from shoal.topics import up
from waiting import eventually

RATES = Rates(messages_s=50.0, bytes_s=1 << 20)
FLOODER, HONEST = ENROLLED


class Running:
    """A controller's engine and access list at a real broker, as its processes run them."""

    def __init__(self, ctx: Context, site: Site) -> None:
        self.ctx, self.site = ctx, site
        self._stopping = threading.Event()
        self._engine = Engine(ctx, self._stopping, [], Link, time.monotonic)
        self._threads = [
            threading.Thread(target=self._engine.run),
            threading.Thread(target=self._admit),
        ]
        for thread in self._threads:
            thread.start()

    def set_devices(self, devices: frozenset[str]) -> None:
        self.site.broker.admit(tuple(sorted(devices)))

    @property
    def is_listening(self) -> bool:
        """Whether the broker has accepted the engine's subscriptions: what it hears is kept."""
        return self._engine._link.connected

    def ingested(self) -> int:
        """Messages that the engine has stored, or refused for good."""
        found = self._engine._metrics.registry.get_sample_value("shoal_ingest_messages_total")
        return int(found or 0)

    def _admit(self) -> None:
        updater = AccessUpdater(EnrolledDevices(self.ctx.store), self, frozenset(ENROLLED))
        while not self._stopping.wait(updater.poll()):
            pass

    def end(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(20)


@pytest.fixture(params=[Nats, Mosquitto], ids=["nats-server", "mosquitto"])
def running(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    authority: Authority,  # noqa: F811
) -> Iterator[Running]:
    with running_site(request.param, tmp_path, authority) as site:
        folder = tmp_path / "controller"
        folder.mkdir()
        (folder / "pki").symlink_to(authority.folder)
        ctx = make_context(folder, time.time)
        network = Network(names=["127.0.0.1"], broker=f"mqtts://127.0.0.1:{site.broker.port}")
        settings = msgspec.structs.replace(ctx.settings, network=network)
        ctx = ctx._replace(settings=settings)
        empty: dict[str, object] = {"labels": {}, "releases": {}, "variants": {}, "facts": {}}
        rows = [{"name": n, "state": "enrolled", "enrolled_at": 1.0, **empty} for n in ENROLLED]
        with ctx.store.write() as db:
            db.execute(insert(tables.device), rows)
        made = Running(ctx, site)
        eventually(lambda: made.is_listening, "the engine's subscriptions")
        yield made
        made.end()
        ctx.store.close()


class Honest:
    """A device with something to say twice a second.

    ahead   for each message that was acknowledged: how many messages of anybody the engine had
            ingested in the meantime. In this unit a wait does not depend on the machine
    """

    def __init__(self, site: Site, ingested: Callable[[], int]) -> None:
        self._ingested = ingested
        self.sent: dict[int, int] = {}
        self.ahead: dict[int, int] = {}
        self.party: Party = site.device(HONEST, on_message=self._hear).connect()

    def say(self) -> None:
        seq = len(self.sent) + 1
        said = wire.FaultEvent(
            device=HONEST, boot="b", seq=seq, sent_s=time.time(), cause="hot", detail="61 degrees"
        )
        self.sent[seq] = self._ingested()
        self.party.link.publish(up(HONEST, "event"), wire.encode(said))

    def _hear(self, topic: str, payload: bytes) -> None:
        if topic.endswith("/ack"):
            ack = wire.decode_down("ack", payload)
            assert isinstance(ack, wire.Ack)
            for seq in ack.seqs:
                self.ahead.setdefault(seq, self._ingested() - self.sent[seq])


def flood(site: Site, seconds: float, qos: int) -> "subprocess.Popen[str]":
    certificate = site.certificate(FLOODER)
    words = [site.broker.port, site.broker.pki / "ca.pem", certificate, FLOODER, seconds, qos]
    program = Path(__file__).with_name("flooder.py")
    process = subprocess.Popen(
        [sys.executable, str(program), *map(str, words), "window"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def flood_alerts(ctx: Context) -> list[str]:
    """Details of the alerts of devices that send too much and are cut off."""
    found = [one for one in alerts.list_alerts(ctx) if one.title.endswith("more than its budget")]
    assert {one.title.split()[0] for one in found} <= {FLOODER}
    return [one.detail for one in found if "refuses its connection" in one.detail]


def heard_faults(ctx: Context) -> list[int]:
    """Sequence numbers of the honest device's faults in the store, sorted."""
    event = tables.device_event.c
    with ctx.store.read() as db:
        found = select(event.seq).where(event.device == HONEST, event.cause == "hot")
        return sorted(db.scalars(found))


@pytest.mark.broker
def test_the_others_are_heard_in_time_and_the_flooder_is_cut_off(running: Running) -> None:
    honest = Honest(running.site, running.ingested)
    honest.say()
    eventually(lambda: 1 in honest.ahead, "the engine acks")
    began = time.monotonic()
    is_nats = running.site.broker.name == "nats-server"
    process = flood(running.site, 30.0 if is_nats else 2.0, qos=1)
    try:
        while process.poll() is None:
            honest.say()
            time.sleep(0.5)
    finally:
        process.kill()
        said, _ = process.communicate(timeout=20)
    sent, end = said.split()
    if is_nats:  # Mosquitto takes the rights, not the connection
        assert end == "cut"
    eventually(lambda: len(flood_alerts(running.ctx)) == 1, "an alert")
    assert EnrolledDevices(running.ctx.store).names() == {HONEST}
    eventually(lambda: len(honest.ahead) == len(honest.sent), "every honest message is kept", 60)
    assert heard_faults(running.ctx) == sorted(honest.sent)
    assert int(sent) > 1_000
    # No more than its budget goes before: about 500 messages. In one queue, first come, it was
    # 10 000 to 50 000.
    budget = RATES.messages_s * (SAVED_S + time.monotonic() - began)
    assert max(honest.ahead.values()) < budget + len(honest.sent), (honest.ahead, budget)


def test_turns_are_taken_by_device_however_much_one_has_queued() -> None:
    intake = Intake(Rates(1_000.0, 1e9), lambda: 0.0)
    for i in range(500):
        intake.put(up("cam-a", "window"), b"%d" % i)
    intake.put(up("cam-b", "window"), b"honest")
    assert [payload for _, payload in intake.take(3)] == [b"0", b"honest", b"1"]


def test_a_queue_that_is_full_keeps_a_place_for_who_has_nothing_in_it() -> None:
    intake = Intake(Rates(1e6, 1e12), lambda: 0.0)
    big = b"x" * 262_144
    while intake.put(up("cam-a", "window"), big):
        pass
    assert intake.put(up("cam-b", "window"), big)
    assert not intake.put(up("cam-b", "window"), big)
    assert intake.take_excess()[0].cut is False, "a full queue is nobody's fault"


def test_what_is_refused_as_garbage_counts_double() -> None:
    intake = Intake(RATES, lambda: 0.0)
    for _ in range(250):
        assert intake.put(up("cam-a", "event"), b"\xc1")
        intake.charge("cam-a")
    assert not intake.put(up("cam-a", "event"), b"\xc1")
    assert intake.put(up("cam-b", "event"), b"\xc1")


def test_a_message_above_the_limit_of_its_kind_is_not_even_queued() -> None:
    intake = Intake(RATES, lambda: 0.0)
    assert not intake.put(up("cam-a", "status"), b"x" * 5_000)
    assert not intake.put(up("cam-a", "no-kind"), b"x")
    assert [one.messages for one in intake.take_excess()] == [2]


def test_rounds_have_budgets_of_their_own_and_end_with_them() -> None:
    intake = Intake(RATES, lambda: 0.0)
    admitted = sum(intake.admit_round(up("cam-a", "round"), b"x" * 1_000) for _ in range(20_000))
    assert 1_000 < admitted < 5_000
    assert intake.bell.is_set()
    assert intake.put(up("cam-a", "window"), b"x"), "its telemetry goes on"


def test_an_agent_that_sends_again_what_was_refused_is_never_cut_off() -> None:
    """64 messages in flight, of the largest kind, again every 30 s, after a week without a link."""
    now = [0.0]
    budgets = MessageBudgets(RATES, lambda: now[0])
    waiting = 2_000
    while waiting:
        kept = sum(budgets.admit("cam-a", 262_144) for _ in range(min(64, waiting)))
        assert kept > 0
        waiting -= kept
        now[0] += 30.0
        assert not any(one.cut for one in budgets.take_excess())


def test_a_device_that_goes_on_is_cut_off_and_each_time_for_longer(tmp_path: Path) -> None:
    now = [1_000.0]
    ctx = make_context(tmp_path, lambda: now[0])
    empty: dict[str, object] = {"labels": {}, "releases": {}, "variants": {}, "facts": {}}
    with ctx.store.write() as db:
        row = {"name": FLOODER, "state": "enrolled", "enrolled_at": 1.0, **empty}
        db.execute(insert(tables.device), [row])
    enrolled = EnrolledDevices(ctx.store, lambda: now[0])
    for wait_s in (60.0, 120.0):
        flooding.record(ctx, [Excess(FLOODER, 2_000, 500_000, cut=True)])
        flooding.record(ctx, [Excess(FLOODER, 2_000, 500_000, cut=True)])  # was on its way
        before = enrolled.fingerprint()
        assert enrolled.names() == frozenset()
        now[0] += wait_s - 1.0
        assert enrolled.names() == frozenset()
        now[0] += 2.0
        assert enrolled.names() == {FLOODER}
        assert enrolled.fingerprint() != before
    now[0] += flooding.CALM_S
    flooding.close_alerts(ctx)
    assert [alert.state for alert in alerts.list_alerts(ctx)] == ["closed"]
    ctx.store.close()


def test_one_that_was_never_enrolled_gets_no_row(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    flooding.record(ctx, [Excess("cam-z", 2_000, 500_000, cut=True)])
    assert alerts.list_alerts(ctx) == []
    ctx.store.close()


def test_the_budget_that_ends_a_connection_is_far_above_what_is_refused_by_chance() -> None:
    budgets = MessageBudgets(RATES, lambda: 0.0)
    free = sum(budgets.admit("cam-a", 100) for _ in range(5_000))
    [excess] = budgets.take_excess()
    assert excess.cut
    assert free == 500
    assert CUT_AFTER_S * RATES.messages_s == 1_000
