"""Sparkplug B: protobuf's own bytes; births, deaths and numbers as the standard has them."""

import json
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from feed_doubles import prediction
from shoal.agent.feeds import sparkplug_payload
from shoal.agent.feeds.sparkplug_host import Host
from shoal.agent.feeds.sparkplug_node import BATCH, EdgeNode
from shoal.agent.feeds.sparkplug_payload import (
    BOOLEAN,
    DATETIME,
    DOUBLE,
    FLOAT,
    INT8,
    INT16,
    INT32,
    INT64,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    Metric,
    Payload,
    decode,
    encode,
)
from shoal.errors import OversizeError, SettingError, WireError
from unit.feeds.sparkplug_messages import message, values_of

#: Field name, number, protobuf type, and whether it is in the oneof: of Tahu's sparkplug_b.proto.
STRINGS, MESSAGE, U32, U64, F32, F64, BOOL, BYTES = 9, 11, 13, 4, 2, 1, 8, 12
TAHU: dict[str, list[tuple[str, int, int, str]]] = {
    "Payload": [("timestamp", 1, U64, ""), ("metrics", 2, MESSAGE, "*Metric"), ("seq", 3, U64, ""),
                ("uuid", 4, STRINGS, ""), ("body", 5, BYTES, "")],
    "Metric": [("name", 1, STRINGS, ""), ("alias", 2, U64, ""), ("timestamp", 3, U64, ""),
               ("datatype", 4, U32, ""), ("is_historical", 5, BOOL, ""),
               ("is_transient", 6, BOOL, ""), ("is_null", 7, BOOL, ""),
               ("properties", 9, MESSAGE, "PropertySet"), ("int_value", 10, U32, "="),
               ("long_value", 11, U64, "="), ("float_value", 12, F32, "="),
               ("double_value", 13, F64, "="), ("boolean_value", 14, BOOL, "="),
               ("string_value", 15, STRINGS, "="), ("bytes_value", 16, BYTES, "=")],
    "PropertySet": [("keys", 1, STRINGS, "*"), ("values", 2, MESSAGE, "*PropertyValue")],
    "PropertyValue": [("type", 1, U32, ""), ("is_null", 2, BOOL, ""), ("int_value", 3, U32, "="),
                      ("long_value", 4, U64, "=")],
}  # fmt: skip


def compiled() -> Any:
    """The Payload class that protobuf itself makes of the above."""
    file = descriptor_pb2.FileDescriptorProto(name="tahu.proto", package="t", syntax="proto2")
    for name, fields in TAHU.items():
        message = file.message_type.add(name=name)
        message.oneof_decl.add(name="value")
        for field, number, kind, more in fields:
            added = message.field.add(name=field, number=number, type=kind, label=1)
            if more.startswith("*"):
                added.label = 3
            if more == "=":
                added.oneof_index = 0
            if more.lstrip("*=").isalpha():
                added.type_name = f".t.{more.lstrip('*')}"
        if not any(more == "=" for *_, more in fields):
            del message.oneof_decl[:]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Payload"))


PROTOBUF = compiled()
TEXT = st.text("aZ/ é漢🙂", max_size=8)
RANGES = {INT8: 7, INT16: 15, INT32: 31, INT64: 63}
WHOLE = {UINT8: 8, UINT32: 32, UINT64: 64, DATETIME: 63}


@st.composite
def values(draw: st.DrawFn) -> tuple[int, Any]:
    kind = draw(st.sampled_from([*RANGES, *WHOLE, FLOAT, DOUBLE, BOOLEAN, STRING]))
    if kind in RANGES:
        return kind, draw(st.integers(-(2 ** RANGES[kind]), 2 ** RANGES[kind] - 1))
    if kind in WHOLE:
        return kind, draw(st.integers(0, 2 ** WHOLE[kind] - 1))
    if kind == BOOLEAN:
        return kind, draw(st.booleans())
    if kind == STRING:
        return kind, draw(TEXT)
    return kind, draw(st.floats(allow_nan=False, width=32 if kind == FLOAT else 64))


@st.composite
def metrics(draw: st.DrawFn) -> Metric:
    kind, value = draw(values())
    whole = st.none() | st.integers(0, 2**63)
    return Metric(
        name=draw(TEXT), alias=draw(whole), time_ms=draw(whole), datatype=kind,
        value=draw(st.sampled_from([value, None])), historical=draw(st.booleans()),
        quality=draw(st.sampled_from([None, 0, 192, 500])),
    )  # fmt: skip


payloads = st.builds(
    Payload, st.none() | st.integers(0, 2**63), st.lists(metrics(), max_size=5),
    st.none() | st.integers(0, 255),
)  # fmt: skip


@given(payloads)
def test_protobuf_reads_what_we_write_and_we_read_what_protobuf_writes(payload: Payload) -> None:
    data = encode(payload)
    theirs = PROTOBUF.FromString(data)
    assert theirs.HasField("seq") == (payload.seq is not None)
    assert [m.name for m in theirs.metrics] == [m.name for m in payload.metrics]
    for metric, other in zip(payload.metrics, theirs.metrics, strict=True):
        assert other.is_null == (metric.value is None)
        assert other.is_historical == metric.historical
        if metric.value is not None:
            raw = getattr(other, other.WhichOneof("value"))
            assert sparkplug_payload.typed(raw, metric.datatype) == metric.value
    assert decode(data) == payload
    assert decode(theirs.SerializeToString()) == payload


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_a_wire_error(data: bytes) -> None:
    try:
        decode(data)
    except WireError:
        pass


@given(payloads, st.integers(0, 400))
def test_a_truncated_payload_is_decoded_or_refused(payload: Payload, cut: int) -> None:
    try:
        decode(encode(payload)[:cut])
    except WireError:
        pass


def test_unknown_fields_are_skipped() -> None:
    theirs = PROTOBUF(timestamp=1, seq=2, uuid="u", body=b"b")
    theirs.metrics.add(name="x", is_transient=True, datatype=17, bytes_value=b"file")
    assert decode(theirs.SerializeToString()) == Payload(1, [Metric("x", datatype=17)], 2)


def test_a_payload_too_large_is_not_decoded() -> None:
    with pytest.raises(OversizeError):
        decode(b"\0" * (sparkplug_payload.LIMIT + 1))


# ------------------------------------------------------------------------------------- a node


def node(host: str = "", limit: int = 1_000, bd_seq: int = 0) -> EdgeNode:
    return EdgeNode("plant", "gateway", bd_seq=bd_seq, host=host, limit=limit)


def state(online: bool, timestamp: int) -> tuple[str, bytes]:
    found = {"online": online, "timestamp": timestamp}
    return "spBv1.0/STATE/scada", json.dumps(found).encode()


def kinds(packets: list[Any]) -> list[str]:
    return [packet.topic.split("/")[2] for packet in packets]


def test_the_will_and_the_birth_carry_one_bdseq_and_the_next_connection_the_next() -> None:
    edge = node(bd_seq=255)
    for number in (255, 0, 1):
        will = decode(edge.connecting().payload)
        (birth,) = edge.connected(1.0)
        assert will.seq is None
        read = decode(birth.payload)
        assert read.seq == 0
        assert will.metrics[0][0] == read.metrics[0][0] == "bdSeq"
        assert will.metrics[0].value == read.metrics[0].value == number
        assert "Node Control/Rebirth" in [m.name for m in read.metrics]
        edge.disconnected()


def test_a_new_metric_is_in_a_birth_and_then_published_by_its_alias() -> None:
    edge = node()
    edge.connecting()
    edge.connected(1.0)
    (birth,) = edge.publish(prediction(2.0), 2.0)
    named = {m.name: m for m in decode(birth.payload).metrics}
    label = named["pump-3/lot-codes/label"]
    assert (label.value, label.datatype) == ("good", STRING)
    assert named["pump-3/lot-codes/release"].value == "lot-codes@1"
    (data,) = edge.publish(prediction(3.0, label="bad"), 3.0)
    read = decode(data.payload)
    assert read.seq == 1
    by_alias = {m.alias: m for m in read.metrics}
    assert (by_alias[label.alias].name, by_alias[label.alias].value) == ("", "bad")
    assert by_alias[label.alias].time_ms == 3_000
    last = [decode(edge.publish(prediction(t), t)[0].payload).seq for t in range(4, 600)][-1]
    assert last == (1 + 596) % 256


def test_our_host_decodes_every_message_of_our_node() -> None:
    edge, host = node(), Host()
    edge.connecting()
    packets = edge.connected(1.0)
    for time_s in range(2, 400):
        packets += edge.publish(prediction(float(time_s), asset=f"pump-{time_s % 3}"), time_s)
    frames = []
    for packet in packets:
        received = host.receive(packet.topic, packet.payload, 0.0, 0.0)
        assert received.rebirth is None
        frames += received.frames
    assert values_of(frames[-1])["pump-0/lot-codes/score"] == pytest.approx(0.7)


def test_while_the_primary_host_is_away_predictions_are_stored_and_then_historical() -> None:
    edge = node(host="scada")
    assert "spBv1.0/STATE/scada" in edge.subscriptions
    edge.connecting()
    assert edge.connected(1.0) == []
    assert edge.received(*state(False, 10), 1.0) == []
    assert not edge.host_lost
    for time_s in range(BATCH + 50):
        assert edge.publish(prediction(float(time_s)), 1.0) == []
    assert edge.waiting == BATCH + 50
    packets = edge.received(*state(True, 20), 2.0)
    assert kinds(packets) == ["NBIRTH", "NDATA", "NDATA"]
    for packet in packets[1:]:
        assert all(metric.historical for metric in decode(packet.payload).metrics)
    assert [decode(p.payload).seq for p in packets] == [0, 1, 2]
    assert edge.waiting == 0
    assert not decode(edge.publish(prediction(9.0), 9.0)[0].payload).metrics[0].historical


def test_stored_predictions_are_published_at_every_birth_until_they_are_sent() -> None:
    edge = node(host="scada", limit=3)
    for time_s in range(3):
        edge.store(prediction(float(time_s)))
    for number in (1, 2):
        edge.connecting()
        edge.connected(1.0)
        assert kinds(edge.received(*state(True, 10 * number), 1.0)) == ["NBIRTH", "NDATA"]
        assert edge.waiting == 0
        edge.disconnected()
        assert edge.waiting == 3
    edge.connecting()
    edge.received(*state(True, 30), 1.0)
    edge.discard_published()
    edge.disconnected()
    assert (edge.waiting, edge.dropped) == (0, 0)


def test_a_primary_host_that_goes_offline_ends_the_connection_with_a_death() -> None:
    edge = node(host="scada")
    edge.connecting()
    edge.connected(1.0)
    edge.received(*state(True, 20), 2.0)
    assert edge.received(*state(False, 10), 3.0) == []  # older: it arrives late
    assert kinds(edge.received(*state(False, 30), 3.0)) == ["NDEATH"]
    assert edge.host_lost
    edge.disconnected()
    edge.connecting()
    assert not edge.host_lost


def test_a_rebirth_request_is_followed_by_a_birth() -> None:
    edge = node()
    edge.connecting()
    edge.connected(1.0)
    edge.publish(prediction(), 1.0)
    ask = message(None, Metric("Node Control/Rebirth", datatype=BOOLEAN, value=True))
    (birth,) = edge.received("spBv1.0/plant/NCMD/gateway", ask, 2.0)
    assert kinds([birth]) == ["NBIRTH"]
    assert "pump-3/lot-codes/score" in [m.name for m in decode(birth.payload).metrics]
    no = message(None, Metric("Node Control/Rebirth", datatype=BOOLEAN, value=False))
    assert edge.received("spBv1.0/plant/NCMD/gateway", no, 2.0) == []


def test_beyond_its_limit_the_oldest_is_dropped_and_counted() -> None:
    edge = node(limit=10)
    for time_s in range(25):
        edge.publish(prediction(float(time_s)), 1.0)
    assert (edge.waiting, edge.dropped) == (10, 15)


def test_a_name_that_cannot_be_in_a_topic_is_refused() -> None:
    with pytest.raises(SettingError, match="Sparkplug node 'a/b'"):
        EdgeNode("plant", "a/b", bd_seq=0, host="", limit=1)
