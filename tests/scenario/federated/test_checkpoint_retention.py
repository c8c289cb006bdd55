"""A task goes on learning while the engine drops the checkpoints that nobody needs."""

import msgspec
import pytest

from fake_clients import FakeFederation
from shoal.controller.federated.rounds import rounds
from shoal.controller.host.settings import Rounds

pytestmark = pytest.mark.scenario


def test_an_engine_with_a_lower_retention_deletes_checkpoints_and_rounds_continue(
    federation: FakeFederation,
) -> None:
    federation.start(4)
    federation.run(200, until=lambda: federation.done(4))
    fleet = federation.fleet
    with fleet.controller_down():
        fewer = msgspec.structs.replace(fleet.ctx.settings, rounds=Rounds(checkpoints=2))
        fleet.ctx = fleet.ctx._replace(settings=fewer)
    federation.run(10)

    found = {one.number: one for one in rounds.list_rounds(fleet.ctx, task="walk")}
    assert [n for n, one in sorted(found.items()) if one.pruned_at] == [1, 2]
    assert [n for n, one in found.items() if fleet.ctx.blobs.exists(one.checkpoint)] == [4, 3]
    federation.more(2)
    federation.run(200, until=lambda: federation.done(6))
    assert rounds.checkpoint(fleet.ctx, "walk").lineage == [1, 2, 3, 4, 5, 6]
