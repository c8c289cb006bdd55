"""All parts together, in memory: devices that judge, learn, hide or compress, and a controller."""

from typing import Any

import numpy as np
import pytest

from digits import LocalTrainer, Rows, homes_of
from shelves import file_shelf
from shoal.agent.federated.eligibility import Condition, judge
from shoal.agent.federated.secagg import Participant
from shoal.agent.host.round_limits import Limits
from shoal.controller.federated.planning.client_selection import Candidate, Demands, select_clients
from shoal.controller.federated.planning.conflicts import check_plan
from shoal.controller.federated.rounds.machine import (
    Event,
    Pace,
    RoundRecord,
    State,
    decide,
    new_round,
    receive,
    step,
)
from shoal.controller.federated.secagg.server import SecAggServer
from shoal.controller.federated.strategy import Strategy, strategy_of
from shoal.controller.federated.updates import Aggregate, Server, Update
from shoal.errors import RefusedError
from shoal.federated.chunks import Assembly, cut
from shoal.federated.compression import compress, decompress
from shoal.federated.distributed import encode_privately, scale_for
from shoal.federated.fixed_point import FixedPoint
from shoal.federated.noise import Draws
from shoal.federated.plan import Compression, Learning, Plan, Privacy, Secure
from shoal.federated.secure import Terms
from shoal.federated.spending import Ledger
from unit.federated.cohort import Cohort

DEVICES, PACE = 20, Pace(goal=16, least=10, over=1.25)
PRIVACY = Privacy(where="distributed", clip=2.0, noise=0.05)
PARTS: dict[str, dict[str, Any]] = {
    "int8": {"compression": Compression(kind="int8", zstd=True)},
    "secure": {
        "secure": Secure(
            degree=19, threshold=10, scale=FixedPoint(clip=1.0, devices=20, weight=500)
        )
    },
    "distributed noise": {
        "privacy": PRIVACY,
        "secure": Secure(degree=19, threshold=10, scale=scale_for(PRIVACY, 1.0, 20, 10)),
    },
}


class Fleet:
    """Twenty devices with their rows, ledgers and a busy moment record and then."""

    def __init__(self, seed: int) -> None:
        self.homes, self.test = homes_of(DEVICES, np.random.default_rng(seed))
        self.trainer, self.random = LocalTrainer(seed), np.random.default_rng(seed)
        self.names = [f"d{i:03}" for i in range(DEVICES)]
        self.ledgers = dict.fromkeys(self.names, Ledger())
        self.rows: dict[str, Rows] = dict(zip(self.names, self.homes, strict=True))

    def willing(self, name: str, plan: Plan, now_s: float) -> str:
        """The reason of a refusal; "" and the round is in the ledger."""
        condition = Condition(
            rows=len(self.rows[name].y), idle=bool(self.random.random() < 0.95), last=plan.round - 1
        )
        limits = Limits(rows=2, cohort=5)
        size = self.trainer.theta.size
        try:
            self.ledgers[name] = judge(plan, size, limits, condition, self.ledgers[name], now_s)
        except RefusedError as refusal:
            return refusal.reason
        return ""

    def delta(self, name: str, theta: np.ndarray, plan: Plan) -> np.ndarray:
        after = self.trainer.train(theta, self.rows[name], plan.learning.epochs, self.random)
        return after - theta


def plan_of(number: int, now_s: float, strategy: Strategy, parts: dict) -> Plan:
    plan = Plan(
        task="digits", round=number, attempt=number.to_bytes(16), strategy="fedavg",
        least=PACE.least, deadline_s=now_s + 1000, learning=Learning(lr=0.1, epochs=3, batch=10),
        **parts,
    )  # fmt: skip
    return check_plan(plan, strategy)


def one_round(fleet: Fleet, server: Server, strategy: Strategy, number: int, parts: dict) -> Server:
    now_s = number * 1000.0
    plan = plan_of(number, now_s, strategy, parts)
    able = [
        Candidate(device=n, online=True, ring="stable", site="s", release="digits@1", ram_mb=1000,
                  rows=len(r.y))
        for n, r in fleet.rows.items()
    ]  # fmt: skip
    invited = select_clients(able, Demands(model="digits"), PACE, plan.attempt).invited
    made = new_round("digits", number, plan.attempt, PACE, invited, secure=plan.secure is not None)
    record, _ = step(made, Event.OPENED, now_s)
    for name in invited:
        record = receive(
            record, name, plan.attempt, now_s, refused=fleet.willing(name, plan, now_s)
        ).record
    record = following(record, now_s)
    joined = record.with_mark("JOINED")  # type: ignore[arg-type]
    gather = plain if plan.secure is None else hidden
    record, found = gather(fleet, server, strategy, plan, record, joined, now_s)
    assert record.state is State.AGGREGATING
    record, _ = step(record, Event.FINISHED, now_s)
    assert record.state is State.DONE
    return strategy.advance(server, found)


def following(record: RoundRecord, now_s: float) -> RoundRecord:
    decided = decide(record, now_s)
    assert decided is not None
    assert decided[0] is not Event.FAILED, decided
    return step(record, decided[0], now_s, decided[1])[0]


def plain(fleet, server, strategy, plan, record, joined, now_s) -> tuple[RoundRecord, Aggregate]:  # type: ignore[no-untyped-def]
    size = server.theta.size
    gathering = strategy.gather(size, file_shelf(size))
    for name in joined:
        draws = Draws(fleet.random.bytes(32))
        packed = compress(fleet.delta(name, server.theta, plan), plan.compression, draws)
        whole = Assembly(most=5 * size)
        for piece in cut(packed, 1_500)[::-1]:
            assert whole.take(piece) == ""
        record, ignored = receive(record, name, plan.attempt, now_s)
        assert not ignored
        delta = decompress(whole.payload(), size)
        gathering.add(Update(device=name, delta=delta, examples=len(fleet.rows[name].y)))
        if decide(record, now_s):
            break
    return following(record, now_s), gathering.result()


def hidden(fleet, server, strategy, plan, record, joined, now_s) -> tuple[RoundRecord, Aggregate]:  # type: ignore[no-untyped-def]
    terms = Terms(
        round_id=plan.attempt, degree=plan.secure.degree, threshold=plan.secure.threshold,
        least=plan.least,
    )  # fmt: skip
    keys = Cohort(DEVICES, seed=plan.round)
    devices = {
        name: Participant(name, terms, 5, sign=keys.identity[name].sign, verify=keys.verify,
                          entropy=fleet.random.bytes)
        for name in joined
    }  # fmt: skip
    adverts = {name: device.advert() for name, device in devices.items()}
    unmasking = SecAggServer(terms, adverts, server.theta.size + 1)
    for name, device in devices.items():
        unmasking.add_boxes(name, device.boxes(unmasking.roster_for(name)))
    for name, device in devices.items():
        numbers = encoded(fleet, name, server.theta, plan)
        unmasking.add_masked(name, device.masked(numbers, unmasking.boxes_for(name)))
        record = receive(record, name, plan.attempt, now_s).record
        if decide(record, now_s):
            break  # the goal is reached: the others are late, and taken out
    record, ending = following(record, now_s), unmasking.end()
    for name in ending.alive:
        unmasking.add_vote(name, devices[name].vote(ending))
    for name in ending.alive:
        unmasking.add_shares(name, devices[name].shares(unmasking.votes_for(name)))
        record = receive(record, name, plan.attempt, now_s).record
    mean, _ = plan.secure.scale.decode(unmasking.value(), len(ending.alive))
    names = tuple(ending.alive)
    return following(record, now_s), Aggregate(delta=mean, devices=names, chosen=names)


def encoded(fleet: Fleet, name: str, theta: np.ndarray, plan: Plan) -> np.ndarray:
    delta = fleet.delta(name, theta, plan)
    assert plan.secure is not None
    if plan.privacy is not None:
        draws = Draws(fleet.random.bytes(32))
        return encode_privately(delta, plan.privacy, plan.secure.scale, plan.least, draws)
    rows = min(len(fleet.rows[name].y), plan.secure.scale.weight)
    return plan.secure.scale.encode(delta, rows, fleet.random)


@pytest.mark.parametrize(
    ("kind", "rounds", "accuracy"),
    [("int8", 40, 0.94), ("secure", 15, 0.9), ("distributed noise", 15, 0.8)],
)
def test_twenty_devices_with_different_digits_train_together(kind, rounds, accuracy) -> None:
    fleet = Fleet(seed=0)
    strategy = strategy_of("fedavg", {"most_examples": 1} if "noise" in kind else {})
    server = Server(theta=fleet.trainer.theta)
    for number in range(1, rounds + 1):
        server = one_round(fleet, server, strategy, number, PARTS[kind])
    assert server.rounds == rounds
    assert fleet.trainer.accuracy(server.theta, fleet.test) >= accuracy
    spent = {ledger.rounds > 0 for ledger in fleet.ledgers.values()}
    assert spent == {"noise" in kind}
