"""The host of Sparkplug edge nodes: births, deaths, aliases, numbers, rebirth requests."""

import json
from typing import Any

import pytest

from shoal.agent.feeds.frames import Quality
from shoal.agent.feeds.sparkplug_host import Host, host_online, parse_topic
from shoal.agent.feeds.sparkplug_payload import (
    BOOLEAN,
    DOUBLE,
    FLOAT,
    INT16,
    INT64,
    Metric,
    decode,
)
from shoal.errors import WireError
from unit.feeds.sparkplug_messages import message, values_of

BIRTH = message(
    0,
    Metric("bdSeq", datatype=INT64, value=7),
    Metric("Node Control/Rebirth", datatype=BOOLEAN, value=False),
    Metric("t", alias=1, datatype=DOUBLE, value=20.0),
    Metric("n", alias=2, datatype=INT16, value=-3),
)
TOPIC = "spBv1.0/plant/{}/press"


def born() -> Host:
    host = Host()
    host.receive(TOPIC.format("NBIRTH"), BIRTH, 0.0, 0.0)
    return host


def test_a_birth_has_every_metric_and_data_the_changes_by_alias() -> None:
    host = Host()
    (frame,) = host.receive(TOPIC.format("NBIRTH"), BIRTH, 0.0, 0.0).frames
    assert values_of(frame) == {"t": 20.0, "n": -3.0}
    assert (frame.asset, frame.time_s, frame.quality) == ("press", 5.0, Quality.GOOD)
    changed = message(1, Metric(alias=2, value=65_535, datatype=INT16), time_ms=6_000)
    (frame,) = host.receive(TOPIC.format("NDATA"), changed, 0.0, 0.0).frames
    assert values_of(frame) == {"t": 20.0, "n": -1.0}


def test_a_devices_metrics_are_an_asset_of_their_own() -> None:
    host = born()
    birth = message(1, Metric("t", alias=9, datatype=FLOAT, value=1.5))
    (frame,) = host.receive(TOPIC.format("DBIRTH") + "/drive", birth, 0.0, 0.0).frames
    assert (frame.asset, values_of(frame)) == ("press/drive", {"t": 1.5})
    (gone,) = host.receive(TOPIC.format("DDEATH") + "/drive", message(2), 0.0, 0.0).frames
    assert (gone.asset, gone.quality) == ("press/drive", Quality.BAD)
    data = message(3, Metric(alias=1, value=1.0, datatype=DOUBLE))
    assert host.receive(TOPIC.format("NDATA"), data, 0.0, 0.0).frames


VALUE = Metric(alias=1, value=1.0, datatype=DOUBLE)


def hear(host: Host, kind: str, data: bytes, at_s: float = 0.0) -> Any:
    return host.receive(TOPIC.format(kind), data, at_s, at_s)


@pytest.mark.parametrize("seq", [0, 40, 255, 256, None])
def test_a_number_out_of_reach_requests_a_rebirth_once_and_emits_nothing_until_it_arrives(
    seq: int | None,
) -> None:
    host = born()
    received = hear(host, "NDATA", message(seq, VALUE), 100.0)
    assert received.frames == []
    topic, request = received.rebirth
    assert topic == "spBv1.0/plant/NCMD/press"
    assert decode(request).metrics[0][:1] == ("Node Control/Rebirth",)
    assert hear(host, "NDATA", message(4, VALUE), 101.0).rebirth is None
    assert hear(host, "NBIRTH", BIRTH, 102.0).frames
    assert hear(host, "NDATA", message(1, VALUE), 103.0).frames


def test_messages_out_of_order_are_applied_in_order() -> None:
    host = born()
    for number in (3, 2):
        early = message(number, VALUE, time_ms=number * 1_000)
        assert hear(host, "NDATA", early) == ([], None, 0)
    taken = hear(host, "NDATA", message(1, VALUE, time_ms=1_000))
    assert [frame.time_s for frame in taken.frames] == [5.0, 5.0, 5.0]  # "n" is of the birth
    assert hear(host, "NDATA", message(4, VALUE)).frames
    assert host.overdue(100.0, 100.0) == []


def test_a_message_that_never_arrives_is_waited_for_and_then_a_rebirth_requested() -> None:
    host = born()
    assert hear(host, "NDATA", message(2, VALUE), 10.0) == ([], None, 0)
    assert host.overdue(11.0, 11.0) == []
    (asked,) = host.overdue(12.0, 12.0)
    assert asked.rebirth[0] == "spBv1.0/plant/NCMD/press"
    assert host.overdue(13.0, 13.0) == []
    assert hear(host, "NDATA", message(1, VALUE), 13.0).frames == []
    assert hear(host, "NBIRTH", BIRTH, 14.0).frames


@pytest.mark.parametrize("late", [1, 4, 30])
def test_what_the_broker_delivers_again_counts_once_and_is_no_gap(late: int) -> None:
    host = born()
    sent = [message(n, VALUE, time_ms=n) for n in range(1, 1 + late)]
    for data in sent:
        assert hear(host, "NDATA", data).frames
    for data in (BIRTH, *sent):
        kind = "NBIRTH" if data is BIRTH else "NDATA"
        assert hear(host, kind, data) == ([], None, 0)
    assert hear(host, "NDATA", message(late + 1, VALUE)).frames


def test_a_node_that_never_responds_is_asked_ever_more_rarely() -> None:
    host = Host()
    asked = [s for s in range(3_600) if hear(host, "NDATA", message(s % 256, VALUE), s).rebirth]
    assert asked == [0, 10, 30, 70, 150, 310, 630, 1_230, 1_830, 2_430, 3_030]


def test_a_node_that_ran_steadily_since_its_birth_is_asked_at_once_again() -> None:
    host = Host()
    for at_s in (0.0, 10.0, 30.0):
        assert hear(host, "NDATA", message(9, VALUE), at_s).rebirth
    hear(host, "NBIRTH", BIRTH, 31.0)
    assert hear(host, "NDATA", message(1, VALUE), 92.0).frames
    assert hear(host, "NDATA", message(99, VALUE), 93.0).rebirth
    assert hear(host, "NDATA", message(99, VALUE), 104.0).rebirth


def test_a_gap_soon_after_each_birth_does_not_reset_the_pause() -> None:
    host, asked = Host(), 0
    for at_s in range(0, 3_600, 5):
        received = hear(host, "NDATA", message(200, VALUE), at_s)
        if received.rebirth:
            asked += 1
            hear(host, "NBIRTH", BIRTH, at_s + 1)
    assert asked == 11


@pytest.mark.parametrize(
    ("topic", "metric"), [("NDATA", Metric(alias=77, value=1.0)), ("DDATA/drive", VALUE)]
)
def test_an_alias_or_a_device_that_no_birth_declared_requests_a_rebirth_and_costs_no_value(
    topic: str, metric: Metric
) -> None:
    host, (kind, _, device) = born(), topic.partition("/")
    where = TOPIC.format(kind) + (f"/{device}" if device else "")
    received = host.receive(where, message(1, VALUE, metric), 9.0, 9.0)
    assert received.frames
    assert received.rebirth is not None
    assert hear(host, "NBIRTH", BIRTH, 10.0).frames, "the same bytes again, as was asked for"
    assert hear(host, "NDATA", message(1, VALUE), 11.0).frames


def test_a_death_may_give_its_bdseq_by_the_alias_of_the_birth() -> None:
    host = Host()
    numbered = Metric("bdSeq", alias=1, datatype=INT64, value=7)
    hear(host, "NBIRTH", message(0, numbered, Metric("t", alias=2, datatype=DOUBLE, value=1.0)))
    old = message(None, Metric(alias=1, datatype=INT64, value=6))
    assert hear(host, "NDEATH", old).frames == []
    (frame,) = hear(host, "NDEATH", message(None, Metric(alias=1, datatype=INT64, value=7))).frames
    assert frame.quality is Quality.BAD


def test_a_death_without_bdseq_is_believed_of_a_node_whose_birth_had_none() -> None:
    host = Host()
    hear(host, "NBIRTH", message(0, Metric("t", datatype=DOUBLE, value=1.0)))
    (frame,) = hear(host, "NDEATH", message(None)).frames
    assert frame.quality is Quality.BAD
    assert hear(born(), "NDEATH", message(None)).frames == []


def test_sequence_numbers_wrap_at_256() -> None:
    host = born()
    for number in range(1, 600):
        assert hear(host, "NDATA", message(number % 256, VALUE)).frames


def test_a_death_of_this_birth_makes_every_value_bad_and_one_of_another_birth_none() -> None:
    host = born()
    old = message(None, Metric("bdSeq", datatype=INT64, value=6))
    assert host.receive(TOPIC.format("NDEATH"), old, 0.0, 0.0).frames == []
    mine = message(None, Metric("bdSeq", datatype=INT64, value=7))
    (frame,) = host.receive(TOPIC.format("NDEATH"), mine, 0.0, 0.0).frames
    assert frame.quality is Quality.BAD


def test_null_is_bad_quality_and_historical_metrics_are_no_readings() -> None:
    host = born()
    odd = message(
        1,
        Metric(alias=1, datatype=DOUBLE, value=None),
        Metric(alias=2, datatype=INT16, value=5, quality=500),
    )
    (frame,) = host.receive(TOPIC.format("NDATA"), odd, 0.0, 0.0).frames
    assert frame.quality is Quality.UNCERTAIN
    assert frame.rows[0, 0] != frame.rows[0, 0]
    past = message(2, Metric(alias=1, datatype=DOUBLE, value=9.0, historical=True))
    assert host.receive(TOPIC.format("NDATA"), past, 0.0, 0.0) == ([], None, 1)


@pytest.mark.parametrize(
    "topic", ["spBv1.0/g/NDATA", "spAv1.0/g/NDATA/n", "spBv1.0/g/NDATA/n/d", "spBv1.0/g/DDATA/n",
              "spBv1.0/STATE/scada", "spBv1.0/g/NCMD/n"]
)  # fmt: skip
def test_other_topics_are_ignored(topic: str) -> None:
    assert parse_topic(topic) is None
    assert Host().receive(topic, b"\xff", 0.0, 0.0) == ([], None, 0)


def test_the_state_of_a_host_is_read_in_both_versions() -> None:
    new = json.dumps({"online": True, "timestamp": 5}).encode()
    assert host_online("spBv1.0/STATE/scada", new) == (True, 5)
    assert host_online("STATE/scada", b"OFFLINE") == (False, 0)
    for odd in (b"", b"[]", b"{}", b"ONLINE"):
        assert host_online("spBv1.0/STATE/scada", odd) is None


def test_the_devices_of_a_node_are_bounded() -> None:
    host = born()
    birth = Metric("t", datatype=FLOAT, value=1.5)
    topic = TOPIC.format("DBIRTH") + "/drive-{}"
    for number in range(1, 1_024):
        host.receive(topic.format(number), message(number % 256, birth), 0.0, 0.0)
    with pytest.raises(WireError, match="more than 1024 devices"):
        host.receive(topic.format("more"), message(0, birth), 0.0, 0.0)
