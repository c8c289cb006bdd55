"""A device in the field speaks the bytes it was shipped with, and a newer controller reads them."""

import importlib.util
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from shoal import wire
from shoal.errors import OversizeError, WireError
from shoal.federated import messages

FOLDER = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("golden_messages", FOLDER / "messages.py")
assert _spec is not None
assert _spec.loader is not None
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)
MESSAGES = golden.MESSAGES

BYTES = sorted(FOLDER.glob("*.msgpack"))


def kind_of(message: wire.Message) -> str:
    """Kind of topic that a message travels on."""
    return (wire.UP_KIND | wire.DOWN_KIND)[type(message)]


def decode(message: wire.Message, payload: bytes) -> wire.Message:
    read = wire.decode_up if type(message) in wire.UP_KIND else wire.decode_down
    return read(kind_of(message), payload)


def test_every_message_has_golden_bytes() -> None:
    assert {type(m) for m in MESSAGES.values()} == {*get_args(wire.AnyUp), *get_args(wire.AnyDown)}
    assert {type(it) for it in golden.CALLS.values()} == set(get_args(messages.ControllerMessage))
    assert {type(it) for it in golden.ANSWERS.values()} == set(get_args(messages.DeviceMessage))
    assert {path.stem for path in BYTES} == set(MESSAGES)


@pytest.mark.parametrize("path", BYTES, ids=lambda p: p.stem)
def test_golden_bytes_are_read_as_the_message_that_they_were(path: Path) -> None:
    message = MESSAGES[path.stem]
    assert decode(message, path.read_bytes()) == message


@pytest.mark.parametrize("path", BYTES, ids=lambda p: p.stem)
def test_a_message_is_written_as_its_golden_bytes(path: Path) -> None:
    assert wire.encode(MESSAGES[path.stem]) == path.read_bytes()


@pytest.mark.parametrize("path", BYTES, ids=lambda p: p.stem)
def test_a_field_that_a_newer_peer_adds_is_ignored(path: Path) -> None:
    fields = msgspec.msgpack.decode(path.read_bytes())
    message = MESSAGES[path.stem]
    newer = msgspec.msgpack.encode({**fields, "invented_later": [1, {"a": None}]})
    assert decode(message, newer) == message


@pytest.mark.parametrize("path", BYTES, ids=lambda p: p.stem)
def test_no_cut_and_no_flipped_byte_is_more_than_a_wire_error(path: Path) -> None:
    data, message = path.read_bytes(), MESSAGES[path.stem]
    hostile = [data[:end] for end in range(len(data))]
    hostile += [data[:i] + bytes([data[i] ^ 0x80]) + data[i + 1 :] for i in range(len(data))]
    for payload in hostile:
        try:
            decode(message, payload)
        except WireError:
            pass


def test_an_oversize_message_is_refused_before_it_is_read() -> None:
    with pytest.raises(OversizeError):
        wire.decode_up("status", b"\xc1" * 4_097)


def test_a_message_on_the_wrong_topic_is_refused() -> None:
    with pytest.raises(WireError, match="WindowReport"):
        wire.decode_up("event", wire.encode(MESSAGES["window.v1"]))


def test_numbers_that_cannot_be_are_refused() -> None:
    fields = msgspec.msgpack.decode(wire.encode(MESSAGES["window.v1"]))
    for bad in ({"rows": -1}, {"window_s": float("nan")}, {"rows": "6"}, {"sent_s": 2.0**40}):
        with pytest.raises(WireError):
            wire.decode_up("window", msgspec.msgpack.encode(fields | bad))
