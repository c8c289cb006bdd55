"""`shoal group`, and what a person decides about one device."""

from sqlalchemy import update

import tensor_releases
from bench.controllers import add_devices
from cli.conftest import Cli
from shoal.controller.rollouts import convergence
from shoal.controller.store import tables

MODEL = tensor_releases.MODEL


def test_groups_and_decisions_are_made_shown_and_ended(shoal: Cli) -> None:
    ctx = shoal.controller.ctx
    ref = tensor_releases.released(ctx)
    add_devices(ctx, ["g-1"])
    with ctx.store.write() as db:
        db.execute(update(tables.device).values(ring="stable"))
    made = shoal.json("group", "create", "here", "--site", "north", "--label", "gpu")
    assert made["selector"] == "site=north,label=gpu"
    assert "here" in shoal("group", "list").stdout
    pinned = shoal("device", "pin", "g-1", ref, "--reason", "trial")
    assert f"g-1 is pinned to {ref}" in pinned.stdout
    convergence.step_all(ctx)
    desired = shoal("device", "desired", "g-1").stdout
    assert ref in desired
    assert "trial" in desired
    shown = shoal.json("group", "show", "fleet")
    assert shown["group"]["name"] == "fleet"
    assert shoal("device", "unpin", "g-1", MODEL).exit_code == 0
    assert "end it: shoal device release g-1" in shoal("device", "hold", "g-1").stdout
    assert shoal("device", "release", "g-1").exit_code == 0
    assert shoal("device", "exclude", "g-1", MODEL).exit_code == 0
    assert shoal("device", "include", "g-1", MODEL).exit_code == 0
    assert shoal("device", "include", "g-1", MODEL).exit_code != 0
    assert shoal("group", "delete", "here", "--yes").exit_code == 0
