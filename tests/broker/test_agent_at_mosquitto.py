"""A real agent process at a real Mosquitto, beside a client of MQTT 5; either is killed."""

import ssl
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from broker.real import Mosquitto
from ports import free_port
from real_agents import Process, enrol, put_in_service
from shoal import topics, wire
from shoal.agent.telemetry.io.outbox_store import SqliteOutbox
from shoal.agent.telemetry.reporter import RESEND_S
from waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.slow]


class Desk:
    """The controller's end, speaking MQTT 5: keeps what arrives by its number, and acks."""

    def __init__(self, port: int, pki: Path, protocol: int = paho.MQTTv5) -> None:
        self.port = port
        self.windows: dict[tuple[str, int], wire.WindowReport] = {}
        self.seqs: dict[str, set[int]] = {}
        self.twice = 0
        self.client = paho.Client(CallbackAPIVersion.VERSION2, "desk", protocol=protocol)
        context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
        context.load_cert_chain(pki / "controller.crt", pki / "controller.key")
        self.client.tls_set_context(context)
        self.client.reconnect_delay_set(0.1, 0.5)
        self.client.on_connect = self.greet
        self.client.on_message = self.take

    def start(self) -> None:
        self.client.connect("localhost", self.port)
        self.client.loop_start()

    def greet(self, client: paho.Client, *_: Any) -> None:
        client.subscribe(topics.ALL_UP, 1)
        client.publish(topics.BUDGET, wire.encode(wire.Budget(window_s=1.0)), 1, retain=True)

    def take(self, client: paho.Client, _: Any, message: paho.MQTTMessage) -> None:
        name, kind = topics.parse_up(message.topic)
        sent = wire.decode_up(kind, message.payload)
        if not sent.seq:
            return
        seen = self.seqs.setdefault(sent.boot, set())
        self.twice += sent.seq in seen
        seen.add(sent.seq)
        if isinstance(sent, wire.WindowReport):
            self.windows[sent.boot, sent.seq] = sent
        ack = wire.Ack(boot=sent.boot, seqs=[sent.seq])
        client.publish(topics.down(name, "ack"), wire.encode(ack), 1)

    def holes(self, until: int) -> set[int]:
        """Numbers up to `until` that have not arrived."""
        return set(range(1, until + 1)).difference(*self.seqs.values())

    def end(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def plant(tmp_path: Path):
    """(folder of an agent that serves and replays, broker, desk), all at one Mosquitto."""
    port = free_port()
    folder, pki, _ = enrol(tmp_path, broker=f"mqtts://localhost:{port}")
    put_in_service(folder)
    broker = Mosquitto(tmp_path / "broker", pki, port)
    broker.start()
    broker.admit(("cam-1",))
    desk = Desk(broker.port, pki)
    desk.start()
    yield folder, broker, desk
    desk.end()
    broker.stop()


def windows(desk: Desk) -> int:
    return len(desk.windows)


def wait_for_more(agent: Process) -> None:
    """Until the outbox of a running agent has another message."""

    def waiting() -> int:
        return agent.request("GET", "/status")[1]["waiting"]

    had = waiting()
    eventually(lambda: waiting() > had, "a window closes", 60)


def kept(folder: Path) -> set[int]:
    """Numbers that the outbox of an agent that has ended still holds."""
    outbox = SqliteOutbox(folder / "outbox.db", limit_bytes=1 << 26, boot_name=lambda: "unused")
    numbers = {letter.seq for letter in outbox.after(0, 1_000_000)}
    outbox.close()
    return numbers


@pytest.mark.timeout(300)
def test_no_window_is_lost_or_counted_twice_when_agent_or_broker_is_killed(plant) -> None:
    folder, broker, desk = plant
    agent = Process(folder)
    try:
        eventually(lambda: windows(desk) >= 2, "the first windows", 60)
        for victim in ("broker", "agent", "broker"):
            before = windows(desk)
            if victim == "broker":
                broker.kill9()
                wait_for_more(agent)  # a window closes while it is away
                broker.start()
            else:
                agent.end(9)
                agent = Process(folder)
            eventually(lambda old=before: windows(desk) >= old + 3, f"after {victim}'s death", 60)
        assert len(desk.seqs) == 1, "one outbox, one life"
        (numbers,) = desk.seqs.values()
        highest = max(numbers)
        # what a broker took and lost, with nobody subscribed, comes again when no ack came
        eventually(lambda: not desk.holes(highest), "what was lost on its way", 2 * RESEND_S)
        assert agent.end() == 0
    finally:
        agent.end(9)
    still = kept(folder)
    assert desk.holes(max(numbers | still)) <= still, "it arrived, or the device has it"
    starts = [window.window_start_s for window in desk.windows.values()]
    assert len(starts) == len(set(starts))
