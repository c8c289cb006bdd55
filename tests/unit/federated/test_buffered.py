"""An asynchronous task: the server steps with every K updates, however old they are."""

import heapq
from typing import NamedTuple

import numpy as np
import pytest

from digits import LocalTrainer, homes_of
from shelves import file_shelf
from shoal.controller.federated.rounds.machine import (
    STILL_TRAINING,
    Event,
    Mark,
    Pace,
    RoundRecord,
    State,
    carry_over,
    decide,
    new_round,
    receive,
    step,
)
from shoal.controller.federated.strategy import strategy_of
from shoal.controller.federated.updates import Server, Update
from shoal.errors import InputError
from shoal.params import F32
from unit.federated.updates import gathered

PACE = Pace(goal=4, least=2, over=2.0, recruit_s=5, train_s=1000)


class Sent(NamedTuple):
    """An update on its way: when it comes, of whom, begun in which try."""

    at_s: float
    device: str
    attempt: bytes
    delta: F32


def opened(
    number: int, names: list[str], before: RoundRecord | None, now_s: float, late: int = 5
) -> RoundRecord:
    """A round in training, with everybody asked who does not train already."""
    carried = carry_over(before, number) if before else {}
    attempt = number.to_bytes(16)
    made = new_round(
        "t", number, attempt, PACE, set(names) - set(carried), secure=False, late=late,
        carried=carried,
    )  # fmt: skip
    record, _ = step(made, Event.OPENED, now_s)
    for name in record.with_mark(Mark.INVITED):
        record = receive(record, name, attempt, now_s).record
    return step(record, *decided(record, now_s))[0]


def decided(record: RoundRecord, now_s: float) -> tuple[Event, float]:
    found = decide(record, now_s)
    assert found is not None
    return found[0], now_s


def test_a_round_ends_at_its_goal_and_late_devices_count_in_a_later_one() -> None:
    names = [f"d{i}" for i in range(6)]
    first = opened(1, names, None, 0)
    for name in names[:4]:
        first = receive(first, name, first.attempt, 1).record
    first = step(first, *decided(first, 1))[0]

    assert first.state is State.AGGREGATING
    assert first.reasons == dict.fromkeys(names[4:], STILL_TRAINING)

    second = opened(2, names, step(first, Event.FINISHED, 1)[0], 2)
    second = receive(second, "d4", first.attempt, 3).record

    assert second.marks["d4"] is Mark.UPDATED
    assert (second.behind("d4"), second.behind("d0")) == (1, 0)
    assert receive(second, "d5", second.attempt, 3).ignored == "another-attempt"


def test_a_device_too_far_behind_is_not_carried_over() -> None:
    names = [f"d{i}" for i in range(6)]
    record = opened(1, names, None, 0)
    for number in range(2, 8):
        for name in names[:4]:
            record = receive(record, name, record.attempt, number).record
        record = step(step(record, *decided(record, number))[0], Event.FINISHED, number)[0]
        assert ("d5" in carry_over(record, number)) is (number - 1 <= record.late), number
        record = opened(number, names, record, number)


def test_a_synchronous_strategy_carries_no_device_over() -> None:
    made = new_round("t", 1, bytes(16), PACE, [f"d{i}" for i in range(5)], secure=False)
    record, _ = step(made, Event.OPENED, 0)
    for name in list(record.marks):
        record = receive(record, name, record.attempt, 0).record
    record = step(record, *decided(record, 0))[0]
    for name in list(record.marks)[:4]:
        record = receive(record, name, record.attempt, 1).record
    record = step(record, *decided(record, 1))[0]

    assert record.reasons == {"d4": "no-answer"}
    assert carry_over(record, 2) == {}


@pytest.mark.parametrize("behind", [0, 3])
def test_an_update_weighs_less_by_the_root_of_the_steps_since_it_began(behind: int) -> None:
    one = Update(device="d", delta=np.ones(3, np.float32), examples=5, behind=behind)
    fresh = Update(device="e", delta=np.zeros(3, np.float32), examples=500)

    found = gathered(strategy_of("fedbuff"), [one, fresh])

    assert found.delta == pytest.approx(np.full(3, 0.5 / (1 + behind) ** 0.5), abs=1e-9)


def test_an_update_that_is_too_old_is_refused_by_the_name_of_its_device() -> None:
    old = Update(device="slowpoke", delta=np.ones(3, np.float32), examples=5, behind=11)

    with pytest.raises(InputError, match="slowpoke is 11 rounds behind, 10 allowed"):
        gathered(strategy_of("fedbuff"), [old])


def test_digits_are_learned_although_a_third_of_the_devices_is_ten_times_slower() -> None:
    homes, test = homes_of(12, np.random.default_rng(0))
    trainer, random = LocalTrainer(), np.random.default_rng(0)
    rows = {f"d{i:02}": home for i, home in enumerate(homes)}
    pace = {name: 10.0 if i % 3 == 0 else 1.0 for i, name in enumerate(rows)}
    strategy = strategy_of("fedbuff", {"behind": 40})
    server, way, now_s, oldest = Server(theta=trainer.theta), list[Sent](), 0.0, 0
    record: RoundRecord | None = None
    for number in range(1, 61):
        record = opened(number, list(rows), record, now_s, late=40)
        for name in set(record.with_mark(Mark.JOINED)) - set(record.carried):
            delta = trainer.train(server.theta, rows[name], 2, random) - server.theta
            took = pace[name] * float(random.uniform(0.5, 1.5))
            heapq.heappush(way, Sent(now_s + took, name, record.attempt, delta))
        gathering = strategy.gather(server.theta.size, file_shelf(server.theta.size))
        while record.state is State.TRAINING:
            sent = heapq.heappop(way)
            now_s = sent.at_s
            record, ignored = receive(record, sent.device, sent.attempt, now_s)
            assert not ignored
            behind = record.behind(sent.device)
            oldest = max(oldest, behind)
            gathering.add(Update(device=sent.device, delta=sent.delta, examples=1, behind=behind))
            if decide(record, now_s):
                record = step(record, *decided(record, now_s))[0]
        server = strategy.advance(server, gathering.result())
        record = step(record, Event.FINISHED, now_s)[0]

    assert oldest >= 5
    assert trainer.accuracy(server.theta, test) > 0.9
