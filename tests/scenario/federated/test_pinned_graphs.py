"""Devices that run the graphs they have listed and no others, in rounds by the real engine."""

import msgspec
import pytest

from fake_clients import LIMITS, FakeClient, FakeFederation
from shoal.agent.federated.eligibility import check_graph
from shoal.controller.federated.records import Participation
from shoal.controller.federated.rounds import rounds
from shoal.federated.config import Config

pytestmark = pytest.mark.scenario


class Careful(FakeClient):
    """It judges the graph of every config, as an agent does."""

    def _verified(self, signed: bytes) -> Config:
        config = super()._verified(signed)
        check_graph(config.graph.sha256, self.limits)
        return config


def ran(federation: FakeFederation, graph: str) -> dict[str, Participation]:
    """Parts in one round, after d01 has listed the task's own graph of that name."""
    plain = federation.clients["d01"]
    plain.link.stop()
    federation.clients["d01"] = Careful(federation, "d01", plain.target)
    federation.task(pace={"goal": 6, "least": 5, "over": 1.0})
    known = frozenset({getattr(federation.walk.prepared, graph)})
    federation.clients["d01"].limits = msgspec.structs.replace(LIMITS, graphs=known)
    federation.more()
    federation.run(120, until=federation.done)
    return federation.parts()


def test_a_device_that_lists_the_tasks_graph_takes_part(federation: FakeFederation) -> None:
    assert ran(federation, "graph")["d01"].chosen


def test_a_device_that_lists_another_graph_is_out_by_that_reason_and_the_round_goes_on(
    federation: FakeFederation,
) -> None:
    parts = ran(federation, "loss_graph")
    assert (parts["d01"].mark, parts["d01"].reason) == ("REFUSED", "unknown-graph")
    assert [name for name, one in parts.items() if one.chosen] == [
        "d00",
        "d02",
        "d03",
        "d04",
        "d05",
    ]
    one = rounds.get_round(federation.fleet.ctx, "walk.1")
    assert (one.state, one.reasons) == ("DONE", {"unknown-graph": 1})
