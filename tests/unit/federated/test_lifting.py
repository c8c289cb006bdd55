"""A quarantine that was a mistake is taken back: what it met is clean, nothing moves by itself."""

import itertools

import pytest
from sqlalchemy import create_engine, text

from controllers import run
from recorded_rounds import DEVICES, UPDATED, add_round, add_task, equip, prepared_of, trained, walk
from shoal.controller.access import audit
from shoal.controller.alerts import alerts
from shoal.controller.federated.checkpoints import promotion, round_quarantine
from shoal.controller.federated.records import TaskPlan
from shoal.controller.federated.rounds import machine, rounds
from shoal.controller.host.context import Context
from shoal.controller.releases import releases
from shoal.controller.releases.records import Release
from shoal.controller.rollouts import assignments, rollouts
from shoal.controller.rollouts.records import RolloutPlan, StagePlan
from shoal.controller.store.io.database import migrate
from shoal.controller.store.rollout_tables import rollout_device
from shoal.controller.store.tables import device
from shoal.errors import AbsentError, ConflictError, InputError
from shoal.params import F32

GOOD = "lot-codes@1"
_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A fleet on a release that every task begins with."""
    made = trained(tmp_path_factory.mktemp("controller"))
    equip(made, GOOD)
    return made


@pytest.fixture
def plan(ctx: Context) -> TaskPlan:
    """A task of the test's own, with four rounds done."""
    prepared, theta = prepared_of(ctx, releases.get_release(ctx, GOOD))
    plan = add_task(ctx, f"walk-{next(_NUMBERS)}", GOOD, prepared)
    for number, one in enumerate(walk(theta, 4), 1):
        add_round(ctx, plan, number, one, marks=dict.fromkeys(DEVICES, UPDATED))
    return plan


@pytest.fixture
def theta(ctx: Context) -> F32:
    return prepared_of(ctx, releases.get_release(ctx, GOOD))[1]


def quarantine(ctx: Context, plan: TaskPlan, number: int, why: str = "press-1 lied") -> None:
    round_quarantine.quarantine_round(ctx, actor="ana", task=plan.name, number=number, why=why)


def lift(ctx: Context, plan: TaskPlan, number: int) -> round_quarantine.Lifted:
    return round_quarantine.lift(
        ctx, actor="root", task=plan.name, number=number, why="it was press-9"
    )


def told(ctx: Context, plan: TaskPlan) -> dict[int, str]:
    return {one.number: one.poisoned for one in rounds.list_rounds(ctx, task=plan.name)}


def released(ctx: Context, plan: TaskPlan, number: int) -> Release:
    work = run(ctx, promotion.release(ctx, actor="ana", task=plan.name, number=number))
    return releases.publish(ctx, actor="ana", ref=work.result["release"])


def roll_out(ctx: Context, ref: str) -> str:
    """To everybody, in the place of any other."""
    for one in rollouts.list_rollouts(ctx):
        if one.state == "RUNNING":
            rollouts.pause(ctx, actor="ana", id=one.id)
    whole = RolloutPlan(release=ref, stages=[StagePlan(name="all")])
    return rollouts.start(ctx, actor="ana", plan=whole).id


def serve(ctx: Context, ident: str, ref: str, name: str) -> None:
    """This device has told that it serves it now, and the rollout sees it."""
    with ctx.store.write() as db:
        mine = (rollout_device.c.rollout == ident) & (rollout_device.c.device == name)
        db.execute(rollout_device.update().where(mine).values(state="SUCCEEDED"))
        serves = device.update().where(device.c.name == name)
        db.execute(serves.values(releases={"lot-codes": ref}))


def ordered(ctx: Context) -> dict[str, list[str]]:
    with ctx.store.read() as db:
        return {n: [one.release for one in assignments.orders_of(db, n)] for n in DEVICES}


def standing(ctx: Context, plan: TaskPlan) -> list[str]:
    """Details of the alerts that stand for this task's quarantine."""
    return [a.detail for a in alerts.list_alerts(ctx, "open") if f"of {plan.name} is" in a.detail]


def test_a_quarantine_that_is_lifted_leaves_the_task_as_it_was_and_both_reasons_in_the_audit_log(
    ctx: Context, plan: TaskPlan
) -> None:
    before = rounds.get_task(ctx, plan.name)
    quarantine(ctx, plan, 2)

    after = lift(ctx, plan, 2)

    assert told(ctx, plan) == dict.fromkeys((1, 2, 3, 4), "")
    assert (after.parent, after.checkpoint) == (4, before.checkpoint)
    assert after.cleared == [f"{plan.name}.{n}" for n in (2, 3, 4)]
    assert after.rounds_left == []
    entries, _ = audit.list_audit(ctx, subject=f"{plan.name}.2")
    assert [(one.actor, one.verb, one.detail["why"]) for one in entries] == [
        ("root", "round.lift", "it was press-9"), ("ana", "round.quarantine", "press-1 lied")
    ]  # fmt: skip
    audit.verify(ctx)


@pytest.mark.parametrize("order", [(2, 4), (4, 2)])
def test_what_is_in_quarantine_for_another_reason_stays_so(
    ctx: Context, plan: TaskPlan, order: tuple[int, int]
) -> None:
    for number in order:
        quarantine(ctx, plan, number, f"{number} was bad")

    after = lift(ctx, plan, 2)

    assert told(ctx, plan) == {1: "", 2: "", 3: "", 4: "4 was bad"}
    assert (after.parent, after.rounds_left) == (3, [4])


@pytest.mark.parametrize(
    ("lifted", "left"),
    [
        (3, {1: "", 2: "lies", 3: "it came of round 2: lies", 4: "it came of round 2: lies"}),
        (2, {1: "", 2: "", 3: "lies", 4: "it came of round 3: lies"}),
    ],
)
def test_a_round_derived_from_two_in_quarantine_names_the_one_that_is_left(
    ctx: Context, plan: TaskPlan, lifted: int, left: dict[int, str]
) -> None:
    quarantine(ctx, plan, 2, "lies")
    quarantine(ctx, plan, 3, "lies")
    assert told(ctx, plan)[4] == "it came of round 3: lies"

    lift(ctx, plan, lifted)

    assert told(ctx, plan) == left


def test_a_task_that_has_learned_since_stays_where_it_is(
    ctx: Context, plan: TaskPlan, theta: F32
) -> None:
    quarantine(ctx, plan, 2)
    add_round(ctx, plan, 5, theta, parent=1)

    after = lift(ctx, plan, 2)

    assert (after.parent, told(ctx, plan)[5]) == (5, "")
    assert rounds.checkpoint(ctx, plan.name).lineage == [1, 5]


def test_one_late_update_keeps_its_round_in_quarantine_with_the_checkpoint_it_began_with(
    ctx: Context, plan: TaskPlan, theta: F32
) -> None:
    late = {"press-1": machine.Origin(number=4, attempt=(4).to_bytes(16))}
    add_round(ctx, plan, 5, theta, parent=1, carried=late)
    quarantine(ctx, plan, 3, "lies")
    quarantine(ctx, plan, 2, "lies")

    assert lift(ctx, plan, 2).rounds_left == [3, 4, 5]
    assert lift(ctx, plan, 3).rounds_left == []


def test_only_a_quarantine_that_a_user_imposed_can_be_lifted_and_with_a_reason(
    ctx: Context, plan: TaskPlan
) -> None:
    quarantine(ctx, plan, 2)
    with pytest.raises(ConflictError, match="it came of round 2") as derived:
        lift(ctx, plan, 3)
    assert f"shoal round lift {plan.name}" in derived.value.hint
    with pytest.raises(ConflictError, match="is not in quarantine"):
        lift(ctx, plan, 1)
    with pytest.raises(AbsentError):
        lift(ctx, plan, 9)
    with pytest.raises(InputError, match="give a reason"):
        round_quarantine.lift(ctx, actor="root", task=plan.name, number=2, why=" ")
    assert told(ctx, plan)[2] == "press-1 lied"


def test_releases_may_be_published_again_and_so_may_those_of_tasks_that_began_with_them(
    ctx: Context, plan: TaskPlan
) -> None:
    first = released(ctx, plan, 3)
    prepared, theta = prepared_of(ctx, first)
    second = add_task(ctx, f"{plan.name}-b", first.ref, prepared)
    add_round(ctx, second, 1, walk(theta, 1)[0])
    work = run(ctx, promotion.release(ctx, actor="ana", task=second.name))
    child = work.result["release"]
    quarantine(ctx, plan, 2)
    with pytest.raises(ConflictError, match="is in quarantine"):
        releases.publish(ctx, actor="ana", ref=child)

    after = lift(ctx, plan, 2)

    assert after.releases == [first.ref, child]
    assert releases.publish(ctx, actor="ana", ref=child).state == "released"


def test_nothing_that_was_called_back_is_rolled_out_by_itself(ctx: Context, plan: TaskPlan) -> None:
    ref = released(ctx, plan, 4).ref
    ident = roll_out(ctx, ref)
    serve(ctx, ident, ref, "press-1")
    quarantine(ctx, plan, 2)
    before = ordered(ctx)
    assert ref not in itertools.chain(*before.values())
    assert standing(ctx, plan)

    after = lift(ctx, plan, 2)

    assert ordered(ctx) == before
    waiting = rollouts.get_rollout(ctx, ident)
    assert (waiting.state, waiting.reason) == (
        "PAUSED", "the quarantine was lifted by root: resume it to go on"
    )  # fmt: skip
    assert after.rollouts == {ident: "PAUSED"}
    assert f"shoal rollout resume {ident} or shoal rollout start {ref}" in after.next_step
    assert standing(ctx, plan) == []
    assert rollouts.resume(ctx, actor="ana", id=ident).state != "PAUSED"


def test_the_alert_lists_the_rest_while_another_round_is_in_quarantine(
    ctx: Context, plan: TaskPlan
) -> None:
    early, late = released(ctx, plan, 2).ref, released(ctx, plan, 4).ref
    serve(ctx, roll_out(ctx, early), early, "press-1")
    serve(ctx, roll_out(ctx, late), late, "press-2")
    quarantine(ctx, plan, 2)
    quarantine(ctx, plan, 4)
    [both] = standing(ctx, plan)
    assert f"{early} is on press-1" in both

    lift(ctx, plan, 2)

    [left] = standing(ctx, plan)
    assert early not in left
    assert f"{late} is on press-2" in left


def test_a_quarantine_of_an_older_controller_can_be_lifted(tmp_path_factory) -> None:
    """What it said is which rounds are poisoned, and not who said it of which."""
    with create_engine(f"sqlite:///{tmp_path_factory.mktemp('old')}/controller.db").begin() as db:
        migrate(db, "0004")
        task = "(name, plan, prepared, spent) VALUES ('walk', '{}', '{}', '[]')"
        db.execute(text(f"INSERT INTO federated_task {task}"))
        for number, why in ((1, ""), (2, "lies"), (3, "it came of round 2: lies")):
            row = f"('walk.{number}', 'walk', {number}, 'DONE', '{{}}', '{{}}', '{{}}', '{why}')"
            columns = "id, task, number, state, journal, plan, result, poisoned"
            db.execute(text(f"INSERT INTO federated_round ({columns}) VALUES {row}"))
        migrate(db)
        found = db.execute(text("SELECT charge FROM federated_round ORDER BY number"))
        assert list(found.scalars()) == ["", "lies", ""]
