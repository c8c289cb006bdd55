"""`shoal round release` and `shoal round quarantine`, from rounds to a signed candidate."""

from pathlib import Path

import numpy as np
import pytest

from cli.conftest import Cli
from recorded_rounds import add_round, add_task, prepared_of
from shoal.controller.federated.checkpoints import retention
from shoal.controller.host.settings import Rounds, Settings
from shoal.controller.releases import releases


@pytest.fixture(scope="module")
def made() -> set[str]:
    return set()


@pytest.fixture
def task(shoal: Cli, parts: Path, made: set[str], request: pytest.FixtureRequest) -> str:
    """A task of the test's own, with three rounds done."""
    ctx = shoal.controller.ctx
    if not made:
        add = ("dataset", "add", str(parts), "--name", "rims", "--label", "defect")
        shoal.json(*add, "--site", "plant")
        asked = ("model", "train", "rims", "--dataset", "rims", "--param", "max_iter=20")
        shoal.work(shoal.json(*asked, "--no-wait")["id"])
    name = f"rims-{len(made)}"
    made.add(name)
    prepared, theta = prepared_of(ctx, releases.get_release(ctx, "rims@1"))
    plan = add_task(ctx, name, "rims@1", prepared)
    for number in (1, 2, 3):
        add_round(ctx, plan, number, (theta + np.float32(1e-4 * number)).astype(np.float32))
    return name


def test_a_checkpoint_becomes_a_candidate_and_both_model_and_release_name_its_rounds(
    shoal: Cli, task: str
) -> None:
    started = shoal.json("round", "release", task, "--round", "2", "--candidate", "--no-wait")
    assert started["kind"] == "checkpoint"
    shoal.work(started["id"])
    ref = shoal.json("operation", "show", started["id"])["result"]["release"]

    found = shoal.json("release", "show", ref)
    assert (found["state"], found["origin"]["rounds"]) == ("candidate", [1, 2])
    for shown in (shoal("release", "show", ref), shoal("model", "show", "rims")):
        said = " ".join(shown.stdout.replace("│", " ").split())
        assert f"round 2 of {task}" in said, shown.stdout
    assert "press-1" in shoal("release", "show", ref).stdout


def test_an_evaluation_without_eligible_devices_is_refused_with_a_reason(
    shoal: Cli, task: str
) -> None:
    refused = shoal("round", "evaluate", task, "--round", "0", "--no-wait")
    assert refused.exit_code == 5
    assert "no device can measure it" in refused.stderr


def test_a_poisoned_round_is_quarantined_once_it_is_confirmed(shoal: Cli, task: str) -> None:
    asked = ("round", "quarantine", task, "2", "--why", "press-1 was tampered with")
    assert shoal(*asked, given="n\n").exit_code != 0
    assert shoal.json("round", "show", f"{task}.2")["round"]["poisoned"] == ""

    assert shoal.json(*asked, "--yes")["parent"] == 1
    assert "press-1 was tampered with" in shoal("round", "show", f"{task}.3").stdout
    for shown in (shoal("round", "list", task), shoal("round", "show", task)):
        assert shown.stdout.count("in quarantine") == 2
        assert shown.stdout.count("training") == 3
    refused = shoal("round", "release", task, "--round", "3", "--no-wait")
    assert refused.exit_code == 5
    assert "is poisoned" in refused.stderr


def test_a_quarantine_lists_what_was_derived_from_the_round(shoal: Cli, task: str) -> None:
    started = shoal.json("round", "release", task, "--round", "3", "--no-wait")
    shoal.work(started["id"])
    ref = shoal.json("operation", "show", started["id"])["result"]["release"]

    told = shoal("round", "quarantine", task, "3", "--why", "press-1 lied", "--yes")

    assert ref in told.stdout
    assert "no device serves a release of it" in told.stdout
    assert shoal("release", "publish", ref).exit_code == 5


def test_a_quarantine_is_lifted_once_it_is_confirmed_and_lists_what_may_be_rolled_out_again(
    shoal: Cli, task: str
) -> None:
    started = shoal.json("round", "release", task, "--round", "3", "--no-wait")
    shoal.work(started["id"])
    ref = shoal.json("operation", "show", started["id"])["result"]["release"]
    for number in ("1", "2"):
        shoal.json("round", "quarantine", task, number, "--why", "press-1 lied", "--yes")
    asked = ("round", "lift", task, "2", "--why", "it was press-2")
    assert shoal(*asked, given="n\n").exit_code != 0
    assert shoal.json("round", "show", f"{task}.2")["round"]["charge"] == "press-1 lied"

    left = shoal(*asked, "--yes").stdout
    assert f"{task}.2, {task}.3" in left
    assert ref not in left, "round 1 is in it"
    last = ("round", "lift", task, "1", "--why", "nor press-1", "--yes")
    told = " ".join(shoal(*last).stdout.split())
    assert f"releases {ref}" in told
    assert f"Nothing is rolled out by itself: shoal rollout start {ref}" in told
    again = shoal(*last)
    assert (again.exit_code, "is not in quarantine" in again.stderr) == (5, True)


def test_a_round_shows_that_its_checkpoint_is_pruned(shoal: Cli, task: str) -> None:
    ctx = shoal.controller.ctx
    retention.prune(ctx._replace(settings=Settings(rounds=Rounds(checkpoints=2))))

    listed = shoal("round", "list", task).stdout.splitlines()
    assert ["pruned" in line for line in listed if f"{task}." in line] == [False, False, True]
    assert "pruned" in shoal("round", "show", f"{task}.1").stdout
    assert "pruned" not in shoal("round", "show", f"{task}.2").stdout
    refused = shoal("round", "release", task, "--round", "1", "--no-wait")
    assert (refused.exit_code, "is pruned" in refused.stderr) == (5, True)
