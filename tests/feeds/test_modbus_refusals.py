"""The modbus source at a device that refuses, is busy or slow; texts of a frame."""

from collections.abc import Iterator
from typing import Any

import pytest

from feed_doubles import Recorder, running
from shoal.agent.feeds.frames import Quality
from shoal.errors import SettingError
from waiting import eventually

pytest.importorskip("pymodbus")
from pymodbus.constants import ExcCodes

from feeds.modbus_device import Device


@pytest.fixture
def device() -> Iterator[Device]:
    made = Device()
    made.start()
    yield made
    made.stop()


def polled(recorder: Recorder, device: Device, count: int, **more: object) -> Any:
    """A source of so many adjacent registers."""
    each = [{"name": f"r{i}", "address": i, "type": "uint16"} for i in range(count)]
    wanted: dict[str, Any] = {"tags": each, "every_s": 0.02, "timeout_s": 1.0, "retry_s": 0.1}
    return recorder.source("modbus", host="127.0.0.1", port=device.port, **(wanted | more))


def frames_after(recorder: Recorder, device: Device, count: int) -> float:
    """Requests for each frame, over `count` more frames."""
    frames, requests = len(recorder.frames), len(device.requests)
    eventually(lambda: len(recorder.frames) >= frames + count)
    return (len(device.requests) - requests) / (len(recorder.frames) - frames)


@pytest.mark.parametrize("code", [ExcCodes.DEVICE_FAILURE, ExcCodes.DEVICE_BUSY,
                                  ExcCodes.GATEWAY_NO_RESPONSE])  # fmt: skip
def test_a_device_that_is_busy_for_a_moment_is_asked_again_and_its_block_stays_whole(
    recorder: Recorder, device: Device, code: ExcCodes
) -> None:
    busy = iter([code])
    device.holding[:50] = range(50)
    device.answer = lambda *_: next(busy, None)
    with running(polled(recorder, device, 50)):
        eventually(lambda: recorder.newest.get("r49") == 49)
        assert recorder.frames[0].quality is Quality.GOOD, "the second attempt of the first poll"
        assert frames_after(recorder, device, 10) < 1.2
    assert {count for _, _, count in device.requests} == {50}
    assert recorder.faults == []


def test_a_device_that_stays_busy_gives_bad_values_one_fault_a_tag_and_recovers(
    recorder: Recorder, device: Device
) -> None:
    device.answer = lambda *_: ExcCodes.DEVICE_BUSY
    source = polled(recorder, device, 3)
    with running(source):
        eventually(lambda: len(recorder.frames) > 2)
        assert recorder.frames[-1].quality is Quality.BAD
        assert source.health().up
        assert source.health().error.startswith(
            "3 of 3 tags cannot be read: r0: the device is busy"
        )
        device.answer = lambda *_: None
        eventually(lambda: recorder.frames[-1].quality is Quality.GOOD)
        eventually(lambda: source.health().error == "")
    assert len(recorder.faults) == 3


def test_a_late_response_is_asked_for_again_and_not_taken_for_that_of_the_next_request(
    recorder: Recorder, device: Device
) -> None:
    device.holding[:2] = [7, 8]
    tags = [{"name": "a", "address": 0}, {"name": "far", "address": 100}]
    source = polled(recorder, device, 0, tags=tags, timeout_s=0.3)
    with running(source):
        eventually(lambda: recorder.newest == {"a": 7, "far": 0})
        device.delay_s = 0.5
        frames_after(recorder, device, 5)
        assert source.health().reconnects == 0
    assert {tuple(frame.rows[0]) for frame in recorder.frames} == {(7.0, 0.0)}


def test_an_address_that_is_refused_is_found_by_halving_and_costs_no_request_afterwards(
    recorder: Recorder, device: Device
) -> None:
    device.answer = lambda _, address, count: (
        ExcCodes.ILLEGAL_ADDRESS if address <= 37 < address + count else None
    )
    source = polled(recorder, device, 100)
    with running(source):
        eventually(lambda: recorder.frames)
        refused = [at for _, at, count in device.requests if at <= 37 < at + count]
        assert len(refused) <= 8
        assert frames_after(recorder, device, 10) < 2.3, (
            "one to the left of it and one to the right"
        )
        assert (
            source.health().error == "1 of 100 tags cannot be read: r37: there is no such address"
        )
    frame = recorder.frames[-1]
    assert [n for n, v in zip(frame.names, frame.rows[0], strict=True) if v != v] == ["r37"]


def test_a_device_that_reads_few_registers_at_once_is_read_in_pieces(
    recorder: Recorder, device: Device
) -> None:
    device.answer = lambda _, address, count: ExcCodes.ILLEGAL_VALUE if count > 32 else None
    with running(polled(recorder, device, 100)):
        eventually(lambda: recorder.frames)
        assert recorder.frames[0].quality is Quality.GOOD
        frames_after(recorder, device, 3)
        assert frames_after(recorder, device, 10) < 5
    assert recorder.faults == []


def test_a_table_that_cannot_be_read_is_not_split(recorder: Recorder, device: Device) -> None:
    device.answer = lambda *_: ExcCodes.ILLEGAL_FUNCTION
    with running(polled(recorder, device, 50)):
        eventually(lambda: recorder.frames)
        assert frames_after(recorder, device, 5) < 1.3
    assert recorder.reported("r0 (holding 0): this table cannot be read")


def test_a_device_that_responds_as_another_unit_is_named_with_the_setting(
    recorder: Recorder, device: Device
) -> None:
    device.unit = 0
    with running(polled(recorder, device, 3, timeout_s=0.2)):
        eventually(lambda: recorder.reported("unit 0 responds instead: set unit = 0"))
    with running(polled(recorder, device, 3, unit=0)):
        eventually(lambda: recorder.newest == {"r0": 0, "r1": 0, "r2": 0})


def test_an_address_as_manuals_count_is_explained(recorder: Recorder, device: Device) -> None:
    with running(polled(recorder, device, 0, tags=[{"name": "t", "address": 40_008}])):
        eventually(lambda: recorder.frames)
    assert recorder.reported('if a manual says 40008, write table = "holding", address = 7')


def test_a_value_that_means_none_costs_no_other_value(recorder: Recorder, device: Device) -> None:
    device.holding[:4] = [0x7FC0, 0, 0x8000, 21]
    tags = [
        {"name": "nan", "address": 0, "type": "float32"},
        {"name": "off", "address": 2, "missing": -32_768},
        {"name": "t", "address": 3},
    ]
    source = polled(recorder, device, 0, tags=tags)
    with running(source):
        eventually(lambda: recorder.frames)
        assert source.health().error == "", "the device has said so: no fault"
    assert recorder.newest["t"] == 21
    assert recorder.newest["off"] != recorder.newest["off"]
    assert recorder.newest["nan"] != recorder.newest["nan"]
    assert recorder.frames[0].quality is Quality.UNCERTAIN


def test_texts_name_the_asset_and_the_label_of_a_frame(recorder: Recorder, device: Device) -> None:
    device.holding[:6] = [0x4142, 0x2D37, 0, 0x6F6B, 0x2020, 900]
    tags = [
        {"name": "serial", "address": 0, "type": "string", "length": 3},
        {"name": "verdict", "address": 3, "type": "string", "length": 2},
        {"name": "rpm", "address": 5, "scale": 0.1, "offset": -10.0},
    ]
    with running(polled(recorder, device, 0, tags=tags, asset_tag="serial", label_tag="verdict")):
        eventually(lambda: recorder.frames)
    frame = recorder.frames[0]
    assert (frame.asset, frame.labels) == ("AB-7", ["ok"])
    assert recorder.newest == {"rpm": 80.0}
    assert frame.quality is Quality.GOOD


def test_a_setting_that_names_no_tag_is_refused(recorder: Recorder) -> None:
    with pytest.raises(SettingError, match="label_tag: no tag has the name 'y'"):
        recorder.source("modbus", host="h", tags=[{"name": "x", "address": 1}], label_tag="y")
