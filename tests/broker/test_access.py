"""Who may connect, and what a device may do: on the embedded broker and on Mosquitto."""

import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from paho.mqtt.enums import CallbackAPIVersion

from broker.real import ENROLLED, Site
from shoal.agent.identity.io.enrol import make_csr
from shoal.controller.fleet.io.ca import Authority
from shoal.topics import all_down, down, up
from waiting import eventually

pytestmark = pytest.mark.broker


class Raw:
    """A client that is not ours: it asks for what a Link never would."""

    def __init__(self, site: Site, client_id: str, certificate: Path, **choices: Any) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.granted: list[Any] = []
        self.answered, self.subscribed = threading.Event(), threading.Event()
        self.reason: Any = None
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=choices.pop("clean", True),
        )
        self.client.tls_set_context(site.tls(certificate))
        if "will" in choices:
            self.client.will_set(*choices["will"], qos=1)
        self.client.on_connect = self._connected
        self.client.on_subscribe = self._granted
        self.client.on_message = lambda _, __, m: self.received.append((m.topic, m.payload))
        self.client.connect("127.0.0.1", site.broker.port)
        self.client.loop_start()
        self.answered.wait(10)

    def _connected(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        self.reason = reason
        self.answered.set()

    def _granted(self, _: Any, __: Any, ___: int, reasons: Any, ____: Any) -> None:
        self.granted = [not reason.is_failure for reason in reasons]
        self.subscribed.set()

    def subscribe(self, *filters: str) -> list[bool]:
        self.client.subscribe([(text, 1) for text in filters])
        self.subscribed.wait(10)
        return self.granted

    def cut(self) -> None:
        """Vanish without a goodbye: the last will is said."""
        self.client.socket().shutdown(socket.SHUT_RDWR)
        self.client.loop_stop()

    def end(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def handshake(site: Site, certificate: Path | None) -> None:
    """Connect by TLS and read: a refusal may come after the client's half of the handshake."""
    with (
        socket.create_connection(("127.0.0.1", site.broker.port), 5) as plain,
        site.tls(certificate).wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        wrapped.settimeout(5)
        wrapped.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x1e\x00\x01x")
        if not wrapped.recv(16):
            raise ConnectionResetError("closed without an answer")


def test_a_devices_message_reaches_the_controller_and_the_response_reaches_it_alone(site):
    controller, one = site.controller().connect(), site.device("cam-a").connect()
    other = site.device("cam-b").connect()
    one.link.publish(up("cam-a", "window"), b"seen")
    eventually(lambda: (up("cam-a", "window"), b"seen") in controller.received, "the window")
    controller.link.publish(down("cam-a", "ack"), b"kept")
    controller.link.publish("shoal/v1/fleet/budget", b"slowly")
    eventually(lambda: {b"kept", b"slowly"} <= set(one.payloads()), "ack and budget")
    eventually(lambda: b"slowly" in other.payloads(), "budget at the other")
    assert b"kept" not in other.payloads()


def test_a_client_without_a_certificate_is_refused(site):
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(site, None)


def test_a_certificate_of_another_ca_is_refused(site, foreign_authority: Authority):
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(site, site.certificate("cam-a", foreign_authority))


def test_plain_text_is_refused(site):
    with socket.create_connection(("127.0.0.1", site.broker.port), 5) as plain:
        plain.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x1e\x00\x01x")
        plain.settimeout(5)
        try:
            answer = plain.recv(16)
        except ConnectionError:
            answer = b""
    assert not answer.startswith(b"\x20")  # CONNACK


def test_a_name_that_is_not_enrolled_can_do_nothing(site):
    controller = site.controller().connect()
    stranger = Raw(site, "cam-x", site.certificate("cam-x"))
    if site.broker.name == "nats-server":
        assert stranger.reason is None or stranger.reason.is_failure
    stranger.client.publish(up("cam-x", "window"), b"hello", qos=1)
    known = site.device("cam-a").connect()
    known.link.publish(up("cam-a", "window"), b"after")
    eventually(lambda: b"after" in controller.payloads(), "a window of a known device")
    assert b"hello" not in controller.payloads()
    stranger.end()


@pytest.mark.parametrize(
    "topic",
    [
        up("cam-b", "window"),
        down("cam-b", "assignment"),
        down("cam-a", "assignment"),
        "shoal/v1/fleet/budget",
        "shoal/v1/cam-a/up/window/deeper",
        "elsewhere",
        "$MQTT/sub/x",
    ],
)
def test_a_device_cannot_publish_as_another_nor_as_the_controller(site, topic):
    controller = site.controller(subscriptions=["shoal/v1/#"]).connect()
    victim = site.device("cam-b").connect()
    thief = Raw(site, "cam-a", site.certificate("cam-a"))
    thief.client.publish(topic, b"forged", qos=1)
    thief.client.publish(topic, b"forged", qos=1, retain=True)
    victim.link.publish(up("cam-b", "window"), b"true")
    eventually(lambda: b"true" in controller.payloads(), "the true message")
    late = site.device("cam-b", client_id="late").connect()
    controller.link.publish(down("cam-b", "ack"), b"marker")
    eventually(lambda: b"marker" in victim.payloads() + late.payloads(), "the marker")
    assert b"forged" not in controller.payloads() + victim.payloads() + late.payloads()
    thief.end()


@pytest.mark.parametrize(
    "text",
    [
        all_down("cam-b"),
        "shoal/v1/+/down/+",
        "shoal/v1/#",
        "#",
        "+/+/+/+/+",
        up("cam-b", "window"),
        "$MQTT/sub/#",
        "$MQTT/deliver/#",
        "$MQTT/#",
    ],
)
def test_a_device_cannot_receive_messages_to_another(site, text):
    victim = site.device("cam-b").connect()
    controller = site.controller().connect()
    thief = Raw(site, "cam-a", site.certificate("cam-a"))
    granted = thief.subscribe(text)
    if site.broker.name == "nats-server" and not text.startswith("$MQTT"):
        assert granted == [False]
    victim.link.publish(up("cam-b", "window"), b"own")
    controller.link.publish(down("cam-b", "ack"), b"secret")
    controller.link.publish(down("cam-b", "assignment"), b"order", retain=True)
    eventually(lambda: {b"secret", b"order"} <= set(victim.payloads()), "what is the victim's")
    eventually(lambda: b"own" in controller.payloads(), "what is the controller's")
    thief.subscribed.clear()
    thief.subscribe(all_down("cam-a"))
    controller.link.publish(down("cam-a", "ack"), b"mine")
    eventually(lambda: b"mine" in [payload for _, payload in thief.received], "the thief's own")
    assert not {b"own", b"secret", b"order"} & {payload for _, payload in thief.received}
    thief.end()


def test_a_will_on_another_devices_topic_is_never_published(site):
    controller = site.controller().connect()
    thief = Raw(
        site, "cam-a", site.certificate("cam-a"), will=(up("cam-b", "status"), b"forged will")
    )
    if thief.reason is not None and not thief.reason.is_failure:
        thief.cut()
    marker = site.device("cam-b", will=lambda: (up("cam-b", "status"), b"true will")).connect()
    marker.link.publish(up("cam-b", "window"), b"marker")
    eventually(lambda: b"marker" in controller.payloads(), "the marker")
    assert b"forged will" not in controller.payloads()


def test_a_device_that_guesses_another_name_as_client_id_takes_nothing_over(site):
    victim, controller = site.device("cam-b").connect(), site.controller().connect()
    before = victim.ups
    for client_id in ("cam-b", "controller"):
        thief = Raw(site, client_id, site.certificate("cam-a"), clean=False)
        thief.subscribe(all_down("cam-a"))
        controller.link.publish(down("cam-b", "ack"), b"secret")
        eventually(lambda: b"secret" in victim.payloads(), "the victim's message")
        assert b"secret" not in [payload for _, payload in thief.received]
        thief.end()
    assert victim.link.connected
    assert victim.ups == before == 1
    assert controller.ups == 1


def test_a_decommissioned_device_is_cut_off_while_the_others_stay(site):
    controller, staying = site.controller().connect(), site.device("cam-a").connect()
    leaving = site.device("cam-b").connect()
    site.broker.admit(("cam-a",))
    if site.broker.name == "nats-server":
        eventually(lambda: not leaving.link.connected, "its connection is cut")
        eventually(lambda: "decommissioned" in leaving.link.fault, "a fault that says why")
    else:
        eventually(lambda: not _gets_through(leaving, controller), "it is mute")
    controller.link.publish(down("cam-b", "command"), b"not for you")
    controller.link.publish(down("cam-a", "command"), b"for you")
    eventually(lambda: b"for you" in staying.payloads(), "the other still hears")
    assert b"not for you" not in leaving.payloads()
    staying.link.publish(up("cam-a", "window"), b"still here")
    eventually(lambda: b"still here" in controller.payloads(), "the other still speaks")
    assert (staying.ups, controller.ups) == (1, 1)


def test_a_name_taken_again_lets_the_certificate_of_before_do_nothing(site):
    controller = site.controller().connect()
    thief = site.certificate("cam-b")
    leaving = site.device("cam-b", certificate=thief).connect()
    site.broker.admit(("cam-a",))
    site.broker.admit(("cam-a", "cam-b.1"))
    again = site.device("cam-b", certificate=site.certificate("cam-b", generation=1)).connect()
    again.link.publish(up("cam-b", "window"), b"the new one")
    controller.link.publish(down("cam-b", "ack"), b"for the new one")
    eventually(lambda: b"the new one" in controller.payloads(), "what the new one says")
    eventually(lambda: b"for the new one" in again.payloads(), "what is said to the new one")
    if site.broker.name == "nats-server":
        eventually(lambda: not leaving.link.connected, "the old connection is cut")
    else:
        eventually(lambda: not _gets_through(leaving, controller), "the old connection is mute")
    stranger = Raw(site, "cam-b", thief)
    if site.broker.name == "nats-server":
        assert stranger.reason is None or stranger.reason.is_failure
    stranger.subscribe(all_down("cam-b"))
    stranger.client.publish(up("cam-b", "window"), b"forged", qos=1)
    controller.link.publish(down("cam-b", "command"), b"secret")
    eventually(lambda: b"secret" in again.payloads(), "the command")
    again.link.publish(up("cam-b", "window"), b"after")
    eventually(lambda: b"after" in controller.payloads(), "a window after the forged one")
    assert b"forged" not in controller.payloads()
    received = [*leaving.payloads(), *(payload for _, payload in stranger.received)]
    assert not {b"secret", b"for the new one"} & set(received)
    stranger.end()


def _gets_through(device: Any, controller: Any) -> bool:
    payload = b"probe %d" % len(controller.received)
    before = len(controller.received)
    device.link.publish(up(device.name, "window"), payload)
    controller.link.publish(up("cam-a", "round"), payload)  # to itself: comes back in order
    eventually(lambda: len(controller.received) > before, "the controller's own echo")
    return (up(device.name, "window"), payload) in controller.received


def test_a_device_enrolled_later_gets_in_without_disturbing_the_others(site):
    first = site.device("cam-a").connect()
    site.broker.admit((*ENROLLED, "cam-c"))
    late = site.device("cam-c").connect()
    controller = site.controller().connect()
    late.link.publish(up("cam-c", "window"), b"new")
    eventually(lambda: b"new" in controller.payloads(), "the new device's window")
    assert first.ups == 1


def test_an_expired_certificate_is_named_and_its_successor_needs_no_restart(
    site: Site, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    path = site.certificate("cam-a")
    valid = path.read_text()
    key = load_pem_private_key(path.with_suffix(".key").read_bytes(), None)
    ended = authority.issue_device(make_csr(key, "cam-a"), "cam-a", time.time() - 120 * 86_400, 0)
    path.write_text(ended.certificate)
    device = site.device("cam-a").start()
    eventually(lambda: "ended 30 days ago" in device.link.fault, "the certificate in the fault")
    path.write_text(valid)
    eventually(lambda: device.link.connected, "the connection", 30)
    assert device.link.fault == ""
    assert "trying MQTT" not in caplog.text, "no version was at fault, before or after"


def test_a_certificate_that_the_broker_refuses_is_blamed_and_not_the_version_of_mqtt(
    site: Site, foreign_authority: Authority
) -> None:
    device = site.device("cam-a", certificate=site.certificate("cam-a", foreign_authority)).start()
    eventually(lambda: "refused this machine's certificate" in device.link.fault, "the certificate")
