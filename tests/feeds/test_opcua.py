"""OPC UA source and sink with an asyncua server: subscription, status codes, writes, reconnects."""

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from feed_doubles import Recorder, prediction, running
from feeds.processes import Server, server_of
from shoal.agent.feeds.frames import Quality
from shoal.errors import SettingError
from waiting import eventually

pytest.importorskip("asyncua")
from asyncua import ua
from asyncua.sync import Client

TAGS = [{"name": "t", "node": "nsu=plant;s=Press.T"}, {"name": "p", "node": "ns=2;s=Press.P"}]


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
    value = ua.DataValue(
        Value=ua.Variant(value, kind),
        StatusCode=ua.StatusCode(code),
        SourceTimestamp=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    )
    at(server, lambda client: client.get_node(f"ns=2;s=Press.{name}").write_value(value))


def read(server: Server, name: str) -> Any:
    return at(server, lambda client: client.get_node(f"ns=2;s=Press.{name}").read_data_value(False))


def source(recorder: Recorder, server: Server, **more: object) -> Any:
    wanted: dict[str, object] = {"tags": TAGS, "period_ms": 20.0, "every_s": 0.05, "asset": "press"}
    return recorder.source("opcua", url=url(server), retry_s=0.1, **(wanted | more))


def test_subscribed_values_are_frames_at_a_steady_rate(recorder: Recorder, server: Server) -> None:
    feed = source(recorder, server)
    with running(feed):
        eventually(lambda: recorder.newest == {"t": 20.0, "p": 1.0}, "the first values")
        put(server, "T", 77.5)
        eventually(lambda: recorder.newest == {"t": 77.5, "p": 1.0}, "the change")
        count = len(recorder.frames)
        eventually(lambda: len(recorder.frames) > count + 3, "frames without a change")
    assert recorder.frames[-1].asset == "press"
    assert recorder.frames[-1].quality is Quality.GOOD


def test_with_every_s_of_0_a_change_makes_a_frame_with_the_sources_time(
    recorder: Recorder, server: Server
) -> None:
    feed = source(recorder, server, every_s=0.0, tags=TAGS[:1])
    with running(feed):
        eventually(lambda: recorder.newest == {"t": 20.0})
        put(server, "T", 30.0)
        eventually(lambda: recorder.newest == {"t": 30.0})
    new_year = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).timestamp()
    assert recorder.frames[-1].time_s == new_year


@pytest.mark.parametrize(
    ("code", "quality"),
    [(ua.StatusCodes.BadSensorFailure, Quality.UNCERTAIN),
     (ua.StatusCodes.UncertainLastUsableValue, Quality.UNCERTAIN)],
)  # fmt: skip
def test_a_status_code_is_a_quality(
    recorder: Recorder, server: Server, code: int, quality: Quality
) -> None:
    with running(source(recorder, server)):
        eventually(lambda: recorder.newest == {"t": 20.0, "p": 1.0})
        put(server, "T", 99.0, code)
        eventually(lambda: recorder.frames[-1].quality is quality)
        bad = code == ua.StatusCodes.BadSensorFailure
        assert (recorder.newest["t"] == 99.0) != bad
        assert recorder.newest["p"] == 1.0


def test_a_missing_node_is_a_bad_value_and_reported(recorder: Recorder, server: Server) -> None:
    tags = [*TAGS, {"name": "gone", "node": "ns=2;s=Press.Gone"}]
    with running(source(recorder, server, tags=tags)):
        eventually(lambda: recorder.newest.get("t") == 20.0)
    assert recorder.frames[-1].quality is Quality.UNCERTAIN
    assert recorder.reported("gone (ns=2;s=Press.Gone): BadNodeIdUnknown")


def test_a_source_reconnects_and_subscribes_again_when_its_server_is_back(
    recorder: Recorder, server: Server
) -> None:
    feed = source(recorder, server)
    with running(feed):
        eventually(lambda: recorder.frames)
        server.kill()
        eventually(lambda: not feed.health().up, "the loss is seen")
        count = len(recorder.frames)
        server.start()
        put(server, "T", 55.0)
        eventually(lambda: recorder.newest == {"t": 55.0, "p": 1.0}, "the new value")
    assert feed.health().reconnects >= 1
    assert len(recorder.frames) > count
    assert recorder.reported("opcua 'line'")


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"url": "http://h", "tags": TAGS}, "no address"), ({"url": "opc.tcp://h", "tags": []},
     "tags"), ({"url": "opc.tcp://h", "tags": [TAGS[0], TAGS[0]]}, "a name twice")],
)  # fmt: skip
def test_wrong_settings_are_refused(recorder: Recorder, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingError, match=why):
        recorder.source("opcua", **settings)


# ------------------------------------------------------------------------------------- writing

NODES = {"score": "ns=2;s=Press.Score", "label": "ns=2;s=Press.Label"}


def sink(recorder: Recorder, server: Server, **more: object) -> Any:
    wanted: dict[str, object] = {"nodes": NODES}
    return recorder.sink("opcua", url=url(server), retry_s=0.1, **(wanted | more))


def test_a_prediction_is_written_with_its_time_and_quality(
    recorder: Recorder, server: Server
) -> None:
    feed = sink(recorder, server, asset="pump-3")
    with running(feed):
        feed.write(prediction(asset="another"))
        feed.write(prediction(1_000.0, quality=Quality.UNCERTAIN))
        eventually(lambda: feed.health().up and not feed.health().waiting)
        eventually(lambda: read(server, "Label").Value.Value == "good")
        written = read(server, "Score")
    assert written.Value.Value == pytest.approx(0.7)
    assert written.StatusCode.is_uncertain()
    assert written.SourceTimestamp.replace(tzinfo=datetime.UTC).timestamp() == 1_000.0
    assert feed.health().count == 1


def test_a_node_that_refuses_is_reported_and_the_others_are_written(
    recorder: Recorder, server: Server
) -> None:
    nodes = NODES | {"score/bad": "ns=2;s=Press.Fixed", "score/odd": "ns=2;s=Press.Gone",
                     "score/good": "ns=2;s=Press.Count",
                     "release": "ns=2;s=Press.T"}  # fmt: skip
    feed = sink(recorder, server, nodes=nodes)
    with running(feed):
        feed.write(prediction())
        eventually(lambda: read(server, "Score").Value.Value == pytest.approx(0.7))
    assert recorder.reported("score/bad (ns=2;s=Press.Fixed): Bad")
    assert recorder.reported("score/odd (ns=2;s=Press.Gone)")
    assert recorder.reported("release (ns=2;s=Press.T): 'lot-codes@1' is no Double")
    assert read(server, "Count").Value.Value == 1  # 0.7 for a whole number


def test_queued_predictions_are_written_in_order_when_the_server_is_back(
    recorder: Recorder, server: Server
) -> None:
    feed = sink(recorder, server, keep=5)
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
