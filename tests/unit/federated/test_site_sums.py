"""A gateway sums its site: the same model, bit by bit; and a sum that lies is refused."""

import msgspec
import numpy as np
import pytest

from shoal.controller.federated.planning.plans import check_task
from shoal.controller.federated.records import TaskPlan
from shoal.controller.federated.strategies.fedavg import WeightedSum
from shoal.controller.federated.updates import Update
from shoal.errors import ConflictError, InputError, SettingError
from shoal.federated.site_sum import Gateway, decode
from shoal.federated.sums import ExactSum
from unit.federated.updates import some

SIZE, MOST = 50, 600


def weight(update: Update) -> float:
    return float(min(update.examples, MOST))


def summed(updates: list[Update]) -> bytes:
    gateway = Gateway(SIZE, MOST)
    for update in updates:
        gateway.add(update.device, update.delta, update.examples, update.loss)
    return gateway.to_bytes()


@pytest.mark.parametrize("cuts", [(7,), (1, 13), (5, 10, 15)])
def test_however_devices_are_dealt_out_to_gateways_the_aggregate_has_the_same_bits(
    cuts: tuple[int, ...],
) -> None:
    updates = some(20)
    alone = WeightedSum(SIZE, weight)
    for update in updates:
        alone.add(update)
    sites = [updates[i:j] for i, j in zip((0, *cuts), (*cuts, 20), strict=True)]
    through = WeightedSum(SIZE, weight)
    for update in sites[-1]:  # one site has no gateway
        through.add(update)
    for site in sites[:-1][::-1]:
        found = decode(summed(site))
        deltas = ExactSum.from_bytes(found.deltas, SIZE)
        through.merge(found.members, deltas, ExactSum.from_bytes(found.weights, 1))

    expected, got = alone.result(), through.result()
    assert got.delta.tobytes() == expected.delta.tobytes()
    assert got.devices == expected.devices


def test_a_device_that_is_in_already_is_not_counted_through_its_gateway_too() -> None:
    updates = some(4)
    gathering = WeightedSum(SIZE, weight)
    gathering.add(updates[0])
    found = decode(summed(updates))
    deltas = ExactSum.from_bytes(found.deltas, SIZE)
    with pytest.raises(ConflictError, match="d00 has an update"):
        gathering.merge(found.members, deltas, ExactSum.from_bytes(found.weights, 1))
    gathering.add(updates[1])
    assert gathering.result().devices == ("d00", "d01")


def test_a_gateway_refuses_a_second_update_and_one_without_rows() -> None:
    gateway = Gateway(SIZE, MOST)
    update = some(1)[0]
    gateway.add("a", update.delta, 3)
    with pytest.raises(ConflictError, match="a has an update"):
        gateway.add("a", update.delta, 3)
    with pytest.raises(InputError, match="0 examples"):
        gateway.add("b", update.delta, 0)
    with pytest.raises(InputError, match="NaN"):
        gateway.add("c", update.delta * np.float32("nan"), 3)
    assert set(decode(gateway.to_bytes()).members) == {"a"}


def test_a_gateway_without_updates_sends_nothing() -> None:
    with pytest.raises(ConflictError, match="no update of this site"):
        Gateway(SIZE, MOST).to_bytes()


@pytest.mark.parametrize("cut", [0, 3, 19, 200])
def test_a_sum_that_was_cut_is_refused(cut: int) -> None:
    whole = decode(summed(some(5))).deltas
    with pytest.raises(InputError):
        ExactSum.from_bytes(whole[:cut], SIZE)


@pytest.mark.parametrize("spoil", ["nan", "off the grid", "larger than it says"])
def test_a_sum_that_would_round_or_shout_is_refused(spoil: str) -> None:
    total = ExactSum(SIZE)
    total.add(some(1)[0].delta)
    value = {"nan": np.nan, "off the grid": 2.0**-50, "larger than it says": 1e6}[spoil]
    total._coarse[3] = value
    with pytest.raises(InputError, match="a sum of updates that is"):
        ExactSum.from_bytes(total.to_bytes(), SIZE)


def test_another_models_sum_is_refused() -> None:
    with pytest.raises(InputError, match="elements"):
        ExactSum.from_bytes(decode(summed(some(2))).deltas, SIZE + 1)


def test_what_is_no_site_sum_is_refused() -> None:
    for junk in (b"", b"\x81", msgspec.msgpack.encode({"members": {}}), b"\xff" * 50):
        with pytest.raises(InputError, match="not a site sum"):
            decode(junk)


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"strategy": "median"}, "a gateway sends a sum"),
        ({"strategy": "scaffold", "settings": {"population": 9}}, "a gateway sends a sum"),
        ({"secure": {"clip": 1.0}, "pace": {"goal": 6, "least": 5, "over": 1.0}}, "is masked"),
        (
            {
                "privacy": {"where": "central", "clip": 1.0, "noise": 1.0},
                "settings": {"most_examples": 1},
            },
            "central privacy clips every update",
        ),
    ],
)
def test_what_cannot_be_summed_by_a_gateway_is_refused_when_it_is_planned(
    wishes: dict, says: str
) -> None:
    whole = {
        "name": "t", "release": "m@1", "learning": {"lr": 0.1}, "pace": {"goal": 3, "least": 2},
        "gateways": {"north": "d01"},
    }  # fmt: skip
    check_task(msgspec.convert(whole, TaskPlan))
    with pytest.raises(SettingError, match=says):
        check_task(msgspec.convert(whole | wishes, TaskPlan))
