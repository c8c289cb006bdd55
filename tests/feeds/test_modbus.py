"""The modbus source with a pymodbus server: values, exceptions, reconnects."""

import struct
from collections.abc import Iterator

import pytest

from devices import MODEL, engine
from feed_doubles import Recorder, feeds_of, running, serving_of
from feeds.processes import Server, server_of
from shoal.agent.feeds.frames import Quality
from shoal.agent.feeds.registers import TYPES
from shoal.errors import SettingError
from waiting import eventually

client_of = pytest.importorskip("pymodbus.client").ModbusTcpClient


@pytest.fixture
def server() -> Iterator[Server]:
    made = server_of("modbus_server.py")
    made.start()
    yield made
    made.stop()


def write(server: Server, address: int, *registers: int) -> None:
    with client_of("127.0.0.1", port=server.port) as client:
        assert not client.write_registers(address, list(registers), device_id=1).isError()


def words(kind: str, number: float) -> list[int]:
    raw = struct.pack(TYPES[kind][1], number)
    return [int.from_bytes(raw[i : i + 2], "big") for i in range(0, len(raw), 2)]


def plc(recorder: Recorder, server: Server, *tags: dict[str, object], **more: object):  # type: ignore[no-untyped-def]
    return recorder.source("modbus", host="127.0.0.1", port=server.port, tags=list(tags),
                        every_s=0.02, timeout_s=1.0, retry_s=0.1, **more)  # fmt: skip


def test_registers_and_bits_of_every_kind_are_read_in_one_frame(
    recorder: Recorder, server: Server
) -> None:
    write(server, 0, 65_533, *words("float32", 21.5), *reversed(words("int32", -70_000)), 0b100)
    with client_of("127.0.0.1", port=server.port) as client:
        client.write_coil(5, True, device_id=1)
    source = plc(
        recorder, server,
        {"name": "n", "address": 0},
        {"name": "t", "address": 1, "type": "float32"},
        {"name": "count", "address": 3, "type": "int32", "words": "little"},
        {"name": "alarm", "address": 5, "bit": 2},
        {"name": "door", "address": 5, "table": "coil"},
        {"name": "shut", "address": 6, "table": "coil"},
        {"name": "input", "address": 3, "table": "input", "type": "uint16"},
        {"name": "switch", "address": 3, "table": "discrete"},
        asset="press",
    )  # fmt: skip
    with running(source):
        eventually(lambda: recorder.frames)
    assert recorder.newest == {
        "n": -3, "t": 21.5, "count": -70_000, "alarm": 1, "door": 1, "shut": 0, "input": 0,
        "switch": 0,
    }  # fmt: skip
    assert (recorder.frames[0].asset, recorder.frames[0].quality) == ("press", Quality.GOOD)


def test_an_illegal_address_costs_no_other_tag_its_value(
    recorder: Recorder, server: Server
) -> None:
    write(server, 38, 7, 8)
    source = plc(recorder, server, {"name": "good", "address": 38}, {"name": "gone", "address": 45},
                 {"name": "also", "address": 39})  # fmt: skip
    with running(source):
        eventually(lambda: len(recorder.frames) > 3)
        assert source.health().up
    assert (recorder.newest["good"], recorder.newest["also"]) == (7, 8)
    assert recorder.newest["gone"] != recorder.newest["gone"]
    assert recorder.frames[-1].quality is Quality.UNCERTAIN
    assert recorder.reported("line: gone (holding 45): there is no such address")
    assert source.health().bad == source.health().count


def test_a_device_that_refuses_every_address_gives_bad_frames(
    recorder: Recorder, server: Server
) -> None:
    with running(plc(recorder, server, {"name": "gone", "address": 300})):
        eventually(lambda: len(recorder.frames) > 2)
    assert {frame.quality for frame in recorder.frames} == {Quality.BAD}


def test_a_source_reconnects_when_its_server_is_back(recorder: Recorder, server: Server) -> None:
    source = plc(recorder, server, {"name": "n", "address": 0})
    with running(source):
        eventually(lambda: recorder.frames)
        server.kill()
        eventually(lambda: not source.health().up, "the loss is seen")
        server.start()
        write(server, 0, 42)
        eventually(lambda: recorder.newest == {"n": 42}, "the new value")
        assert source.health().reconnects >= 1
    assert recorder.reported("modbus 'line'")


def test_a_missing_server_is_reported_and_tried_again(recorder: Recorder, server: Server) -> None:
    server.kill()
    source = plc(recorder, server, {"name": "n", "address": 0})
    with running(source):
        eventually(lambda: len(recorder.faults) > 2)
    assert recorder.reported("does not respond")
    assert source.health().error == "stopped"


def test_a_model_is_fed_by_the_plc_in_the_plcs_units(recorder: Recorder, server: Server) -> None:
    serving = serving_of(engine(1))
    tags = [{"name": "contrast", "address": 0}, {"name": "blur", "address": 1}]
    table = {"kind": "modbus", "host": "127.0.0.1", "port": server.port, "tags": tags,
             "every_s": 0.02, "model": MODEL}  # fmt: skip
    feeds = feeds_of(recorder, {MODEL: serving}, {"plc": table})
    feeds.start()
    eventually(lambda: serving.vitals.rows > 3)
    feeds.stop()
    assert serving.vitals.errors == 0


@pytest.mark.parametrize(
    ("tags", "why"),
    [([], "tags: Expected `array` of length >= 1"),
     ([{"name": "a", "address": 70_000}], r"tags\[0\].address"),
     ([{"name": "a", "address": 1, "type": "real"}], r"tags\[0\].type"),
     ([{"name": "a", "address": 1}, {"name": "a", "address": 2}], "has a name twice"),
     ([{"name": "a", "address": 65_535, "type": "float32"}], "a: 2 registers from 65535 end"),
     ([{"name": "a", "address": 1, "type": "string"}], "a: a string needs its length"),
     ([{"name": "a", "address": 1, "length": 2}], "a: only a string has a length"),
     ([{"name": "a", "address": 1, "type": "float32", "bit": 1}], "a: only whole numbers"),
     ([{"name": "a", "address": 1, "bit": 12, "bits": 5}], "a: a int16 has 16 bits"),
     ([{"name": "a", "address": 1, "scale": float("inf")}], "a: scale and offset")],
)  # fmt: skip
def test_invalid_tags_are_refused(recorder: Recorder, tags: object, why: str) -> None:
    with pytest.raises(SettingError, match=why):
        recorder.source("modbus", host="h", tags=tags)
