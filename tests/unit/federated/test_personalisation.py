"""Sites that call the same thing by different names: one model cannot serve them, their own can."""

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest

from digits import Rows, forward, homes_of
from shoal.agent.federated import trainer
from shoal.agent.federated.trainer import GradientTerms, Run
from shoal.controller.federated.strategy import strategy_of
from shoal.controller.federated.updates import Server, Update
from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import loss_graph, prepare, step_graph
from shoal.controller.training.gradient.personal import personal_of
from shoal.federated.plan import Learning
from shoal.params import F32, TrainSpec, spec_of
from unit.federated.updates import gathered
from unit.training.gradient.running import session

SITES, ROUNDS = 6, 25
LEARNING = Learning(lr=0.1, epochs=2, batch=16)


class Site(NamedTuple):
    """A device at each, with rows to learn from and rows to be judged by."""

    learn: trainer.Rows
    test: trainer.Rows


class Task(NamedTuple):
    """The graphs as a device runs them, and which part of theta is its own under FedPer."""

    train: Run
    spec: TrainSpec
    loss: Run
    theta: F32
    head: tuple[tuple[int, int], ...]


@pytest.fixture(scope="module")
def task() -> Task:
    prepared = prepare(forward(), Loss("cross-entropy"))
    graph = step_graph(prepared, proximal=True)
    spec = spec_of({entry.key: entry.value for entry in graph.metadata_props})
    train, loss = session(graph).run, session(loss_graph(prepared)).run
    return Task(train, spec, loss, prepared.theta, personal_of(prepared))


@pytest.fixture(scope="module")
def sites() -> list[Site]:
    """Site i calls digit d by the number (d + i) mod 10."""
    homes, _ = homes_of(SITES, np.random.default_rng(0), alike=5.0)
    return [_site(rows, shift) for shift, rows in enumerate(homes)]


def _site(rows: Rows, shift: int) -> Site:
    mixed = rows.only(np.random.default_rng(shift).permutation(len(rows.y)))
    x, y, cut = mixed.x, (mixed.y + shift) % 10, int(0.7 * len(mixed.y))
    return Site(trainer.Rows(x[:cut], y[:cut]), trainer.Rows(x[cut:], y[cut:]))


def learned(task: Task, sites: list[Site], *, personal: bool = False, ditto: float = 0.0) -> float:
    """Accuracy on the sites' own test rows after the rounds, each by the model that it has."""
    order, strategy = np.random.default_rng(1), strategy_of("fedavg")
    server, own = Server(theta=task.theta), dict.fromkeys(range(SITES), task.theta)
    learn = partial(trainer.train, task.train, task.spec, learning=LEARNING, order=order)
    for _ in range(ROUNDS):
        updates = []
        for i, site in enumerate(sites):
            start = _mixed(task, server.theta, own[i]) if personal else server.theta
            after = learn(start, site.learn, terms=GradientTerms()).theta
            delta = after - start
            if personal:
                own[i] = after
                delta = _mixed(task, delta, 0 * delta)
            if ditto:
                own[i] = learn(
                    own[i], site.learn, terms=GradientTerms(mu=ditto, anchor=server.theta)
                ).theta
            updates.append(Update(device=f"d{i}", delta=delta, examples=len(site.learn.y)))
        server = strategy.advance(server, gathered(strategy, updates))
    serves = [
        _mixed(task, server.theta, own[i]) if personal else own[i] if ditto else server.theta
        for i in range(SITES)
    ]
    found = [trainer.evaluate(task.loss, t, s.test) for t, s in zip(serves, sites, strict=True)]
    return sum(one.correct for one in found) / sum(one.rows for one in found)


def _mixed(task: Task, theta: F32, own: F32) -> F32:
    """theta with the device's own head."""
    mixed = theta.copy()
    for start, stop in task.head:
        mixed[start:stop] = own[start:stop]
    return mixed


def test_a_head_of_its_own_or_a_whole_model_of_its_own_serves_sites_that_one_model_cannot(
    task: Task, sites: list[Site]
) -> None:
    common = learned(task, sites)
    head, ditto = learned(task, sites, personal=True), learned(task, sites, ditto=0.1)

    assert common < 0.5
    assert head > 0.9
    assert ditto > 0.8
