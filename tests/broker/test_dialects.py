"""Which version of MQTT is spoken: found out by itself, remembered, and its limits kept to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.five import REFUSALS, MosquittoOfFive
from broker.real import Mosquitto, Nats, Site, running_site
from shoal.controller.broker.io.mosquitto import MAX_PACKET
from shoal.controller.fleet.io.ca import Authority
from shoal.errors import LinkError
from shoal.mqtt_version import Limits, MqttVersion, limits_of
from shoal.topics import up
from waiting import eventually

pytestmark = pytest.mark.broker


class Narrow(Mosquitto):
    """A Mosquitto that takes little at once. Only MQTT 5 can say so."""

    def start(self) -> None:
        text = self._conf.read_text().replace(
            "max_inflight_messages 1000", "max_inflight_messages 3"
        )
        text = text.replace(f"max_packet_size {MAX_PACKET}", "max_packet_size 4000")
        self._conf.write_text(text)
        super().start()


@pytest.fixture
def at(request: pytest.FixtureRequest, tmp_path: Path, authority: Authority) -> Iterator[Site]:
    """The broker that a test asks for."""
    with running_site(request.param, tmp_path, authority) as made:
        yield made


def refusing(how: str) -> Any:
    return lambda folder, pki, port: MosquittoOfFive(folder, pki, port, how)


def spoken(site: Site, **choices: Any) -> MqttVersion:
    return site.device("cam-a", **choices).connect().link._version


@pytest.mark.parametrize(
    "at", [refusing(how) for how in REFUSALS], ids=list(REFUSALS), indirect=True
)
def test_a_broker_of_mqtt_5_is_found_out_however_it_turns_3_1_1_away(at: Site):
    assert spoken(at) is MqttVersion.V5


@pytest.mark.parametrize("at", [Nats], indirect=True)
def test_a_client_that_starts_with_mqtt_5_detects_a_3_1_1_broker(at: Site):
    assert spoken(at, version=MqttVersion.V5) is MqttVersion.V3


@pytest.mark.parametrize("at", [Mosquitto], indirect=True)
@pytest.mark.parametrize("first", MqttVersion)
def test_a_broker_of_both_is_spoken_to_in_the_first(at: Site, first: MqttVersion):
    assert spoken(at, version=first) is first


@pytest.mark.parametrize("at", [MosquittoOfFive], indirect=True)
def test_what_a_broker_speaks_is_remembered_over_cuts_and_its_death(at: Site):
    device = at.device("cam-a").connect()
    for ups in (2, 3):
        at.broker.kill9()
        eventually(lambda: not device.link.connected, "the cut")
        at.broker.start()
        eventually(lambda n=ups: device.ups == n, "the next connection")
    assert at.broker.gate.turned_away == 1


@pytest.mark.parametrize("at", [Mosquitto], indirect=True)
@pytest.mark.parametrize(("before", "after"), [("3.1.1", "5"), ("5", "3.1.1")])
def test_a_session_outlives_a_change_of_version(at: Site, before: str, after: str):
    device = at.device("cam-a", version=MqttVersion(before)).connect()
    device.link.stop()
    at.controller().connect().link.publish("shoal/v1/cam-a/down/command", b"while you were away")
    again = at.device("cam-a", version=MqttVersion(after)).connect()
    eventually(lambda: b"while you were away" in again.payloads(), "what waited for it")


@pytest.mark.parametrize("at", [Mosquitto], indirect=True)
def test_a_clean_session_of_mqtt_5_leaves_nothing_behind(at: Site):
    device = at.device("cam-a", version=MqttVersion.V5, clean_session=True).connect()
    device.link.stop()
    controller = at.controller().connect()
    controller.link.publish("shoal/v1/cam-a/down/command", b"for nobody")
    eventually(lambda: controller.link._unacked == 0, "the broker has it")
    again = at.device("cam-a", version=MqttVersion.V5).connect()
    controller.link.publish("shoal/v1/cam-a/down/command", b"for you")
    eventually(lambda: b"for you" in again.payloads(), "what came later")
    assert b"for nobody" not in again.payloads()


@pytest.mark.parametrize("at", [Narrow], indirect=True)
def test_what_an_mqtt_5_broker_takes_at_once_is_kept_to(at: Site):
    controller = at.controller(version=MqttVersion.V5).connect()
    device = at.device("cam-a", version=MqttVersion.V5).connect()
    assert device.link._client.max_inflight_messages == 3
    with pytest.raises(LinkError, match=r"the broker accepts 4000; raise its limit"):
        device.link.publish(up("cam-a", "window"), b"x" * 5_000)
    for number in range(50):
        device.link.publish(up("cam-a", "window"), b"%d" % number)
    eventually(lambda: len(set(controller.payloads())) == 50, "all fifty")
    assert device.link.connected


@pytest.mark.parametrize("at", [Narrow], indirect=True)
def test_with_mqtt_5_an_ended_connection_has_a_reason_and_a_hint(at: Site, caplog):
    device = at.device("cam-a", version=MqttVersion.V5).connect()
    device.link._limits = Limits()
    device.link.publish(up("cam-a", "window"), b"x" * 5_000)
    eventually(lambda: "broker ended the connection: Packet too large" in caplog.text, "the end")
    assert "raise its limit of message size" in caplog.text


class ConnackProperties:
    """Properties of a CONNACK."""

    def __init__(self, **properties: int) -> None:
        self.__dict__.update(properties)


@pytest.mark.parametrize(
    ("properties", "fault"),
    [
        ({"MaximumQoS": 0}, "acknowledges no message"),
        ({"RetainAvailable": 0}, "retains no messages"),
        ({"WildcardSubscriptionAvailable": 0}, "wildcards"),
        ({"SessionExpiryInterval": 0}, "keeps no sessions"),
    ],
)
def test_a_broker_that_lacks_a_needed_feature_is_reported(properties: dict[str, int], fault: str):
    (found,) = limits_of(ConnackProperties(**properties), clean=False).faults
    assert fault in found


def test_a_broker_that_sets_no_limits_has_none():
    assert limits_of(ConnackProperties(), clean=False).faults == ()
    assert limits_of(ConnackProperties(SessionExpiryInterval=0), clean=True).faults == ()
