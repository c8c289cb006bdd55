"""A release in quarantine reaches no further device, and an alert names the way back."""

from pathlib import Path

import pytest

from controllers import run
from recorded_rounds import DEVICES, UPDATED, add_round, add_task, equip, prepared_of, trained, walk
from shoal.controller.alerts import alerts
from shoal.controller.federated.checkpoints import promotion, round_quarantine
from shoal.controller.federated.records import Quarantined, TaskPlan
from shoal.controller.host.context import Context
from shoal.controller.releases import quarantine as quarantines
from shoal.controller.releases import releases
from shoal.controller.releases.records import Release
from shoal.controller.rollouts import assignments, quarantine_withdrawal, rollouts
from shoal.controller.rollouts.records import RolloutPlan, StagePlan
from shoal.controller.store.rollout_tables import rollout, rollout_device
from shoal.controller.store.tables import device
from shoal.errors import ConflictError

TASK, GOOD = "walk", "lot-codes@1"


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    """A fleet on lot-codes@1, mill-2 of it away, and a task with two rounds."""
    made = trained(tmp_path)
    equip(made, GOOD, away={"mill-2"})
    return made


@pytest.fixture
def plan(ctx: Context) -> TaskPlan:
    prepared, theta = prepared_of(ctx, releases.get_release(ctx, GOOD))
    plan = add_task(ctx, TASK, GOOD, prepared)
    for number, one in enumerate(walk(theta, 2), 1):
        add_round(ctx, plan, number, one, marks=dict.fromkeys(DEVICES, UPDATED))
    return plan


def released(ctx: Context, number: int) -> Release:
    work = run(ctx, promotion.release(ctx, actor="ana", task=TASK, number=number))
    return releases.publish(ctx, actor="ana", ref=work.result["release"])


def roll_out(ctx: Context, ref: str) -> str:
    whole = RolloutPlan(release=ref, stages=[StagePlan(name="all")])
    return rollouts.start(ctx, actor="ana", plan=whole).id


def install(ctx: Context, ident: str, ref: str, *names: str) -> None:
    """These devices have reported that they serve it, and the rollout has noted it."""
    with ctx.store.write() as db:
        for name in names:
            mine = (rollout_device.c.rollout == ident) & (rollout_device.c.device == name)
            db.execute(rollout_device.update().where(mine).values(state="SUCCEEDED"))
            serves = device.update().where(device.c.name == name)
            db.execute(serves.values(releases={"lot-codes": ref}))


def served_by(ctx: Context, *names: str) -> tuple[str, str]:
    """The release of round 2, rolled out to all and on these devices; and its rollout."""
    ref = released(ctx, 2).ref
    ident = roll_out(ctx, ref)
    install(ctx, ident, ref, *names)
    return ref, ident


def finish(ctx: Context, ident: str) -> None:
    """As if its last stage had passed with somebody unseen."""
    with ctx.store.write() as db:
        mine = rollout.update().where(rollout.c.id == ident)
        db.execute(mine.values(state="FINISHED"))


def ordered(ctx: Context, name: str) -> list[str]:
    with ctx.store.read() as db:
        return [order.release for order in assignments.orders_of(db, name)]


def quarantine(ctx: Context, number: int = 2) -> Quarantined:
    return round_quarantine.quarantine_round(
        ctx, actor="ana", task=TASK, number=number, why="press-1 lied"
    )


def test_a_device_that_comes_back_after_a_quarantine_is_not_assigned_the_release(
    ctx: Context, plan: TaskPlan
) -> None:
    bad, ident = served_by(ctx, "press-1", "press-2", "mill-1")
    finish(ctx, ident)
    assert ordered(ctx, "mill-2") == [bad]
    with ctx.store.read() as db:
        sent = assignments._rows(db, ["mill-2"])["mill-2"].version

    effects = quarantine(ctx)

    assert ordered(ctx, "mill-2") == [GOOD]
    assert "mill-2" in effects.withdrawn
    assert "mill-2" in {one.device for one in assignments.pending(ctx) if one.version > sent}
    unseen = {one.device: one for one in rollouts.rollout_devices(ctx, ident)[0]}["mill-2"]
    assert (unseen.state, unseen.cause) == ("CANCELED", "quarantined")


def test_a_device_that_serves_a_quarantined_release_keeps_it_and_no_order_names_it(
    ctx: Context, plan: TaskPlan
) -> None:
    bad, _ = served_by(ctx, "press-1")

    effects = quarantine(ctx)

    assert ordered(ctx, "press-1") == []
    assert effects.serving == {bad: ["press-1"]}
    with ctx.store.write() as db:  # as a folder for it is signed, or when half a life is over
        assignments.renew_now(db, ctx, "press-1")
    assert ordered(ctx, "press-1") == []


def test_an_order_that_names_a_quarantined_release_is_not_signed_again(
    ctx: Context, plan: TaskPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = released(ctx, 2).ref
    roll_out(ctx, bad)
    monkeypatch.setattr(
        quarantine_withdrawal, "_withdraw_orders", lambda *_: []
    )  # as before there was such a thing
    quarantine(ctx)
    assert ordered(ctx, "press-1") == [bad]

    with ctx.store.write() as db:
        assignments.renew_now(db, ctx, "press-1")

    assert ordered(ctx, "press-1") == []


def test_a_quarantine_names_what_went_out_and_the_way_back_and_raises_an_alert(
    ctx: Context, plan: TaskPlan
) -> None:
    bad, ident = served_by(ctx, "press-1")

    effects = quarantine(ctx)

    assert (effects.releases, effects.rollouts) == ([bad], {ident: "PAUSED"})
    assert effects.next_step == f"Put them back: shoal rollout start {GOOD}"
    (alert,) = alerts.list_alerts(ctx, "open")
    assert (alert.severity, alert.release) == ("critical", bad)
    assert f"{bad} is on press-1" in alert.detail
    assert alert.next_step == effects.next_step


def test_the_alert_closes_when_no_device_serves_what_is_in_quarantine(
    ctx: Context, plan: TaskPlan
) -> None:
    _, ident = served_by(ctx, "press-1")
    quarantine(ctx)
    quarantine_withdrawal.close_alerts(ctx)
    assert len(alerts.list_alerts(ctx, "open")) == 1

    install(ctx, ident, GOOD, "press-1")
    quarantine_withdrawal.close_alerts(ctx)

    assert alerts.list_alerts(ctx, "open") == []


def test_aborting_a_finished_rollout_names_the_rollout_that_puts_devices_back(
    ctx: Context, plan: TaskPlan
) -> None:
    ident = roll_out(ctx, released(ctx, 2).ref)
    finish(ctx, ident)
    with pytest.raises(ConflictError, match="FINISHED: it cannot be reverted") as refused:
        rollouts.abort(ctx, actor="ana", id=ident, rollback=True)
    assert f"shoal rollout start {GOOD}" in refused.value.hint


def test_no_device_is_rolled_back_onto_a_release_in_quarantine(
    ctx: Context, plan: TaskPlan
) -> None:
    bad, first = served_by(ctx, *DEVICES)
    finish(ctx, first)
    clean = released(ctx, 1).ref
    second = roll_out(ctx, clean)
    install(ctx, second, clean, "press-1")
    quarantine(ctx)

    rollouts.abort(ctx, actor="ana", id=second, rollback=True)

    assert {name: ordered(ctx, name) for name in DEVICES} == {name: [] for name in DEVICES}
    kept = {one.device: one for one in rollouts.rollout_devices(ctx, second)[0]}["press-1"]
    assert kept.detail.startswith(f"{bad}, which it had before, is in quarantine")


def test_the_way_back_leaves_out_releases_in_quarantine(ctx: Context, plan: TaskPlan) -> None:
    bad = [released(ctx, 1).ref, released(ctx, 2).ref]
    ident = roll_out(ctx, bad[1])
    quarantine(ctx, 1)
    with ctx.store.read() as db:
        assert quarantines.way_back(db, bad[1]) == GOOD
        assert quarantines.way_back(db, GOOD) == ""
    assert rollouts.get_rollout(ctx, ident).state == "PAUSED"


def test_a_release_that_was_published_before_its_quarantine_is_not_published_again(
    ctx: Context, plan: TaskPlan
) -> None:
    bad = released(ctx, 2).ref
    quarantine(ctx)
    with pytest.raises(ConflictError, match="is in quarantine"):
        releases.publish(ctx, actor="ana", ref=bad)
    assert releases.publish(ctx, actor="ana", ref=GOOD).state == "released"
