"""Modbus registers: values in the four orders, and requests that adapt to what a device refuses."""

import math
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.agent.feeds.register_plan import BITS, REGISTERS, Block, Failure, Plan
from shoal.agent.feeds.registers import TYPES, Tag, text, value

STRUCT = sorted(kind for kind, (_, code) in TYPES.items() if code)


def registers(kind: str, number: float) -> list[int]:
    raw = struct.pack(TYPES[kind][1], number)
    return [int.from_bytes(raw[i : i + 2], "big") for i in range(0, len(raw), 2)]


#: 0x11223344 as it is sent in each order: ABCD, CDAB, BADC, DCBA.
ORDERS = {
    ("big", "big"): [0x1122, 0x3344],
    ("little", "big"): [0x3344, 0x1122],
    ("big", "little"): [0x2211, 0x4433],
    ("little", "little"): [0x4433, 0x2211],
}


@pytest.mark.parametrize(("order", "sent"), ORDERS.items())
def test_each_order_of_words_and_bytes_is_decoded(order: tuple[str, str], sent: list[int]) -> None:
    words, swapped = order
    tag = Tag(name="x", address=0, type="uint32", words=words, bytes=swapped)  # type: ignore[arg-type]
    assert value(tag, sent) == 0x11223344


@given(st.sampled_from(STRUCT), st.integers(-2_000, 2_000), st.booleans(), st.booleans())
def test_a_number_of_any_type_is_decoded_in_any_order(
    kind: str, number: int, little: bool, swapped: bool
) -> None:
    if kind.startswith("u"):
        number = abs(number)
    elif kind == "bool":
        number = int(bool(number))
    sent = registers(kind, number)
    if swapped:
        sent = [word >> 8 | (word & 255) << 8 for word in sent]
    if little:
        sent.reverse()
    tag = Tag(
        name="x", address=3, type=kind,  # type: ignore[arg-type]
        words="little" if little else "big", bytes="little" if swapped else "big",
    )  # fmt: skip
    assert value(tag, sent) == number


@pytest.mark.parametrize(
    ("settings", "sent", "expected"),
    [
        ({"type": "uint16", "bit": 4, "bits": 3}, [0x0050], 5),
        ({"type": "uint32", "bit": 31}, [0x8000, 0], 1),
        ({"type": "int16", "bit": 0, "bits": 16}, [0xFFFF], 65_535),
        ({"type": "bcd16"}, [0x1234], 1_234),
        ({"type": "bcd32", "scale": 0.1}, [0x0001, 0x2345], 1_234.5),
        ({"type": "bcd16"}, [0x12AF], math.nan),
        ({"type": "int16", "scale": 0.1, "offset": -40}, [650], 25),
        ({"type": "int16", "missing": -32_768, "scale": 0.1}, [0x8000], math.nan),
        ({"type": "uint16", "missing": 65_535}, [65_534], 65_534),
        ({"type": "float32"}, [0x7FC0, 0], math.nan),
        ({"type": "string", "length": 3}, [0x2032, 0x312E, 0x3500], 21.5),
        ({"type": "string", "length": 2}, [0x6F6B, 0], math.nan),
        ({"table": "coil", "scale": 5.0}, [1], 1),
    ],
)  # fmt: skip
def test_bitfields_decimals_texts_and_values_that_mean_none_are_read(
    settings: dict[str, object], sent: list[int], expected: float
) -> None:
    found = value(Tag(name="x", address=0, **settings), sent)  # type: ignore[arg-type]
    assert found == pytest.approx(expected, nan_ok=True)


def test_a_text_with_swapped_bytes_is_read() -> None:
    tag = Tag(name="x", address=0, type="string", length=4, bytes="little")
    assert text(tag, [0x7250, 0x336F, 0x4D45, 0x2020]) == "Pro3EM"


# ------------------------------------------------------------------------------------- requests

tags = st.builds(
    Tag,
    name=st.uuids().map(str),
    address=st.integers(0, 400),
    table=st.sampled_from(["holding", "input", "coil", "discrete"]),
    type=st.sampled_from(list(TYPES)),
)


@settings(deadline=None)
@given(st.lists(tags, max_size=40))
def test_every_tag_is_in_one_request_and_no_request_exceeds_the_protocols_limit(
    wanted: list[Tag],
) -> None:
    found = Plan(wanted).blocks(0.0)
    assert sorted(t.name for b in found for t in b.tags) == sorted(t.name for t in wanted)
    for block in found:
        assert block.length <= (BITS if block.tags[0].is_bit else REGISTERS)
        for tag in block.tags:
            assert block.address <= tag.address
            assert tag.address + tag.size <= block.address + block.length


class Refusing:
    """A device that refuses some addresses, places between two of them, and long requests."""

    def __init__(self, *, gone: Sequence[int] = (), walls: Sequence[int] = (), most: int = 125):
        self.gone, self.walls, self.most, self.requests = set(gone), set(walls), most, 0

    def request(self, block: Block) -> list[int] | Failure:
        self.requests += 1
        wanted = range(block.address, block.address + block.length)
        crosses = any(wanted[0] < wall <= wanted[-1] for wall in self.walls)
        if crosses or self.gone & set(wanted) or len(wanted) > self.most:
            return Failure.REFUSED
        return list(wanted)

    def poll(self, plan: Plan, now_s: float) -> dict[str, float]:
        """Values by name; self.requests counts those of this poll."""
        self.requests = 0
        found = {}
        for block in plan.blocks(now_s):
            for part, response in plan.read(block, self.request, now_s):
                found |= {t.name: value(t, part.part(t, response)) for t in part.tags}
        return found


def adjacent(count: int, step: int = 1) -> list[Tag]:
    return [Tag(name=f"r{i}", address=i * step, type="uint16") for i in range(count)]


@settings(deadline=None, max_examples=60)
@given(st.sets(st.integers(0, 59), max_size=6), st.sets(st.integers(1, 59), max_size=4),
       st.integers(1, 125))  # fmt: skip
def test_whatever_a_device_refuses_every_other_tag_is_read_in_the_first_poll_and_later(
    gone: set[int], walls: set[int], most: int
) -> None:
    plan, device = Plan(adjacent(60)), Refusing(gone=list(gone), walls=list(walls), most=most)
    expected = {f"r{i}": float(i) for i in set(range(60)) - gone}
    for now_s in (0.0, 1.0, 15.0, 40.0):
        assert device.poll(plan, now_s) == expected
    assert plan.refused == {f"r{i}" for i in gone}


def test_refusals_cost_few_requests_and_ever_fewer() -> None:
    plan, device = Plan(adjacent(100)), Refusing(gone=[37], walls=[70])
    device.poll(plan, 0.0)
    assert device.requests < 30
    for _ in range(5):
        device.poll(plan, 1.0)
    assert device.requests == 3
    hour = 0
    for now_s in range(2, 3_600, 5):
        device.poll(plan, float(now_s))
        hour += device.requests - 3
    assert hour < 200


def test_a_refusal_that_passes_is_forgotten_and_the_block_whole_again() -> None:
    plan, device = Plan(adjacent(100)), Refusing(gone=range(30, 60), walls=[80])
    assert len(device.poll(plan, 0.0)) == 70
    device.gone, device.walls = set(), set()
    assert len(device.poll(plan, 12.0)) == 100
    device.poll(plan, 13.0)
    assert (device.requests, plan.refused) == (1, frozenset())


def test_a_gap_that_may_not_be_read_keeps_only_its_neighbours_apart() -> None:
    plan, device = Plan(adjacent(10, step=4)), Refusing(gone=[18])
    for now_s in range(5):
        assert len(device.poll(plan, float(now_s))) == 10
    assert (device.requests, plan.refused) == (2, frozenset())


def test_a_passing_failure_splits_nothing() -> None:
    plan = Plan(adjacent(50))
    (block,) = plan.blocks(0.0)
    assert plan.read(block, lambda _: Failure.PASSING, 0.0) == []
    assert plan.blocks(1.0) == [block]
