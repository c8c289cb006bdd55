"""A checkpoint becomes a release that names who trained it; a poisoned one does not."""

import itertools

import numpy as np
import pytest
from sqlalchemy import select

from controllers import run
from recorded_rounds import DEVICES, LOST, UPDATED, add_round, add_task, prepared_of, trained, walk
from shoal import manifest as manifests
from shoal.controller.access import audit
from shoal.controller.federated.checkpoints import promotion, round_quarantine
from shoal.controller.federated.planning import scheduling
from shoal.controller.federated.records import Prepared, TaskPlan
from shoal.controller.federated.rounds import machine, rounds
from shoal.controller.host.context import Context
from shoal.controller.operations import operations
from shoal.controller.releases import releases, verdicts
from shoal.controller.releases.records import Release
from shoal.controller.rollouts import rollouts
from shoal.controller.rollouts.records import RolloutPlan, StagePlan
from shoal.controller.store.tables import device, federated_round
from shoal.errors import AbsentError, ConflictError, InputError
from shoal.params import F32

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """One controller for the module, with a release that every task begins with."""
    return trained(tmp_path_factory.mktemp("controller"))


@pytest.fixture
def task(ctx: Context, request: pytest.FixtureRequest) -> tuple[TaskPlan, F32]:
    """A task of its own for each test, with four rounds done; and what it began with."""
    prepared, theta = prepared_of(ctx, releases.get_release(ctx, "lot-codes@1"))
    name = f"task-{next(_NUMBERS)}"
    plan = add_task(ctx, name, "lot-codes@1", prepared, private="epsilon" in request.node.name)
    marks = dict.fromkeys(DEVICES, UPDATED)
    for number, one in enumerate(walk(theta, 4), 1):
        add_round(
            ctx, plan, number, one, marks=marks | ({"mill-2": LOST} if number == 2 else {}),
            result={"epsilon": number / 2},
        )  # fmt: skip
    return plan, theta


def released(ctx: Context, task: str, **more: object) -> Release:
    operation = run(ctx, promotion.release(ctx, actor="ana", task=task, **more))  # type: ignore[arg-type]
    assert operation.error == ""
    return releases.get_release(ctx, operation.result["release"])


def test_a_checkpoint_ends_in_a_validated_release_that_names_its_rounds_and_devices(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    made = released(ctx, task[0].name)

    assert (made.state, made.estimator, made.dataset) == ("validated", "imported", "stations@1")
    assert made.metrics["accuracy"] > 0.95
    origin = made.origin
    assert origin is not None
    assert (origin.number, origin.rounds, origin.release) == (4, [1, 2, 3, 4], "lot-codes@1")
    assert [(d.device, d.site, d.rounds, d.examples) for d in origin.devices] == [
        ("mill-1", "south", 4, 40), ("mill-2", "south", 3, 30),
        ("press-1", "north", 4, 40), ("press-2", "north", 4, 40),
    ]  # fmt: skip
    assert (origin.strategy, origin.epsilon) == ("fedavg", None)


def test_its_manifest_has_the_number_of_training_devices_and_no_names(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    made = released(ctx, task[0].name, number=2)

    manifest, data = releases.manifest_of(ctx, made.ref)
    assert manifest.taught is not None
    assert (manifest.taught.round, manifest.taught.devices) == (2, 4)
    assert manifest.taught.examples == 70
    assert b"press-1" not in data
    assert manifests.parse(data) == manifest


def test_the_card_has_epsilon_and_the_training_devices(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    made = released(ctx, task[0].name)

    manifest, _ = releases.manifest_of(ctx, made.ref)
    assert manifest.card is not None
    card = ctx.blobs.read(manifest.card.sha256).decode()
    assert "trained by 4 devices with 150 rows in 4 federated rounds" in card
    assert "epsilon 2.00 at delta 1e-06" in card


def test_what_automation_asked_for_is_signed_for_the_canary_ring_and_no_further(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    made = released(ctx, task[0].name, trigger="rounds:4")

    assert made.state == "candidate"
    assert [one.role for one in made.signatures] == ["candidate"]


def test_a_checkpoint_that_does_worse_than_what_it_began_with_is_refused_and_not_signed(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    plan, theta = task
    noise = np.random.default_rng(0).normal(size=theta.size) * 0.15
    add_round(ctx, plan, 5, (theta + noise).astype(np.float32))

    made = released(ctx, plan.name, trigger="rounds:5")

    assert (made.state, made.signatures) == ("refused", [])
    assert 0.2 < made.metrics["accuracy"] < 0.95
    assert "of lot-codes@1 on the same held-back rows" in made.why_refused
    with pytest.raises(ConflictError, match="of lot-codes@1"):
        releases.publish(ctx, actor="ana", ref=made.ref)


@pytest.mark.parametrize(
    ("then", "now", "main", "rows", "said"),
    [
        (0.9, 0.885, "accuracy", 5_000, False),
        (0.9, 0.8, "accuracy", 5_000, True),
        (0.9987, 0.9547, "accuracy", 450, True),
        (0.8, 0.7667, "accuracy", 30, False),  # one row
        (0.9, 0.1, "r2", 5_000, False),
    ],
)
def test_releases_are_compared_where_both_were_measured_and_beyond_what_chance_does(
    then: float, now: float, main: str, rows: int, said: bool
) -> None:
    why = verdicts.worse_than("a@1", {"accuracy": then}, {main: now}, main, rows)
    assert bool(why) == said


def test_a_task_asks_for_a_candidate_every_so_many_rounds_and_once(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    plan, theta = task
    asking = add_task(ctx, f"{plan.name}-c", "lot-codes@1", prepared_of_base(ctx), candidate=2)
    add_round(ctx, asking, 1, theta)
    assert promotion.promote_candidates(ctx) == 0
    add_round(ctx, asking, 2, theta)
    assert (promotion.promote_candidates(ctx), promotion.promote_candidates(ctx)) == (1, 0)

    begun = operations.list_operations(ctx, state="queued")[0]
    made = releases.get_release(ctx, run(ctx, begun).result["release"])
    assert (made.state, made.trigger, made.created_by) == ("candidate", "rounds:2", "automation")
    add_round(ctx, asking, 3, theta)
    assert promotion.promote_candidates(ctx) == 0


def prepared_of_base(ctx: Context) -> Prepared:
    return prepared_of(ctx, releases.get_release(ctx, "lot-codes@1"))[0]


def test_a_task_that_learned_nothing_yet_has_nothing_to_release(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    with pytest.raises(ConflictError, match="has made no checkpoint"):
        promotion.release(ctx, actor="ana", task=task[0].name, number=0)
    with pytest.raises(AbsentError):
        promotion.release(ctx, actor="ana", task=task[0].name, number=9)


def test_an_evaluation_made_no_checkpoint_and_the_error_names_it(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    name = task[0].name
    ident = add_round(ctx, task[0], 5, task[1], state=machine.State.FAILED)
    with ctx.store.write() as db:
        mine = federated_round.c.id == ident
        journal = db.scalar(select(federated_round.c.journal).where(mine))
        told = {"state": "DONE", "journal": {**journal, "purpose": "evaluate"}}
        db.execute(federated_round.update().where(mine).values(**told))

    with pytest.raises(ConflictError, match="was an evaluation: it measured round 4's checkpoint"):
        promotion.release(ctx, actor="ana", task=name, number=5)


# --- quarantine ---------------------------------------------------------------------------------


def test_what_came_of_a_poisoned_round_is_marked_and_the_task_goes_on_from_before_it(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    name = task[0].name
    before = {one.number: one for one in rounds.list_rounds(ctx, task=name)}

    after = round_quarantine.quarantine_round(
        ctx, actor="ana", task=name, number=3, why="press-1 lied"
    )

    told = {one.number: one.poisoned for one in rounds.list_rounds(ctx, task=name)}
    assert told == {1: "", 2: "", 3: "press-1 lied", 4: "it came of round 3: press-1 lied"}
    assert (after.parent, after.checkpoint) == (2, before[2].checkpoint)
    assert (after.rounds, after.epsilon) == (4, 0.0)
    assert audit.list_audit(ctx)[0][0].verb == "round.quarantine"


def test_a_task_with_a_poisoned_first_round_resumes_from_its_initial_model(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    after = round_quarantine.quarantine_round(
        ctx, actor="ana", task=task[0].name, number=1, why="lies"
    )

    assert after.prepared is not None
    assert (after.parent, after.checkpoint) == (0, after.prepared.theta)


def test_a_try_that_runs_on_a_poisoned_checkpoint_is_marked_to_be_broken_off(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    plan, theta = task
    running = add_round(ctx, plan, 5, theta, state=machine.State.TRAINING)

    round_quarantine.quarantine_round(ctx, actor="ana", task=plan.name, number=4, why="lies")

    assert rounds.get_round(ctx, running).poisoned == "it came of round 4: lies"


def test_a_device_that_trains_on_a_poisoned_checkpoint_is_not_carried_over(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    plan, theta = task
    marks = dict.fromkeys(DEVICES, UPDATED) | {"mill-2": LOST}
    add_round(ctx, plan, 5, theta, marks=marks, late=3, still={"mill-2"})
    with ctx.store.read() as db:
        assert scheduling.carried_over(db, plan.name).keys() == {"mill-2"}

    round_quarantine.quarantine_round(ctx, actor="ana", task=plan.name, number=4, why="lies")

    with ctx.store.read() as db:
        assert scheduling.carried_over(db, plan.name) == {}


def test_a_late_update_that_began_with_a_poisoned_checkpoint_spoils_its_round(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    plan, theta = task
    late = {"press-1": machine.Origin(number=4, attempt=(4).to_bytes(16))}
    add_round(ctx, plan, 5, theta, parent=2, carried=late)

    round_quarantine.quarantine_round(ctx, actor="ana", task=plan.name, number=3, why="lies")

    assert rounds.get_round(ctx, f"{plan.name}.5").poisoned


def test_no_release_of_a_poisoned_round_is_built_published_or_signed_as_candidate(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    name = task[0].name
    clean, bad = released(ctx, name, number=1), released(ctx, name, number=3)
    begun = promotion.release(ctx, actor="ana", task=name, number=4, trigger="rounds:4")

    round_quarantine.quarantine_round(ctx, actor="ana", task=name, number=2, why="press-1 lied")

    late = run(ctx, begun).result["release"]
    assert releases.get_release(ctx, late).state == "validated"
    for ref in (bad.ref, late):
        found = releases.get_release(ctx, ref)
        assert found.quarantined.startswith(f"round 2 of {name} is poisoned: press-1 lied")
        with pytest.raises(ConflictError, match="is in quarantine"):
            releases.publish(ctx, actor="ana", ref=ref, override="I insist")
        with pytest.raises(ConflictError, match="is in quarantine"):
            releases.sign_candidate(ctx, ref)
    with pytest.raises(ConflictError, match=r"round 2 of .* is poisoned"):
        promotion.release(ctx, actor="ana", task=name, number=3)
    assert releases.publish(ctx, actor="ana", ref=clean.ref).state == "released"
    assert releases.latest_of(ctx, "lot-codes") not in (bad.ref, late)


def test_a_task_that_began_with_what_is_poisoned_now_is_in_quarantine_too(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    first = released(ctx, task[0].name)
    prepared, theta = prepared_of(ctx, first)
    second = add_task(ctx, f"{task[0].name}-b", first.ref, prepared)
    add_round(ctx, second, 1, walk(theta, 1)[0])
    grandchild = released(ctx, second.name)
    assert grandchild.quarantined == ""

    round_quarantine.quarantine_round(ctx, actor="ana", task=task[0].name, number=1, why="lies")

    assert releases.get_release(ctx, grandchild.ref).quarantined


def test_a_quarantine_has_a_reason_and_a_round_that_made_something(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    with pytest.raises(InputError, match="give a reason"):
        round_quarantine.quarantine_round(ctx, actor="ana", task=task[0].name, number=1, why=" ")
    with pytest.raises(AbsentError):
        round_quarantine.quarantine_round(ctx, actor="ana", task=task[0].name, number=9, why="lies")


def test_a_rollout_of_a_poisoned_release_pauses_with_the_reason_and_cannot_resume(
    ctx: Context, task: tuple[TaskPlan, F32]
) -> None:
    made = released(ctx, task[0].name)
    releases.publish(ctx, actor="ana", ref=made.ref)
    with ctx.store.write() as db:
        db.execute(
            device.insert().values(
                name="mill-1", site="south", line="", labels={}, ring="stable", facts={},
                profile="x86-vnni", state="enrolled", online=True, releases={}, variants={},
            )
        )  # fmt: skip
    plan = RolloutPlan(release=made.ref, stages=[StagePlan(name="all")])
    rollout = rollouts.start(ctx, actor="ana", plan=plan)
    assert rollout.state == "RUNNING"

    round_quarantine.quarantine_round(
        ctx, actor="ana", task=task[0].name, number=4, why="mill-2 lied"
    )

    held = rollouts.get_rollout(ctx, rollout.id)
    assert held.state == "PAUSED"
    assert held.reason == f"quarantine: round 4 of {task[0].name} is poisoned: mill-2 lied"
    with pytest.raises(ConflictError, match="is in quarantine"):
        rollouts.resume(ctx, actor="ana", id=rollout.id)
    with pytest.raises(ConflictError, match="is in quarantine"):
        rollouts.start(ctx, actor="ana", plan=plan)
    assert rollouts.abort(ctx, actor="ana", id=rollout.id, rollback=True).state == "ROLLED_BACK"
