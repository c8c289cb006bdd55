"""MQTT and Sparkplug B source and sinks with a real Mosquitto that is killed and restarted."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.five import REFUSALS, Gate
from devices import MODEL, engine
from feed_doubles import Recorder, feeds_of, prediction, running, serving_of
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
    recorder: Recorder, broker: PlantBroker, client: Join
) -> None:
    serving = serving_of(engine(1))
    observer = client("predictions/#")
    sources = {"line": {"kind": "mqtt", "url": broker.url, "topics": ["plant/+/values"],
                        "asset": 1, "time": "at"}}  # fmt: skip
    sinks = {"scada": {"kind": "mqtt", "url": broker.url}}
    feeds = feeds_of(recorder, {MODEL: serving}, sources, sinks)
    feeds.start()
    try:
        eventually(lambda: all(f.up for f in feeds.health()), "both connected")
        observer.publish(
            "plant/press-1/values", json.dumps({"at": 5.5, "contrast": 0.5, "blur": -1})
        )
        eventually(lambda: observer.received, "a prediction")
    finally:
        feeds.stop()
    topic, payload = observer.received[0]
    found = json.loads(payload)
    assert topic == f"predictions/{MODEL}/press-1"
    assert (found["asset"], found["time_s"], found["release"]) == ("press-1", 5.5, f"{MODEL}@1")
    assert found["label"] in ("good", "bad", "odd")
    assert serving.vitals.requests == 1


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_broker_of_mqtt_5_alone_is_connected_to_with_mqtt_5(
    recorder: Recorder, broker: PlantBroker, client: Join, refusal: str
) -> None:
    reach = ("127.0.0.1", broker.port)
    gate = Gate(free_port(), REFUSALS[refusal], reach=lambda _: socket.create_connection(reach))
    gate.open()
    publisher, url = client(), f"mqtt://127.0.0.1:{gate._port}"
    source = recorder.source("mqtt", url=url, topics=["press/#"], retry_s=0.1)
    with running(source):
        eventually(lambda: source.health().up)
        publisher.publish("press/t", "21.5")
        eventually(lambda: recorder.frames, "a frame")
    gate.close()
    assert recorder.newest["t"] == 21.5
    assert gate.turned_away == 1


def test_values_of_single_messages_are_merged_into_frames_with_their_qualities(
    recorder: Recorder, broker: PlantBroker, client: Join
) -> None:
    publisher = client()
    source = recorder.source("mqtt", url=broker.url, topics=["press/#"], quality="q", retry_s=0.1)
    with running(source):
        eventually(lambda: source.health().up)
        publisher.publish("press/t", "21.5")
        publisher.publish("press/motor", '{"motor": {"rpm": 900}, "q": "uncertain"}')
        publisher.publish("press/p", '"broken"')
        publisher.publish("press/odd", b"\xff{")
        eventually(lambda: len(recorder.frames) == 3 and recorder.faults, "three frames, one fault")
    assert recorder.newest["t"] == 21.5
    assert recorder.newest["motor.rpm"] == 900
    assert recorder.newest["p"] != recorder.newest["p"]
    assert [frame.quality for frame in recorder.frames] == [
        Quality.GOOD, Quality.UNCERTAIN, Quality.UNCERTAIN,
    ]  # fmt: skip
    assert recorder.reported("press/odd: message is no JSON")
    assert source.health().dropped == 1


def test_a_source_reconnects_and_reports_that_the_broker_was_away(
    recorder: Recorder, broker: PlantBroker, client: Join
) -> None:
    source = recorder.source("mqtt", url=broker.url, topics=["t"], retry_s=0.1)
    with running(source):
        eventually(lambda: source.health().up)
        broker.kill()
        eventually(lambda: not source.health().up, "the loss is seen")
        assert recorder.reported("mqtt 'line'")
        broker.start()
        eventually(lambda: source.health().up, "it is back")
        client().publish("t", "1")
        eventually(lambda: recorder.newest == {"t": 1.0}, "and receives")
    assert source.health().reconnects >= 1


def test_unacknowledged_predictions_are_sent_when_the_broker_is_back(
    recorder: Recorder, broker: PlantBroker, client: Join
) -> None:
    sink = recorder.sink("mqtt", url=broker.url, topic="p/{asset}", retry_s=0.1)
    with running(sink):
        eventually(lambda: sink.health().up)
        broker.kill()
        for number in range(300):
            sink.write(prediction(float(number)))
        eventually(lambda: not sink.health().up)
        assert sink.health().waiting == 300
        broker.start()
        observer = client("p/#")
        # What was sent before this client subscribed is not repeated: count by the acks.
        eventually(lambda: sink.health().waiting == 0, "everything acknowledged")
    times = [json.loads(payload)["time_s"] for _, payload in observer.received]
    assert times == sorted(times)
    assert sink.health().dropped == 0


def test_beyond_its_limit_a_sink_drops_the_oldest_and_counts_it(
    recorder: Recorder, broker: PlantBroker
) -> None:
    sink = recorder.sink("mqtt", url=broker.url, keep=10)
    for number in range(25):
        sink.write(prediction(float(number)))
    assert (sink.health().waiting, sink.health().dropped) == (10, 15)


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"url": "http://x", "topics": ["t"]}, "is not an address"),
     ({"url": "mqtt://::1:1883", "topics": ["t"]}, r"in brackets: mqtt://\[::1\]:PORT"),
     ({"url": "mqtt://h", "topics": []}, "topics is empty"),
     ({"url": "mqtt://h", "topics": ["t"], "format": "xml"}, "format")],
)  # fmt: skip
def test_a_source_with_wrong_settings_is_refused(
    recorder: Recorder, settings: dict[str, object], why: str
) -> None:
    with pytest.raises(SettingError, match=why):
        recorder.source("mqtt", **settings)


def test_a_topic_with_an_unknown_placeholder_is_refused(recorder: Recorder) -> None:
    with pytest.raises(SettingError, match=r"sinks.line.topic"):
        recorder.sink("mqtt", url="mqtt://h", topic="{factory}/x")


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


def test_sparkplug_births_and_data_become_frames_and_a_missed_birth_is_requested(
    recorder: Recorder, broker: PlantBroker, client: Join
) -> None:
    source = recorder.source("mqtt", url=broker.url, topics=["spBv1.0/plant/#"], format="sparkplug",
                          retry_s=0.1)  # fmt: skip
    node = client("spBv1.0/plant/NCMD/#")
    with running(source):
        eventually(lambda: source.health().up)
        data = encode(Payload(2_000, [Metric(alias=4, datatype=DOUBLE, value=22.0)], 1))
        node.publish("spBv1.0/plant/NDATA/press", data)
        eventually(lambda: node.received, "a request for the missed birth")
        topic, request = node.received[0]
        assert topic == "spBv1.0/plant/NCMD/press"
        assert decode(request).metrics[0].value is True
        node.publish("spBv1.0/plant/NBIRTH/press", BIRTH)
        node.publish("spBv1.0/plant/NDATA/press", data)
        eventually(lambda: recorder.newest == {"t": 22.0}, "the reading")
        assert recorder.frames[-1].asset == "press"
        assert recorder.frames[-1].time_s == 2.0
        for number in (1, 3, 2):  # delivered again, and out of order
            value = Metric(alias=4, datatype=DOUBLE, value=21.0 + number)
            node.publish("spBv1.0/plant/NDATA/press", encode(Payload(2_000, [value], number)))
        eventually(lambda: recorder.newest == {"t": 24.0}, "the third after the second")
        assert [frame.rows[0, 0] for frame in recorder.frames[-2:]] == [23.0, 24.0]
    assert len(node.received) == 1, "no further request"


class Scada:
    """A primary host: records the decoded messages of an edge node, in order."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def online(self, online: bool, timestamp: int) -> None:
        state = json.dumps({"online": online, "timestamp": timestamp})
        self._client.publish("spBv1.0/STATE/scada", state, retain=True)

    @property
    def messages(self) -> list[tuple[str, Payload]]:
        return [(t.split("/")[2], decode(p)) for t, p in self._client.received if "NCMD" not in t]

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.messages]


def edge(recorder: Recorder, broker: PlantBroker, **more: object):  # type: ignore[no-untyped-def]
    return recorder.sink(
        "sparkplug", url=broker.url, group="plant", node="gateway", retry_s=0.1, **more
    )


def test_a_scada_host_sees_predictions_as_tags_and_may_request_a_rebirth(
    recorder: Recorder, broker: PlantBroker, client: Join
) -> None:
    publisher = client("spBv1.0/plant/+/gateway")
    scada, sink = Scada(publisher), edge(recorder, broker)
    with running(sink):
        eventually(lambda: scada.kinds() == ["NBIRTH"])
        for number in range(3):
            sink.write(prediction(float(number), asset="pump"))
        eventually(lambda: scada.kinds() == ["NBIRTH", "NBIRTH", "NDATA", "NDATA"])
        names = {m.alias: m.name for m in scada.messages[1][1].metrics if m.alias}
        values = {names[m.alias]: m.value for m in scada.messages[3][1].metrics}
        assert values[f"pump/{MODEL}/label"] == "good"
        assert values[f"pump/{MODEL}/score"] == pytest.approx(0.7)
        assert [p.seq for _, p in scada.messages] == [0, 0, 1, 2]
        rebirth = Metric("Node Control/Rebirth", datatype=BOOLEAN, value=True)
        publisher.publish("spBv1.0/plant/NCMD/gateway", encode(Payload(1, [rebirth])))
        eventually(lambda: scada.kinds()[-1] == "NBIRTH", "the rebirth")
    eventually(lambda: scada.kinds()[-1] == "NDEATH", "a clean disconnect publishes the death")


def test_without_its_primary_host_a_node_stores_predictions_and_then_publishes_them_as_historical(
    recorder: Recorder, broker: PlantBroker, client: Join
) -> None:
    publisher = client("spBv1.0/plant/+/gateway")
    scada, sink = Scada(publisher), edge(recorder, broker, host="scada")
    with running(sink):
        eventually(lambda: sink.health().up)
        for number in range(5):
            sink.write(prediction(float(number)))
        eventually(lambda: sink.health().waiting == 5)
        assert scada.messages == []
        scada.online(True, 10)
        eventually(lambda: scada.kinds() == ["NBIRTH", "NDATA"])
        assert all(m.historical for m in scada.messages[1][1].metrics)
        times = {m.time_ms for m in scada.messages[1][1].metrics}
        assert times == {0, 1_000, 2_000, 3_000, 4_000}
        scada.online(False, 20)
        eventually(lambda: scada.kinds()[-1] == "NDEATH", "the node disconnects")
        eventually(lambda: sink.health().reconnects >= 1, "and is connected again")
        sink.write(prediction(5.0))
        eventually(lambda: sink.health().waiting == 1)
        scada.online(True, 30)
        eventually(lambda: scada.kinds()[-2:] == ["NBIRTH", "NDATA"])


def test_after_a_kill_of_the_broker_the_node_has_the_next_bdseq(
    recorder: Recorder, broker: PlantBroker, client: Join
) -> None:
    publisher = client("spBv1.0/plant/+/gateway")
    scada, sink = Scada(publisher), edge(recorder, broker)

    def births() -> list[int]:
        return [
            next(m.value for m in p.metrics if m.name == "bdSeq")
            for kind, p in scada.messages
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
        again.publish("spBv1.0/plant/NCMD/gateway", encode(Payload(1, [
            Metric("Node Control/Rebirth", datatype=BOOLEAN, value=True)])))  # fmt: skip
        eventually(lambda: any("NBIRTH" in topic for topic, _ in again.received))
    number = int((recorder.folder / "line.bdseq").read_text())
    newest = decode(next(p for t, p in reversed(again.received) if "NBIRTH" in t))
    assert next(m.value for m in newest.metrics if m.name == "bdSeq") == number - 1 >= 1


def test_a_restarted_agent_continues_with_the_next_bdseq(
    recorder: Recorder, broker: PlantBroker, client: Join
) -> None:
    scada = Scada(client("spBv1.0/plant/+/gateway"))
    for number in range(2):
        sink = edge(recorder, broker)
        with running(sink):
            eventually(lambda n=number: scada.kinds().count("NBIRTH") == n + 1)
    eventually(lambda: len(scada.messages) == 4, "the last death")
    numbers = [m.value for k, p in scada.messages for m in p.metrics if m.name == "bdSeq"]
    assert numbers == [0, 0, 1, 1]


def test_the_broker_publishes_the_death_of_a_killed_agent(
    recorder: Recorder, broker: PlantBroker, client: Join
) -> None:
    scada = Scada(client("spBv1.0/plant/+/gateway"))
    with edge_process(recorder, broker):
        eventually(lambda: scada.kinds() == ["NBIRTH", "NDATA"], "its stored prediction", 60)
    eventually(lambda: scada.kinds()[-1] == "NDEATH", "the broker publishes the will")
    (bd_seq,) = scada.messages[-1][1].metrics
    birth = next(payload for kind, payload in scada.messages if kind == "NBIRTH")
    assert (bd_seq.name, bd_seq.value) == ("bdSeq", birth.metrics[0].value)


@contextmanager
def edge_process(recorder: Recorder, broker: PlantBroker, *host_and_count: str) -> Iterator[None]:
    """An edge node's process that has written its predictions; kill -9 in the end, in any case."""
    script, said = Path(__file__).parent / "edge_node.py", recorder.folder / "said"
    environment = os.environ | {"PYTHONPATH": str(script.parents[1])}
    command = [sys.executable, str(script), str(recorder.folder), broker.url, *host_and_count]
    with (
        said.open("wb") as out,
        subprocess.Popen(command, env=environment, stdout=out) as agent,
    ):
        try:
            eventually(lambda: said.read_bytes() == b"written\n", "its predictions", 60)
            yield
        finally:
            agent.kill()


@pytest.mark.parametrize("is_up", [True, False], ids=["broker up", "broker away"])
def test_stored_predictions_survive_kill_9_of_the_agent(
    recorder: Recorder, broker: PlantBroker, client: Join, is_up: bool
) -> None:
    if not is_up:
        broker.kill()
    with edge_process(recorder, broker, "scada", "250"):
        pass
    if not is_up:
        broker.start()
    scada, sink = Scada(client("spBv1.0/plant/+/gateway")), edge(recorder, broker, host="scada")
    with running(sink):
        eventually(lambda: sink.health().up)
        assert sink.health().waiting == 250
        sink.write(prediction(250.0))
        scada.online(True, 10)
        eventually(lambda: scada.kinds()[-4:] == ["NBIRTH", "NDATA", "NDATA", "NDATA"])
        past = [m for _, payload in scada.messages[-3:] for m in payload.metrics]
        assert all(m.historical for m in past)
        assert {m.time_ms for m in past} == {1_000 * n for n in range(251)}
        eventually(lambda: not list((recorder.folder / "line.kept").glob("*")), "the disk is free")
    assert edge(recorder, broker, host="scada").health().waiting == 0
