"""What devices publish on a real broker: retained, lists, times in other units, and nonsense."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from feed_doubles import Recorder, running
from feeds.mosquitto import Client, PlantBroker
from shoal.agent.feeds.frames import Quality
from shoal.agent.feeds.io.mqtt import unix_time
from shoal.agent.feeds.sparkplug_payload import DOUBLE, INT64, Metric, Payload, encode
from shoal.errors import WireError
from waiting import eventually

Join = Callable[..., Client]
broker_test = pytest.mark.broker
NONSENSE = [
    b"", b"???", b"null", b"[]", b"NaN", b"\xff{", b"[1, 2]", b'[{"t": 1}, 2]', b'{"t": NaN}',
    b'{"t": 1e999}', b'{"t": 1' + b"0" * 400 + b"}", b'{"t": {}}', b'{"t": [1]}', b'{"t": "x"}',
    b"[" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900, b'{"t": 1, "t": 2}', b"1" * 5_000,
]  # fmt: skip


def source(recorder: Recorder, broker: PlantBroker, **more: Any) -> Any:
    wanted: dict[str, Any] = {"topics": ["press/#"], "retry_s": 0.1}
    return recorder.source("mqtt", url=broker.url, **(wanted | more))


@broker_test
def test_whatever_a_device_publishes_the_next_reading_is_taken_on_the_same_connection(
    recorder: Recorder, broker: PlantBroker, client: Join
) -> None:
    publisher, feed = client(), source(recorder, broker)
    with running(feed):
        eventually(lambda: feed.health().up)
        for number, payload in enumerate(NONSENSE):
            publisher.publish("press/odd", payload)
            publisher.publish("press/all", f'{{"good": {number}}}')
            eventually(lambda n=number: recorder.newest.get("good") == n, repr(payload[:40]))
    assert feed.health().reconnects == 0
    assert recorder.newest["t"] == 2, "the last of two"


@broker_test
@pytest.mark.parametrize(
    ("settings", "payload", "quality"),
    [({}, b'{"t": 21.5}', Quality.UNCERTAIN), ({"retained": "use"}, b'{"t": 21.5}', Quality.GOOD),
     ({"time": "at"}, b'{"t": 21.5, "at": 1764000000}', Quality.GOOD),
     ({"retained": "ignore"}, b'{"t": 21.5}', None)],
)  # fmt: skip
def test_a_retained_message_is_a_reading_of_unknown_age(
    recorder: Recorder, broker: PlantBroker, client: Join, settings: dict[str, Any],
    payload: bytes, quality: Quality | None,
) -> None:  # fmt: skip
    publisher, feed = client(), source(recorder, broker, **settings)
    publisher.publish("press/t", payload, retain=True)
    with running(feed):
        eventually(lambda: feed.health().up)
        publisher.publish("press/t", b'{"t": 22.0}')
        eventually(lambda: recorder.newest == {"t": 22.0})
    assert recorder.frames[-1].quality is Quality.GOOD
    assert [frame.quality for frame in recorder.frames[:-1]] == (
        [] if quality is None else [quality]
    )


@broker_test
def test_a_retained_birth_is_no_birth(
    recorder: Recorder, broker: PlantBroker, client: Join
) -> None:
    publisher = client("spBv1.0/plant/NCMD/#")
    feed = source(recorder, broker, topics=["spBv1.0/plant/#"], format="sparkplug")
    birth = [Metric("bdSeq", datatype=INT64, value=0), Metric("t", datatype=DOUBLE, value=20.0)]
    publisher.publish("spBv1.0/plant/NBIRTH/press", encode(Payload(1, birth, 0)), retain=True)
    with running(feed):
        eventually(lambda: feed.health().up)
        data = encode(Payload(2, [Metric("t", datatype=DOUBLE, value=21.0)], 1))
        publisher.publish("spBv1.0/plant/NDATA/press", data)
        eventually(lambda: publisher.received, "a request for a birth")
    assert recorder.frames == []


@broker_test
def test_a_list_of_objects_is_a_frame_each_with_its_own_time(
    recorder: Recorder, broker: PlantBroker, client: Join
) -> None:
    publisher = client()
    feed = source(recorder, broker, time="ts", time_unit="ms", asset=1)
    sent = [{"ts": 1_764_000_000_000 + 10 * n, "values": {"t": n}} for n in range(3)]
    sent.insert(1, {"ts": "never", "values": {"t": -1}})
    with running(feed):
        eventually(lambda: feed.health().up)
        publisher.publish("press/press-3", json.dumps(sent))
        eventually(lambda: len(recorder.frames) == 3)
    assert [frame.time_s for frame in recorder.frames] == [
        1_764_000_000 + n / 100 for n in range(3)
    ]
    assert [frame.rows[0, 0] for frame in recorder.frames] == [0, 1, 2]
    assert recorder.frames[0].asset == "press-3"
    assert recorder.reported("press/press-3: 'never' is no time")


@pytest.mark.parametrize(
    ("cell", "unit", "found"),
    [(1_764_000_000.5, "s", 1_764_000_000.5), ("1764000000", "s", 1_764_000_000),
     (1_764_000_000_000, "ms", 1_764_000_000), (1_764_000_000_000_000, "us", 1_764_000_000),
     (1_764_000_000_000_000_000, "ns", 1_764_000_000), (0, "s", 0),
     ("2026-01-01T00:00:00Z", "ns", 1_767_225_600)],
)  # fmt: skip
def test_a_time_is_read_in_its_unit(cell: Any, unit: str, found: float) -> None:
    assert unix_time(cell, unit) == found


@pytest.mark.parametrize(
    ("cell", "hint"),
    [(1_764_000_000_000, 'set time_unit = "ms"'), ("1764000000000000", 'set time_unit = "us"'),
     (1_764_000_000_000_000_000, 'set time_unit = "ns"'), (-5, ""), (10**400, ""),
     (float("inf"), ""), (None, ""), ([], ""), ("0001-01-01", "")],
)  # fmt: skip
def test_a_time_that_cannot_be_one_is_refused_with_the_unit_it_fits(cell: Any, hint: str) -> None:
    with pytest.raises(WireError) as refused:
        unix_time(cell, "s")
    assert hint in refused.value.hint
