"""A drift alert asks for rounds of the model's task, and not again before its cool-down."""

import pytest

from fake_clients import MODEL, FakeFederation
from shoal.controller.access import audit
from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft
from shoal.controller.federated.planning import drift_trigger
from shoal.controller.federated.rounds import rounds
from shoal.controller.releases import models
from shoal.errors import AbsentError, ConflictError

pytestmark = pytest.mark.scenario

COOLDOWN_S = 60.0


@pytest.fixture
def learning(federation: FakeFederation) -> FakeFederation:
    """A task that rests, and a model that asks it for two rounds, every minute at most."""
    federation.task()
    ctx = federation.fleet.ctx
    with ctx.store.write() as db:
        models.ensure_model(db, ctx, actor="ana", name=MODEL)
    policy(federation, task="walk", rounds=2)
    return federation


def policy(federation: FakeFederation, **wishes: object) -> None:
    asked = {"retrain_on_drift": False, "dataset": "", "cooldown_s": COOLDOWN_S, **wishes}
    models.set_policy(federation.fleet.ctx, actor="ana", model=MODEL, **asked)  # type: ignore[arg-type]


def drift(federation: FakeFederation) -> int:
    """An alert's id."""
    ctx = federation.fleet.ctx
    found = Draft(
        key="drift/south", kind="drift", severity="warning", title="p7 drifted", detail="",
        next_step="", site="south", model=MODEL, release=f"{MODEL}@1", features=["p7"],
    )  # fmt: skip
    with ctx.store.write() as db:
        return alerts.raise_alert(db, ctx, found)


def test_a_drift_alert_asks_for_rounds_once_in_a_cool_down_as_long_as_it_stands(
    learning: FakeFederation,
) -> None:
    learning.run(10)
    assert learning.walk.asked == 0, "nothing has drifted"
    alert = drift(learning)
    learning.run(200, until=lambda: learning.done(2))
    assert (learning.walk.state, learning.walk.asked) == ("ready", 2)
    ctx = learning.fleet.ctx
    [entry] = [e for e in audit.list_audit(ctx, subject="walk")[0] if e.verb == "round.start"]
    assert (entry.actor, entry.detail["because"]) == ("automation", f"alert:{alert}")
    asked_at = models.get_model(ctx, MODEL).asked_at
    learning.run(asked_at + COOLDOWN_S - 1 - ctx.clock())
    assert learning.walk.asked == 2

    learning.run(100, until=lambda: learning.done(4))
    assert learning.walk.asked == 4
    with ctx.store.write() as db:
        alerts.close(db, ctx, "drift/south", "it is gone")
    learning.run(2 * COOLDOWN_S)
    assert learning.walk.asked == 4


def test_drift_in_two_places_asks_once(learning: FakeFederation) -> None:
    drift(learning)
    ctx = learning.fleet.ctx
    found = alerts.list_alerts(ctx)[0]
    other = {name: getattr(found, name) for name in Draft._fields if name != "key"}
    with ctx.store.write() as db:
        alerts.raise_alert(db, ctx, Draft(key="drift/north", **other))
    assert drift_trigger.evaluate(ctx) == ["walk"]
    assert drift_trigger.evaluate(ctx) == []
    assert learning.walk.asked == 2


def test_drift_does_not_start_rounds_of_an_aborted_task(learning: FakeFederation) -> None:
    learning.more(5)
    rounds.abort(learning.fleet.ctx, actor="ana", task="walk")
    drift(learning)
    assert drift_trigger.evaluate(learning.fleet.ctx) == []
    assert learning.walk.state == "stopped"


def test_a_task_that_runs_is_left_alone_until_it_rests(learning: FakeFederation) -> None:
    learning.more(1)
    drift(learning)
    assert drift_trigger.evaluate(learning.fleet.ctx) == []
    learning.run(200, until=lambda: learning.done(3))
    assert learning.walk.asked == 3


def test_without_a_task_in_the_policy_drift_asks_for_no_round(learning: FakeFederation) -> None:
    policy(learning, task="")
    drift(learning)
    assert drift_trigger.evaluate(learning.fleet.ctx) == []


def test_a_policy_names_a_task_of_its_own_model(learning: FakeFederation) -> None:
    ctx = learning.fleet.ctx
    with ctx.store.write() as db:
        models.ensure_model(db, ctx, actor="ana", name="seals")
    with pytest.raises(ConflictError, match=f"task walk trains {MODEL}"):
        models.set_policy(
            ctx, actor="ana", model="seals", retrain_on_drift=False, dataset="", task="walk"
        )
    with pytest.raises(AbsentError):
        policy(learning, task="nobodys")
    assert models.get_model(ctx, MODEL).task == "walk"
