"""OPC UA nodes by namespace, nodes that appear later, limits, and subscriptions that end unsaid."""

import datetime
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feed_doubles import Recorder, prediction, running
from shoal.agent.feeds.frames import Quality
from shoal.agent.feeds.io import opcua_connection, opcua_source
from shoal.agent.feeds.opcua_nodes import parse_node
from shoal.errors import SettingError
from waiting import eventually

pytest.importorskip("asyncua")
from asyncua import ua

from feeds.opcua_plant import URI, Plant


@pytest.fixture(scope="module")
def one_plant() -> Iterator[Plant]:
    """A server for all: its start takes a second or more."""
    made = Plant()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def plant(one_plant: Plant, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """The server; each test adds nodes of its own."""
    for module in (opcua_connection, opcua_source):
        monkeypatch.setattr(module, "CHECK_S", 0.1)
    monkeypatch.setattr(opcua_connection, "RETRY_S", 0.1)
    one_plant.most = 0
    one_plant.asked.clear()
    return one_plant


def source(recorder: Recorder, plant: Plant, *nodes: str, **more: Any) -> Any:
    tags = [{"name": node.rpartition("=")[2], "node": node} for node in nodes]
    wanted: dict[str, Any] = {"tags": tags, "period_ms": 20.0, "every_s": 0.05}
    return recorder.source("opcua", url=plant.url, retry_s=0.1, **(wanted | more))


def test_after_a_restart_a_namespace_by_uri_is_found_and_an_index_that_means_another_is_not_read(
    recorder: Recorder, plant: Plant
) -> None:
    plant.add("Moved", 20.0)
    plant.add("Indexed", 10.0)
    index = plant.index()
    feed = source(recorder, plant, f"nsu={URI};s=Moved", f"ns={index};s=Indexed")
    with running(feed):
        eventually(lambda: recorder.newest == {"Moved": 20.0, "Indexed": 10.0})
        assert feed.health().error == ""
        plant.stop()
        eventually(lambda: not feed.health().up)
        plant.start([*(f"urn:new-{number}" for number in range(2, index)), "urn:another", URI])
        for name in ("Moved", "Indexed"):
            plant.add(name, -1.0, "urn:another")
            plant.add(name, 30.0)
        eventually(lambda: recorder.newest.get("Moved") == 30.0)
        eventually(lambda: f"its namespace {index} is {URI!r} no longer" in feed.health().error)
    assert recorder.newest["Indexed"] != recorder.newest["Indexed"]
    assert -1.0 not in [value for frame in recorder.frames for value in frame.rows[0]]
    warned = [fault.detail for fault in recorder.faults if fault.cause == "namespace-index"]
    assert len(warned) == 1
    assert f"for Indexed write 'nsu={URI};s=Indexed'" in warned[0]


def test_a_node_and_a_namespace_that_appear_later_are_read_and_the_health_says_what_is_missing(
    recorder: Recorder, plant: Plant
) -> None:
    plant.add("There", 20.0)
    feed = source(
        recorder, plant, f"nsu={URI};s=There", f"nsu={URI};s=Late", "nsu=urn:later;s=Other"
    )
    with running(feed):
        eventually(lambda: recorder.newest.get("There") == 20.0)
        assert recorder.frames[-1].quality is Quality.UNCERTAIN
        error = feed.health().error
        assert "2 of 3 tags cannot be read" in error
        assert "Late: BadNodeIdUnknown" in error
        assert "Other: the server has no namespace 'urn:later', but" in error
        assert feed.health().up
        plant.add("Late", 5.0)
        plant.run(plant.server.register_namespace("urn:later"))
        plant.add("Other", 6.0, "urn:later")
        eventually(lambda: recorder.newest == {"There": 20.0, "Late": 5.0, "Other": 6.0})
        assert feed.health().error == ""
    assert len([fault for fault in recorder.faults if fault.cause == "bad-tag"]) == 2


def test_a_server_that_takes_few_items_at_once_is_asked_in_parts(
    recorder: Recorder, plant: Plant
) -> None:
    plant.most = 12
    names = [f"T{number}" for number in range(50)]
    for number, name in enumerate(names):
        plant.add(name, float(number))
    with running(source(recorder, plant, *(f"nsu={URI};s={name}" for name in names))):
        eventually(lambda: recorder.newest == {n: float(i) for i, n in enumerate(names)})
    assert max(plant.asked) <= 12


def test_two_tags_of_one_node_both_have_its_value(recorder: Recorder, plant: Plant) -> None:
    plant.add("Twice", 20.0)
    tags = [
        {"name": "one", "node": f"nsu={URI};s=Twice"},
        {"name": "two", "node": f"ns={plant.index()};s=Twice"},
    ]
    with running(source(recorder, plant, tags=tags)):
        eventually(lambda: recorder.newest == {"one": 20.0, "two": 20.0})


def test_a_session_that_cannot_be_closed_holds_a_place_of_the_server_for_a_minute(
    recorder: Recorder, plant: Plant
) -> None:
    feed = source(recorder, plant, "i=2258")  # Server_ServerStatus_CurrentTime
    with running(feed):
        eventually(lambda: feed.health().up)
        assert plant.session_timeouts() == [60.0]


def test_a_subscription_that_the_server_drops_without_a_word_is_made_again(
    recorder: Recorder, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opcua_source, "SILENT_S", 0.3)
    monkeypatch.setattr(opcua_source, "KEEP_ALIVE_S", 0.1)
    plant.add("Dropped", 20.0)
    feed = source(recorder, plant, f"nsu={URI};s=Dropped")
    with running(feed):
        eventually(lambda: recorder.newest == {"Dropped": 20.0})
        plant.drop_subscriptions()
        plant.put("Dropped", 33.0)
        eventually(lambda: recorder.newest == {"Dropped": 33.0})
        assert feed.health().reconnects >= 1
    assert recorder.reported("the server has no subscription any more: BadSubscriptionIdInvalid")


@pytest.mark.parametrize("year", [1601, 9999])
def test_a_source_time_that_means_none_is_the_servers_or_that_of_arrival(
    recorder: Recorder, plant: Plant, year: int
) -> None:
    name = f"Year{year}"
    plant.add(name, 20.0)
    feed = source(recorder, plant, f"nsu={URI};s={name}", every_s=0.0)
    with running(feed):
        eventually(lambda: recorder.newest == {name: 20.0})
        stamp = datetime.datetime(year, 1, 1, tzinfo=datetime.UTC)
        plant.put(name, ua.DataValue(ua.Variant(30.0), SourceTimestamp=stamp))
        eventually(lambda: recorder.newest == {name: 30.0})
    assert abs(recorder.frames[-1].time_s - time.time()) < 3_600


def test_a_sink_writes_a_node_that_appears_later(recorder: Recorder, plant: Plant) -> None:
    sink = recorder.sink("opcua", url=plant.url, retry_s=0.1, nodes={"score": f"nsu={URI};s=Score"})
    with running(sink):
        eventually(lambda: "score: " in sink.health().error)
        plant.add("Score", 0.0)
        eventually(lambda: sink.health().up and not sink.health().error)
        sink.write(prediction())
        eventually(lambda: plant.read("Score") == pytest.approx(0.7))


# ------------------------------------------------------------------------------------- ids


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20).filter(str.strip))
def test_an_id_by_uri_survives_being_written(uri: str, name: str) -> None:
    written = parse_node(f"ns=1;s=x{name}x").by_uri(["", uri])
    assert parse_node(written).text(["", "urn:other", uri]) == f"ns=2;s=x{name}x"


@pytest.mark.parametrize("text", ["", "Press.T", "ns=2", "nsu=urn:plant", "nsu=;s=T", "ns=x;s=T",
                                  "i=", "i=x", "g=1", "ns=2;nsu=u;s=T"])  # fmt: skip
def test_what_is_no_node_id_is_refused_with_the_form_it_should_have(
    recorder: Recorder, text: str
) -> None:
    with pytest.raises(SettingError, match="no node id; write it as nsu=URI;s=NAME"):
        recorder.source("opcua", url="opc.tcp://h", tags=[{"name": "t", "node": text}])
