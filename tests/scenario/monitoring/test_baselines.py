"""What is usual is shown, accepted, reset and frozen by a person, in a fleet in memory."""

import pytest

from fakes import memory_folder
from fleet import MODEL, Fleet
from shoal.controller.access import audit
from shoal.controller.alerts import alerts
from shoal.controller.monitoring import (
    apply_baseline_changes,
    baseline_changes,
    baselines,
    drift_history,
    drift_monitor,
)
from shoal.errors import AbsentError, InputError

pytestmark = pytest.mark.scenario
#: What becomes of a change at each site: frozen before it, accepted, reset.
SITES = {"cam-1": "north", "cam-3": "south", "cam-4": "south", "cam-5": "west"}
SUBJECTS = {"north": ("cam-1", "north"), "south": ("cam-3", "cam-4", "south")}


@pytest.fixture(scope="module")
def fleet():
    with memory_folder() as folder:
        fleet = Fleet(folder)
        for i, (name, site) in enumerate(SITES.items()):
            fleet.station(name, site=site, ring="stable" if i else "canary")
        fleet.run(1)
        one = fleet.roll_out(fleet.release())
        fleet.run(60, lambda: fleet.rollout(one.id).state == "FINISHED")
        fleet.run(300, lambda: len(fleet.watched()) == 7)
        yield fleet


@pytest.fixture(scope="module")
def before(fleet):
    """North is frozen; its usual mean. Then every site moves for good, and that is found."""
    done = ask(fleet, "freeze", site="north")
    assert (done.changed, done.skipped) == (2, 0)
    usual = baselines.show(fleet.ctx, MODEL, "device", "cam-1").features[0].mean
    move(fleet, *SITES.values())
    fleet.run(120, lambda: set(SITES.values()) <= set(listed(fleet, state="drifting")))
    fleet.run(40)
    return usual


@pytest.fixture(scope="module")
def steered(fleet, before):
    """What lately was is accepted at south, and west learns anew; findings of south until then."""
    [alert] = open_alerts(fleet, "south")
    assert "shoal drift accept lot-codes --site south" in alert.next_step
    done = ask(fleet, "accept", site="south")
    assert (done.baselines, done.changed, done.skipped) == (3, 3, 0)
    found = findings(fleet, "south")
    chunk = apply_baseline_changes.CHUNK
    with fleet.controller_down():  # the engine stops after the first baseline, and starts again
        asked = baseline_changes.ask(
            fleet.ctx, actor="ana", action="reset", model=MODEL, site="west"
        )
        apply_baseline_changes.CHUNK = 1
        memory = drift_monitor.DriftMemory(64)
        assert apply_baseline_changes.apply_chunk(fleet.ctx, memory, asked.id)
        apply_baseline_changes.CHUNK = chunk
    fleet.run(30, lambda: baseline_changes.get(fleet.ctx, asked.id).done_at > 0)
    assert baseline_changes.get(fleet.ctx, asked.id).changed == 2
    assert listed(fleet, site="west", state="learning") == ["cam-5", "west"]
    fleet.run(150)
    return found


def ask(fleet, action, **selection):
    """Ask, and let the engine apply it."""
    asked = baseline_changes.ask(fleet.ctx, actor="ana", action=action, model=MODEL, **selection)
    fleet.run(30, lambda: baseline_changes.get(fleet.ctx, asked.id).done_at > 0)
    return baseline_changes.get(fleet.ctx, asked.id)


def move(fleet, *sites, by=1.5):
    for name, where in SITES.items():
        if where in sites:
            fleet.stations[name].shift[0] += by


def listed(fleet, **filters):
    found, _ = baselines.page(fleet.ctx, model=MODEL, **filters)
    return [b.subject for b in found]


def open_alerts(fleet, site):
    return [one for one in alerts.list_alerts(fleet.ctx, "open") if one.site == site]


def findings(fleet, site):
    found = drift_history.list_findings(fleet.ctx)
    return {(one.subject, one.feature, one.at) for one in found if one.subject in SUBJECTS[site]}


def test_an_accepted_change_closes_its_alert_and_is_the_normal_from_then_on(fleet, steered):
    assert open_alerts(fleet, "south") == []
    [closed] = [one for one in alerts.list_alerts(fleet.ctx) if one.site == "south"]
    assert "accepted by ana" in closed.detail
    assert findings(fleet, "south") == steered
    shown = baselines.show(fleet.ctx, MODEL, "device", "cam-3")
    contrast = shown.features[0]
    assert (shown.baseline.change, shown.baseline.changed_by) == ("accepted", "ana")
    assert contrast.feature == "contrast"
    assert contrast.mean == pytest.approx(1.5, abs=0.3)
    assert contrast.sd == pytest.approx(1.0, abs=0.2)
    assert shown.rows is not None
    [entry] = [e for e in audit.list_audit(fleet.ctx)[0] if e.verb == "drift.accept"]
    assert (entry.actor, entry.subject, entry.detail["site"]) == ("ana", MODEL, "south")


def test_a_reset_baseline_learns_anew_and_says_nothing_meanwhile(fleet, steered):
    assert listed(fleet, site="west", state="learning") == []
    assert listed(fleet, site="west", state="drifting") == []
    assert open_alerts(fleet, "west") == []
    assert baselines.show(fleet.ctx, MODEL, "device", "cam-5").baseline.change == "reset"


def test_a_frozen_baseline_does_not_take_a_lasting_change_for_its_normal(fleet, before, steered):
    assert ask(fleet, "unfreeze", device="cam-1").changed == 1
    shown = baselines.show(fleet.ctx, MODEL, "device", "cam-1")
    assert shown.features[0].mean == pytest.approx(before, abs=1e-6)
    assert "contrast" in shown.baseline.drifting
    assert ask(fleet, "unfreeze", device="cam-1").why_skipped == "it was not frozen"
    assert listed(fleet, site="north", state="frozen") == ["north"]


def test_what_was_accepted_is_watched_like_any_other_normal(fleet, steered):
    move(fleet, "south", by=-3.0)
    fleet.run(120, lambda: findings(fleet, "south") > steered)
    assert findings(fleet, "south") > steered


def test_what_is_asked_for_has_to_select_something(fleet):
    ctx = fleet.ctx
    for selection in ({}, {"device": "cam-3", "site": "south"}):
        with pytest.raises(InputError, match="which baselines"):
            baseline_changes.ask(ctx, actor="ana", action="reset", model=MODEL, **selection)
    with pytest.raises(AbsentError, match="moon"):
        baseline_changes.ask(ctx, actor="ana", action="reset", model=MODEL, site="moon")
    with pytest.raises(AbsentError, match="colour"):
        baseline_changes.ask(
            ctx, actor="ana", action="accept", model=MODEL, site="south", features=["colour"]
        )
    with pytest.raises(InputError, match="of some features"):
        baseline_changes.ask(
            ctx, actor="ana", action="reset", model=MODEL, site="south", features=["blur"]
        )
    found, page = baselines.page(ctx, model=MODEL, limit=2)
    assert page.total == 7
    rest, _ = baselines.page(ctx, model=MODEL, limit=6, cursor=page.next)
    assert [b.subject for b in found + rest] == [
        "cam-1", "north", "cam-3", "cam-4", "south", "cam-5", "west",
    ]  # fmt: skip
    with pytest.raises(InputError, match="state"):
        baselines.page(ctx, model=MODEL, state="sleepy")
    with pytest.raises(AbsentError, match="moon"):
        baselines.show(ctx, MODEL, "device", "moon")
