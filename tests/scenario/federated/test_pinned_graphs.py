"""Devices that run the graphs they have listed and no others, in rounds by the real engine."""

import msgspec
import pytest

from fake_clients import LIMITS, Pupil, School
from shoal.agent.federated.eligibility import check_graph
from shoal.controller.federated.records import Participation
from shoal.controller.federated.rounds import rounds
from shoal.federated.config import Config

pytestmark = pytest.mark.scenario


class Careful(Pupil):
    """It judges the graph of every config, as an agent does."""

    def _verified(self, signed: bytes) -> Config:
        config = super()._verified(signed)
        check_graph(config.graph.sha256, self.limits)
        return config


def ran(school: School, graph: str) -> dict[str, Participation]:
    """Parts in one round, after d01 has listed the task's own graph of that name."""
    plain = school.pupils["d01"]
    plain.link.stop()
    school.pupils["d01"] = Careful(school, "d01", plain.target)
    school.task(pace={"goal": 6, "least": 5, "over": 1.0})
    known = frozenset({getattr(school.walk.prepared, graph)})
    school.pupils["d01"].limits = msgspec.structs.replace(LIMITS, graphs=known)
    school.more()
    school.run(120, until=school.done)
    return school.parts()


def test_a_device_that_lists_the_tasks_graph_takes_part(school: School) -> None:
    assert ran(school, "graph")["d01"].chosen


def test_a_device_that_lists_another_graph_is_out_by_that_reason_and_the_round_goes_on(
    school: School,
) -> None:
    parts = ran(school, "loss_graph")
    assert (parts["d01"].mark, parts["d01"].reason) == ("REFUSED", "unknown-graph")
    assert [name for name, one in parts.items() if one.chosen] == [
        "d00",
        "d02",
        "d03",
        "d04",
        "d05",
    ]
    one = rounds.get_round(school.fleet.ctx, "walk.1")
    assert (one.state, one.reasons) == ("DONE", {"unknown-graph": 1})
