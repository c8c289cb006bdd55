"""MQTT in and out, at a real Mosquitto that is killed and comes back."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.five import REFUSALS, Gate
from devices import MODEL, engine
from feed_doubles import Plant, feeds_of, prediction, running, serving_of
from feeds.mosquitto import Client, PlantBroker
from ports import free_port
from shoal.agent.feeds.frames import Quality
from shoal.agent.feeds.sparkplug_payload import (
    BOOLEAN,
    DOUBLE,
    INT64,
    Metric,
    Payload,
    decode,
    encode,
)
from shoal.errors import SettingError
from waiting import eventually

pytestmark = pytest.mark.broker
Join = Callable[..., Client]


def test_a_reading_becomes_a_prediction_on_the_same_broker(
    plant: Plant, broker: PlantBroker, client: Join
) -> None:
    serving = serving_of(engine(1))
    heard = client("predictions/#")
    sources = {"line": {"kind": "mqtt", "url": broker.url, "topics": ["plant/+/values"],
                        "asset": 1, "time": "at"}}  # fmt: skip
    sinks = {"scada": {"kind": "mqtt", "url": broker.url}}
    feeds = feeds_of(plant, {MODEL: serving}, sources, sinks)
    feeds.start()
    try:
        eventually(lambda: all(f.up for f in feeds.health()), "both connected")
        heard.say("plant/press-1/values", json.dumps({"at": 5.5, "contrast": 0.5, "blur": -1}))
        eventually(lambda: heard.heard, "a prediction")
    finally:
        feeds.stop()
    topic, payload = heard.heard[0]
    said = json.loads(payload)
    assert topic == f"predictions/{MODEL}/press-1"
    assert (said["asset"], said["time_s"], said["release"]) == ("press-1", 5.5, f"{MODEL}@1")
    assert said["label"] in ("good", "bad", "odd")
    assert serving.vitals.requests == 1


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_broker_of_mqtt_5_alone_is_spoken_to_in_that(
    plant: Plant, broker: PlantBroker, client: Join, refusal: str
) -> None:
    reach = ("127.0.0.1", broker.port)
    gate = Gate(free_port(), REFUSALS[refusal], reach=lambda _: socket.create_connection(reach))
    gate.open()
    talker, url = client(), f"mqtt://127.0.0.1:{gate._port}"
    source = plant.source("mqtt", url=url, topics=["press/#"], retry_s=0.1)
    with running(source):
        eventually(lambda: source.health().up)
        talker.say("press/t", "21.5")
        eventually(lambda: plant.frames, "a frame")
    gate.close()
    assert plant.newest["t"] == 21.5
    assert gate.turned_away == 1


def test_values_that_come_one_by_one_are_gathered_and_qualities_kept(
    plant: Plant, broker: PlantBroker, client: Join
) -> None:
    talker = client()
    source = plant.source("mqtt", url=broker.url, topics=["press/#"], quality="q", retry_s=0.1)
    with running(source):
        eventually(lambda: source.health().up)
        talker.say("press/t", "21.5")
        talker.say("press/motor", '{"motor": {"rpm": 900}, "q": "uncertain"}')
        talker.say("press/p", '"broken"')
        talker.say("press/odd", b"\xff{")
        eventually(lambda: len(plant.frames) == 3 and plant.faults, "three frames, one fault")
    assert plant.newest["t"] == 21.5
    assert plant.newest["motor.rpm"] == 900
    assert plant.newest["p"] != plant.newest["p"]
    assert [frame.quality for frame in plant.frames] == [
        Quality.GOOD, Quality.UNCERTAIN, Quality.UNCERTAIN,
    ]  # fmt: skip
    assert plant.told("press/odd: message is no JSON")
    assert source.health().dropped == 1


def test_a_source_outlives_its_broker_and_says_that_it_was_away(
    plant: Plant, broker: PlantBroker, client: Join
) -> None:
    source = plant.source("mqtt", url=broker.url, topics=["t"], retry_s=0.1)
    with running(source):
        eventually(lambda: source.health().up)
        broker.kill()
        eventually(lambda: not source.health().up, "the loss is seen")
        assert plant.told("mqtt 'line'")
        broker.start()
        eventually(lambda: source.health().up, "it is back")
        client().say("t", "1")
        eventually(lambda: plant.newest == {"t": 1.0}, "and hears")
    assert source.health().reconnects >= 1


def test_what_the_broker_did_not_take_is_sent_when_it_is_back(
    plant: Plant, broker: PlantBroker, client: Join
) -> None:
    sink = plant.sink("mqtt", url=broker.url, topic="p/{asset}", retry_s=0.1)
    with running(sink):
        eventually(lambda: sink.health().up)
        broker.kill()
        for number in range(300):
            sink.write(prediction(float(number)))
        eventually(lambda: not sink.health().up)
        assert sink.health().waiting == 300
        broker.start()
        heard = client("p/#")
        # What was sent before this client subscribed is not repeated: count by the acks.
        eventually(lambda: sink.health().waiting == 0, "everything acknowledged")
    times = [json.loads(payload)["time_s"] for _, payload in heard.heard]
    assert times == sorted(times)
    assert sink.health().dropped == 0


def test_beyond_its_limit_a_sink_lets_the_oldest_go_and_counts_it(
    plant: Plant, broker: PlantBroker
) -> None:
    sink = plant.sink("mqtt", url=broker.url, keep=10)
    for number in range(25):
        sink.write(prediction(float(number)))
    assert (sink.health().waiting, sink.health().dropped) == (10, 15)


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"url": "http://x", "topics": ["t"]}, "is no address"), ({"url": "mqtt://h", "topics": []},
     "topics is empty"), ({"url": "mqtt://h", "topics": ["t"], "format": "xml"}, "format")],
)  # fmt: skip
def test_a_source_with_wrong_settings_is_refused(
    plant: Plant, settings: dict[str, object], why: str
) -> None:
    with pytest.raises(SettingError, match=why):
        plant.source("mqtt", **settings)


def test_a_topic_with_an_unknown_place_in_it_is_refused(plant: Plant) -> None:
    with pytest.raises(SettingError, match=r"sinks.line.topic"):
        plant.sink("mqtt", url="mqtt://h", topic="{factory}/x")


# ------------------------------------------------------------------------------- Sparkplug B

BIRTH = encode(
    Payload(
        1_000,
        [
            Metric("bdSeq", datatype=INT64, value=0),
            Metric("t", alias=4, datatype=DOUBLE, value=20.0),
        ],
        0,
    )
)


def test_sparkplug_births_and_data_become_readings_and_a_missed_birth_is_asked_for(
    plant: Plant, broker: PlantBroker, client: Join
) -> None:
    source = plant.source("mqtt", url=broker.url, topics=["spBv1.0/plant/#"], format="sparkplug",
                          retry_s=0.1)  # fmt: skip
    node = client("spBv1.0/plant/NCMD/#")
    with running(source):
        eventually(lambda: source.health().up)
        data = encode(Payload(2_000, [Metric(alias=4, datatype=DOUBLE, value=22.0)], 1))
        node.say("spBv1.0/plant/NDATA/press", data)
        eventually(lambda: node.heard, "a request for the birth that was missed")
        topic, asked = node.heard[0]
        assert topic == "spBv1.0/plant/NCMD/press"
        assert decode(asked).metrics[0].value is True
        node.say("spBv1.0/plant/NBIRTH/press", BIRTH)
        node.say("spBv1.0/plant/NDATA/press", data)
        eventually(lambda: plant.newest == {"t": 22.0}, "the reading")
    assert plant.frames[-1].asset == "press"
    assert plant.frames[-1].time_s == 2.0


class Scada:
    """A primary host: hears an edge node through protobuf's eyes, by the order of the topics."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def online(self, online: bool, timestamp: int) -> None:
        said = json.dumps({"online": online, "timestamp": timestamp})
        self._client.say("spBv1.0/STATE/scada", said, retain=True)

    @property
    def told(self) -> list[tuple[str, Payload]]:
        return [(t.split("/")[2], decode(p)) for t, p in self._client.heard if "NCMD" not in t]

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]


def edge(plant: Plant, broker: PlantBroker, **more: object):  # type: ignore[no-untyped-def]
    return plant.sink(
        "sparkplug", url=broker.url, group="plant", node="gateway", retry_s=0.1, **more
    )


def test_a_scada_host_sees_predictions_as_tags_and_may_ask_for_a_rebirth(
    plant: Plant, broker: PlantBroker, client: Join
) -> None:
    talker = client("spBv1.0/plant/+/gateway")
    scada, sink = Scada(talker), edge(plant, broker)
    with running(sink):
        eventually(lambda: scada.kinds() == ["NBIRTH"])
        for number in range(3):
            sink.write(prediction(float(number), asset="pump"))
        eventually(lambda: scada.kinds() == ["NBIRTH", "NBIRTH", "NDATA", "NDATA"])
        names = {m.alias: m.name for m in scada.told[1][1].metrics if m.alias}
        told = {names[m.alias]: m.value for m in scada.told[3][1].metrics}
        assert told[f"pump/{MODEL}/label"] == "good"
        assert told[f"pump/{MODEL}/score"] == pytest.approx(0.7)
        assert [p.seq for _, p in scada.told] == [0, 0, 1, 2]
        ask = Metric("Node Control/Rebirth", datatype=BOOLEAN, value=True)
        talker.say("spBv1.0/plant/NCMD/gateway", encode(Payload(1, [ask])))
        eventually(lambda: scada.kinds()[-1] == "NBIRTH", "the rebirth")
    eventually(lambda: scada.kinds()[-1] == "NDEATH", "a clean end tells its death")


def test_without_its_primary_host_a_node_keeps_and_then_tells_as_historical(
    plant: Plant, broker: PlantBroker, client: Join
) -> None:
    talker = client("spBv1.0/plant/+/gateway")
    scada, sink = Scada(talker), edge(plant, broker, host="scada")
    with running(sink):
        eventually(lambda: sink.health().up)
        for number in range(5):
            sink.write(prediction(float(number)))
        eventually(lambda: sink.health().waiting == 5)
        assert scada.told == []
        scada.online(True, 10)
        eventually(lambda: scada.kinds() == ["NBIRTH", "NDATA"])
        assert all(m.historical for m in scada.told[1][1].metrics)
        times = {m.time_ms for m in scada.told[1][1].metrics}
        assert times == {0, 1_000, 2_000, 3_000, 4_000}
        scada.online(False, 20)
        eventually(lambda: scada.kinds()[-1] == "NDEATH", "the node leaves")
        eventually(lambda: sink.health().reconnects >= 1, "and is back to wait")
        sink.write(prediction(5.0))
        eventually(lambda: sink.health().waiting == 1)
        scada.online(True, 30)
        eventually(lambda: scada.kinds()[-2:] == ["NBIRTH", "NDATA"])


def test_the_will_of_a_node_whose_broker_died_is_of_the_connection_that_is_gone(
    plant: Plant, broker: PlantBroker, client: Join
) -> None:
    talker = client("spBv1.0/plant/+/gateway")
    scada, sink = Scada(talker), edge(plant, broker)

    def births() -> list[int]:
        return [
            next(m.value for m in p.metrics if m.name == "bdSeq")
            for kind, p in scada.told
            if kind == "NBIRTH"
        ]

    with running(sink):
        eventually(lambda: births() == [0])
        broker.kill()
        eventually(lambda: not sink.health().up)
        sink.write(prediction(1.0))
        sink.write(prediction(2.0))
        broker.start()
        again = client("spBv1.0/plant/+/gateway")
        eventually(lambda: sink.health().up and sink.health().waiting == 0, "it is back")
        again.say("spBv1.0/plant/NCMD/gateway", encode(Payload(1, [
            Metric("Node Control/Rebirth", datatype=BOOLEAN, value=True)])))  # fmt: skip
        eventually(lambda: any("NBIRTH" in topic for topic, _ in again.heard))
    number = int((plant.folder / "line.bdseq").read_text())
    newest = decode(next(p for t, p in reversed(again.heard) if "NBIRTH" in t))
    assert next(m.value for m in newest.metrics if m.name == "bdSeq") == number - 1 >= 1


def test_a_restarted_agent_goes_on_with_the_next_bdseq(
    plant: Plant, broker: PlantBroker, client: Join
) -> None:
    scada = Scada(client("spBv1.0/plant/+/gateway"))
    for number in range(2):
        sink = edge(plant, broker)
        with running(sink):
            eventually(lambda n=number: scada.kinds().count("NBIRTH") == n + 1)
    eventually(lambda: len(scada.told) == 4, "the last death")
    said = [m.value for k, p in scada.told for m in p.metrics if m.name == "bdSeq"]
    assert said == [0, 0, 1, 1]


def test_an_agent_that_is_killed_dies_on_the_scada_screen_too(
    plant: Plant, broker: PlantBroker, client: Join
) -> None:
    scada = Scada(client("spBv1.0/plant/+/gateway"))
    script = Path(__file__).parent / "edge_node.py"
    environment = os.environ | {"PYTHONPATH": str(script.parents[1])}
    command = [sys.executable, str(script), str(plant.folder), broker.url]
    with subprocess.Popen(command, env=environment) as agent:
        eventually(lambda: scada.kinds()[-1:] == ["NBIRTH"] and len(scada.told[-1][1].metrics) > 2)
        agent.kill()
    eventually(lambda: scada.kinds()[-1] == "NDEATH", "the broker says the will")
    (bd_seq,) = scada.told[-1][1].metrics
    birth = next(payload for kind, payload in scada.told if kind == "NBIRTH")
    assert (bd_seq.name, bd_seq.value) == ("bdSeq", birth.metrics[0].value)


def killed_edge(plant: Plant, broker: PlantBroker, count: int) -> None:
    """An edge node's process that has written `count` predictions for an absent host; kill -9."""
    script = Path(__file__).parent / "edge_node.py"
    environment = os.environ | {"PYTHONPATH": str(script.parents[1])}
    command = [sys.executable, str(script), str(plant.folder), broker.url, "scada", str(count)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"written\n"
        agent.kill()


@pytest.mark.parametrize("is_up", [True, False], ids=["broker up", "broker away"])
def test_what_was_kept_for_the_host_survives_kill_9_of_the_agent(
    plant: Plant, broker: PlantBroker, client: Join, is_up: bool
) -> None:
    if not is_up:
        broker.kill()
    killed_edge(plant, broker, 250)
    if not is_up:
        broker.start()
    scada, sink = Scada(client("spBv1.0/plant/+/gateway")), edge(plant, broker, host="scada")
    with running(sink):
        eventually(lambda: sink.health().up)
        assert sink.health().waiting == 250
        sink.write(prediction(250.0))
        scada.online(True, 10)
        eventually(lambda: scada.kinds()[-4:] == ["NBIRTH", "NDATA", "NDATA", "NDATA"])
        past = [m for _, told in scada.told[-3:] for m in told.metrics]
        assert all(m.historical for m in past)
        assert {m.time_ms for m in past} == {1_000 * n for n in range(251)}
        eventually(lambda: not list((plant.folder / "line.kept").glob("*")), "the disk is free")
    assert edge(plant, broker, host="scada").health().waiting == 0
