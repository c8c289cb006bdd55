"""OPC UA at a real asyncua server: one subscription, status codes, writes, a server that dies."""

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from feed_doubles import Plant, prediction, running
from feeds.processes import Server, server_of
from shoal.agent.feeds.frames import Quality
from shoal.errors import SettingError
from waiting import eventually

pytest.importorskip("asyncua")
from asyncua import ua
from asyncua.sync import Client

TAGS = [{"name": "t", "node": "ns=2;s=Press.T"}, {"name": "p", "node": "ns=2;s=Press.P"}]


@pytest.fixture
def server() -> Iterator[Server]:
    made = server_of("opcua_server.py")
    made.start()
    yield made
    made.stop()


def url(server: Server) -> str:
    return f"opc.tcp://127.0.0.1:{server.port}/plant"


def at(server: Server, do: Callable[[Client], Any]) -> Any:
    with Client(url(server)) as client:
        return do(client)


def put(server: Server, name: str, value: Any, code: int = 0, kind: Any = None) -> None:
    said = ua.DataValue(
        Value=ua.Variant(value, kind),
        StatusCode=ua.StatusCode(code),
        SourceTimestamp=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    )
    at(server, lambda client: client.get_node(f"ns=2;s=Press.{name}").write_value(said))


def read(server: Server, name: str) -> Any:
    return at(server, lambda client: client.get_node(f"ns=2;s=Press.{name}").read_data_value(False))


def source(plant: Plant, server: Server, **more: object) -> Any:
    wanted: dict[str, object] = {"tags": TAGS, "period_ms": 20.0, "every_s": 0.05, "asset": "press"}
    return plant.source("opcua", url=url(server), retry_s=0.1, **(wanted | more))


def test_values_come_by_subscription_as_frames_at_a_steady_pace(
    plant: Plant, server: Server
) -> None:
    feed = source(plant, server)
    with running(feed):
        eventually(lambda: plant.newest == {"t": 20.0, "p": 1.0}, "the first values")
        put(server, "T", 77.5)
        eventually(lambda: plant.newest == {"t": 77.5, "p": 1.0}, "the change")
        count = len(plant.frames)
        eventually(lambda: len(plant.frames) > count + 3, "frames without a change")
    assert plant.frames[-1].asset == "press"
    assert plant.frames[-1].quality is Quality.GOOD


def test_a_change_alone_makes_a_frame_at_the_sources_own_time_if_one_wants(
    plant: Plant, server: Server
) -> None:
    feed = source(plant, server, every_s=0.0, tags=TAGS[:1])
    with running(feed):
        eventually(lambda: plant.newest == {"t": 20.0})
        put(server, "T", 30.0)
        eventually(lambda: plant.newest == {"t": 30.0})
    new_year = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).timestamp()
    assert plant.frames[-1].time_s == new_year


@pytest.mark.parametrize(
    ("code", "quality"),
    [(ua.StatusCodes.BadSensorFailure, Quality.UNCERTAIN),
     (ua.StatusCodes.UncertainLastUsableValue, Quality.UNCERTAIN)],
)  # fmt: skip
def test_a_status_code_is_a_quality(
    plant: Plant, server: Server, code: int, quality: Quality
) -> None:
    with running(source(plant, server)):
        eventually(lambda: plant.newest == {"t": 20.0, "p": 1.0})
        put(server, "T", 99.0, code)
        eventually(lambda: plant.frames[-1].quality is quality)
        bad = code == ua.StatusCodes.BadSensorFailure
        assert (plant.newest["t"] == 99.0) != bad
        assert plant.newest["p"] == 1.0


def test_a_node_that_is_not_there_is_a_bad_value_and_said(plant: Plant, server: Server) -> None:
    tags = [*TAGS, {"name": "gone", "node": "ns=2;s=Press.Gone"}]
    with running(source(plant, server, tags=tags)):
        eventually(lambda: plant.newest.get("t") == 20.0)
    assert plant.frames[-1].quality is Quality.UNCERTAIN
    assert plant.told("gone (ns=2;s=Press.Gone): BadNodeIdUnknown")


def test_a_server_that_is_killed_is_found_again_and_subscribed_to_anew(
    plant: Plant, server: Server
) -> None:
    feed = source(plant, server)
    with running(feed):
        eventually(lambda: plant.frames)
        server.kill()
        eventually(lambda: not feed.health().up, "the loss is seen")
        count = len(plant.frames)
        server.start()
        put(server, "T", 55.0)
        eventually(lambda: plant.newest == {"t": 55.0, "p": 1.0}, "the new value")
    assert feed.health().reconnects >= 1
    assert len(plant.frames) > count
    assert plant.told("opcua 'line'")


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"url": "http://h", "tags": TAGS}, "no address"), ({"url": "opc.tcp://h", "tags": []},
     "tags"), ({"url": "opc.tcp://h", "tags": [TAGS[0], TAGS[0]]}, "a name twice")],
)  # fmt: skip
def test_wrong_settings_are_refused(plant: Plant, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingError, match=why):
        plant.source("opcua", **settings)


def test_an_id_that_is_none_is_named(plant: Plant, server: Server) -> None:
    tags = [{"name": "t", "node": "Press.T"}]
    with running(source(plant, server, tags=tags)):
        eventually(lambda: plant.told("t has the node 'Press.T'"))


# ------------------------------------------------------------------------------------- writing

NODES = {"score": "ns=2;s=Press.Score", "label": "ns=2;s=Press.Label"}


def sink(plant: Plant, server: Server, **more: object) -> Any:
    wanted: dict[str, object] = {"nodes": NODES}
    return plant.sink("opcua", url=url(server), retry_s=0.1, **(wanted | more))


def test_a_prediction_is_written_with_its_time_and_quality(plant: Plant, server: Server) -> None:
    feed = sink(plant, server, asset="pump-3")
    with running(feed):
        feed.write(prediction(asset="another"))
        feed.write(prediction(1_000.0, quality=Quality.UNCERTAIN))
        eventually(lambda: feed.health().up and not feed.health().waiting)
        eventually(lambda: read(server, "Label").Value.Value == "good")
        said = read(server, "Score")
    assert said.Value.Value == pytest.approx(0.7)
    assert said.StatusCode.is_uncertain()
    assert said.SourceTimestamp.replace(tzinfo=datetime.UTC).timestamp() == 1_000.0
    assert feed.health().count == 1


def test_a_node_that_refuses_is_said_and_the_others_are_written(
    plant: Plant, server: Server
) -> None:
    nodes = NODES | {"score/bad": "ns=2;s=Press.Fixed", "score/odd": "ns=2;s=Press.Gone",
                     "score/good": "ns=2;s=Press.Count",
                     "release": "ns=2;s=Press.T"}  # fmt: skip
    feed = sink(plant, server, nodes=nodes)
    with running(feed):
        feed.write(prediction())
        eventually(lambda: read(server, "Score").Value.Value == pytest.approx(0.7))
    assert plant.told("score/bad (ns=2;s=Press.Fixed): Bad")
    assert plant.told("score/odd (ns=2;s=Press.Gone)")
    assert plant.told("release (ns=2;s=Press.T): 'lot-codes@1' is no Double")
    assert read(server, "Count").Value.Value == 1  # 0.7 for a whole number


def test_what_waits_is_written_in_order_when_the_server_is_back(
    plant: Plant, server: Server
) -> None:
    feed = sink(plant, server, keep=5)
    with running(feed):
        eventually(lambda: feed.health().up)
        server.kill()
        eventually(lambda: not feed.health().up, "the loss is seen")
        for number in range(8):
            feed.write(prediction(float(number), label="bad" if number == 7 else "good"))
        assert (feed.health().waiting, feed.health().dropped) == (5, 3)
        server.start()
        eventually(lambda: not feed.health().waiting, "everything written")
    assert read(server, "Label").Value.Value == "bad"
