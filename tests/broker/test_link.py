"""The Link, and what brokers keep: last will, retained, sessions, and kill -9 of the broker."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from broker.five import MosquittoOfFive
from broker.real import Mosquitto, Nats, Party, Site, Wire, running_site
from ports import free_port
from shoal.controller.fleet.io.ca import Authority
from shoal.errors import LinkError
from shoal.mqtt import Link
from shoal.topics import all_down, down, up
from waiting import eventually

pytestmark = pytest.mark.broker


@pytest.fixture(
    params=[Nats, Mosquitto, MosquittoOfFive], ids=["nats-server", "mosquitto", "mqtt 5 alone"]
)
def site(request: pytest.FixtureRequest, tmp_path: Path, authority: Authority) -> Iterator[Site]:
    """A running broker: of MQTT 3.1.1 alone, of both versions, of MQTT 5 alone."""
    with running_site(request.param, tmp_path, authority) as made:
        yield made


def test_a_device_that_vanishes_is_spoken_for_by_its_retained_last_will(site: Site):
    controller, device = site.controller().connect(), site.device("cam-a").connect()
    device.link._client.socket().close()
    eventually(lambda: (up("cam-a", "status"), b"gone") in controller.received, "the last will")
    late = site.controller(client_id="later", clean_session=True)
    controller.link.stop()
    late.connect()
    eventually(lambda: (up("cam-a", "status"), b"gone") in late.received, "the will, retained")


def test_a_device_that_disconnects_cleanly_leaves_no_will(site: Site):
    controller, device = site.controller().connect(), site.device("cam-a").connect()
    device.link.stop()
    other = site.device("cam-b").connect()
    other.link.publish(up("cam-b", "window"), b"marker")
    eventually(lambda: b"marker" in controller.payloads(), "the marker")
    assert b"gone" not in controller.payloads()


def test_the_will_is_asked_for_at_every_connection(site: Site):
    asked = []

    def will() -> tuple[str, bytes]:
        asked.append(b"session %d" % len(asked))
        return up("cam-a", "status"), asked[-1]

    controller, device = site.controller().connect(), site.device("cam-a", will=will).connect()
    for session in (1, 2):
        eventually(lambda n=session: device.ups == n and device.link.connected, "a connection")
        will = asked[-1]
        device.link._client.socket().close()
        eventually(lambda text=will: text in controller.payloads(), f"the will {will}")
    assert len(set(asked)) == len(asked)


def test_an_order_waits_retained_for_a_device_that_comes_late(site: Site):
    site.controller().connect().link.publish(down("cam-a", "assignment"), b"order", retain=True)
    device = site.device("cam-a").connect()
    eventually(lambda: b"order" in device.payloads(), "the retained order")


def test_retained_orders_and_queued_messages_survive_kill_9_of_the_broker(site: Site):
    controller, device = site.controller().connect(), site.device("cam-a").connect()
    device.link.stop()
    controller.link.publish(down("cam-a", "assignment"), b"order", retain=True)
    controller.link.publish(down("cam-a", "command"), b"queued")
    eventually(lambda: controller.link._unacked == 0, "the broker has them")
    if site.broker.name == "mosquitto":
        eventually(lambda: site.broker.has_written(b"order", b"queued"), "its store")
    site.broker.kill9()
    site.broker.start()
    again = site.device("cam-a").connect()
    eventually(lambda: {b"order", b"queued"} <= set(again.payloads()), "order and queued command")


def test_the_link_reconnects_after_kill_9_of_the_broker_and_receives_again(site: Site):
    controller, device = site.controller().connect(), site.device("cam-a").connect()
    site.broker.kill9()
    eventually(lambda: not device.link.connected, "the link notices")
    with pytest.raises(LinkError, match="broker"):
        device.link.publish(up("cam-a", "window"), b"lost")
    site.broker.start()
    eventually(lambda: device.link.connected and controller.link.connected, "both are back")
    device.link.publish(up("cam-a", "window"), b"after")
    controller.link.publish(down("cam-a", "ack"), b"after")
    eventually(lambda: b"after" in controller.payloads(), "upward")
    eventually(lambda: b"after" in device.payloads(), "downward")


def test_what_was_on_its_way_at_kill_9_arrives_after_it(site: Site):
    controller, device = site.controller().connect(), site.device("cam-a").connect()
    sent = [b"%d" % n for n in range(200)]
    for number, payload in enumerate(sent):
        if number == 100:
            site.broker.kill9()
            site.broker.start()
            eventually(lambda: device.link.connected and controller.link.connected, "both back")
        device.link.publish(up("cam-a", "window"), payload)
    eventually(lambda: set(sent[100:]) <= set(controller.payloads()), "all after the kill")
    eventually(lambda: device.link._unacked == 0, "all acknowledged")


def test_an_exception_in_on_message_does_not_end_the_link(site: Site, caplog):
    seen = []

    def stumble(topic: str, payload: bytes) -> None:
        seen.append(payload)
        raise ValueError("boom")

    controller = site.controller().connect()
    device = site.device("cam-a", on_message=stumble).connect()
    controller.link.publish(down("cam-a", "ack"), b"one")
    controller.link.publish(down("cam-a", "ack"), b"two")
    eventually(lambda: seen == [b"one", b"two"], "both messages")
    assert device.link.connected
    assert device.ups == 1
    assert "boom" in caplog.text


def test_a_refused_subscription_is_reported_and_the_link_is_not_called_connected(site: Site):
    if site.broker.name == "mosquitto":
        pytest.skip("Mosquitto grants every subscription and then delivers nothing")
    device = site.device("cam-a", subscriptions=[all_down("cam-a"), all_down("cam-b")]).start()
    eventually(lambda: "cam-b/down" in device.link.fault, "the refused filter in the fault")
    assert not device.link.connected


def test_nothing_listens_and_start_neither_blocks_nor_fails(site: Site):
    site.broker.port = free_port()
    device = site.device("cam-a").start()
    eventually(lambda: "refused" in device.link.fault, "a fault that says so")
    assert not device.link.connected


def test_a_controller_of_another_ca_is_not_trusted_by_the_device(site: Site, foreign_authority):
    device = site.device("cam-a", ca=foreign_authority.folder / "ca.pem").start()
    eventually(lambda: "not trusted" in device.link.fault, "a fault that says so")


def test_a_certificate_renewed_on_disk_is_used_at_the_next_connection(site: Site):
    path = site.certificate("cam-a")
    device = site.device("cam-a").connect()
    path.write_bytes(site.certificate("cam-x").read_bytes())
    path.with_suffix(".key").write_bytes(site.certificate("cam-x").with_suffix(".key").read_bytes())
    device.link._client.socket().close()
    eventually(lambda: not device.link.connected, "the cut")
    if site.broker.name == "nats-server":
        eventually(lambda: "enrolled" in device.link.fault, "the other name is refused")


def test_too_many_unacknowledged_messages_are_an_error_not_a_loss(site: Site):
    device = site.device("cam-a").connect()
    site.broker.kill9()
    with pytest.raises(LinkError):
        publish_many(device, 2_000)
    site.broker.start()


def publish_many(device: Party, times: int) -> None:
    for _ in range(times):
        device.link.publish(up("cam-a", "window"), b"x")


@pytest.fixture
def wire(site: Site):
    made = Wire(site.broker.port)
    site.broker.port = made.port
    yield made
    made.close()


def test_a_line_that_went_dead_without_a_word_is_noticed_within_two_keepalives(site: Site, wire):
    device = site.device("cam-a", keepalive_s=1).connect()
    wire.dead = True
    eventually(lambda: not device.link.connected, "the dead line", within_s=6)
    wire.dead = False
    eventually(lambda: device.link.connected, "the line is back")


def test_a_broker_that_acknowledges_nothing_is_left_and_tried_anew(site: Site, wire, monkeypatch):
    monkeypatch.setattr("shoal.mqtt.STUCK_S", 0.5)
    device = site.device("cam-a", keepalive_s=60).connect()
    wire.dead = True
    device.link.publish(up("cam-a", "window"), b"kept")
    eventually(lambda: not device.link.connected, "the stuck broker", within_s=6)
    wire.dead = False
    monkeypatch.undo()
    controller = site.controller().connect()
    eventually(lambda: b"kept" in controller.payloads(), "the message, sent again")


def test_a_slow_name_server_blocks_neither_start_nor_publish(site: Site, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(20) and [])
    device = site.device("cam-a")
    began = time.monotonic()
    device.start()
    with pytest.raises(LinkError, match=r"connecting|not started"):
        device.link.publish(up("cam-a", "window"), b"x")
    assert time.monotonic() - began < 1
    released.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_noticed_and_started_anew(site: Site):
    ends = [SystemExit]

    def end(topic: str, payload: bytes) -> None:
        if ends:
            raise ends.pop()

    device = site.device("cam-a", on_message=end).connect()
    assert not device.link.revive(), "while it lives there is nothing to do"
    controller = site.controller().connect()
    controller.link.publish("shoal/v1/cam-a/down/command", b"the end")
    eventually(lambda: not device.link._thread.is_alive(), "the thread's death")
    assert not device.link.connected
    with pytest.raises(LinkError):
        device.link.publish(up("cam-a", "window"), b"x")
    eventually(device.link.revive, "a new thread")
    eventually(lambda: device.link.connected, "the connection")
    device.link.publish(up("cam-a", "window"), b"alive")
    eventually(lambda: b"alive" in controller.payloads(), "the message")


def test_a_session_that_keeps_its_name_is_resumed_with_another_key(site: Site):
    """What was sent to a device while it was away arrives, though its key was renewed meanwhile."""
    path = site.certificate("cam-a")
    device = site.device("cam-a", session="cam-a-0123456789abcdef").connect()
    device.link.stop()
    controller = site.controller().connect()
    controller.link.publish("shoal/v1/cam-a/down/command", b"while you were away")
    for old in (path, path.with_suffix(".key")):
        old.rename(old.with_name(f"old-{old.name}"))
    site.certificate("cam-a")
    again = site.device("cam-a", session="cam-a-0123456789abcdef").connect()
    eventually(lambda: b"while you were away" in again.payloads(), "what waited for it")


def test_a_broker_that_ends_each_connection_costs_no_descriptors(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Link, "_delay", lambda *_: 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        broker: Any = SimpleNamespace(port=server.getsockname()[1], pki=authority.folder)
        device = Site(broker, tmp_path, authority).device("cam-a")
        device.start()
        open_now = []
        for _ in range(60):
            server.accept()[0].close()
            open_now.append(len([*Path("/proc/self/fd").iterdir()]))
        device.link.stop()
    assert max(open_now[30:]) <= max(open_now[:10]) + 2
