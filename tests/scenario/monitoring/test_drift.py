"""Drift monitoring: from rows of a camera to the training that drift triggers."""

import msgspec
import pytest
from sqlalchemy import delete, insert, update

from fakes import memory_folder
from fleet import MODEL, Fleet
from shoal.controller.alerts import actions, alerts
from shoal.controller.data import datasets
from shoal.controller.data.records import DatasetVersion
from shoal.controller.fleet import ledger
from shoal.controller.monitoring import (
    drift_history,
    drift_monitor,
    drift_states,
    performance,
    triggers,
)
from shoal.controller.operations import operations
from shoal.controller.releases import models
from shoal.controller.store import drift_tables, tables
from shoal.errors import AbsentError, ConflictError
from shoal.wire import Health

pytestmark = pytest.mark.scenario
POSITION = "monitoring.position"
SITES = {"cam-1": "north", "cam-2": "north", "cam-3": "south", "cam-4": "south"}


@pytest.fixture
def fleet():
    with memory_folder() as folder:
        fleet = Fleet(folder)
        for i, (name, site) in enumerate(SITES.items()):
            fleet.station(name, site=site, ring="stable" if i else "canary")
            fleet.stations[name].shift += 0.1 * i  # no two cameras are the same
        fleet.run(1)
        one = fleet.roll_out(fleet.release())
        fleet.run(60, lambda: fleet.rollout(one.id).state == "FINISHED")
        yield fleet


def baseline(fleet):
    """Let everybody, device and site, have a baseline."""
    fleet.run(300, lambda: len(fleet.watched()) == 6)


def foul(fleet, site, contrast=0.8):
    for name, where in SITES.items():
        if where == site:
            fleet.stations[name].shift[0] -= contrast


def drifted(fleet):
    return lambda: bool(alerts.list_alerts(fleet.ctx, "open"))


def test_nothing_is_found_where_nothing_changes(fleet):
    baseline(fleet)
    fleet.run(300)
    points = fleet.rows_of(drift_tables.drift_point)
    assert {(p.scope, p.subject) for p in points} == {
        ("device", "cam-1"), ("device", "cam-2"), ("device", "cam-3"), ("device", "cam-4"),
        ("site", "north"), ("site", "south"),
    }  # fmt: skip
    assert len(points) > 150
    assert fleet.rows_of(drift_tables.finding) == []


def test_drift_is_found_at_one_site_and_only_there(fleet):
    baseline(fleet)
    fleet.run(60)
    foul(fleet, "south")
    fleet.run(120, drifted(fleet))
    fleet.run(60)
    subjects = {(f.scope, f.subject) for f in drift_history.list_findings(fleet.ctx)}
    assert ("site", "south") in subjects
    assert subjects <= {("site", "south"), ("device", "cam-3"), ("device", "cam-4")}
    [alert] = alerts.list_alerts(fleet.ctx)
    assert (alert.site, alert.model, alert.release) == ("south", MODEL, f"{MODEL}@1")
    assert alert.features[0] == "contrast"
    assert "edge" not in alert.features
    assert alert.findings == len(drift_history.list_findings(fleet.ctx))
    assert f"shoal model train {MODEL}" in alert.next_step


def test_lasting_drift_is_one_finding_per_subject_and_feature_not_one_per_window(fleet):
    baseline(fleet)
    foul(fleet, "south", contrast=2.0)
    fleet.run(300)
    found = [f for f in drift_history.list_findings(fleet.ctx) if f.feature == "contrast"]
    assert len(found) == len({(f.scope, f.subject) for f in found}) == 3


def test_an_alert_is_acknowledged_and_closes_by_itself_when_the_release_is_replaced(fleet):
    baseline(fleet)
    foul(fleet, "south")
    fleet.run(120, drifted(fleet))
    [alert] = alerts.list_alerts(fleet.ctx, "open")
    assert actions.acknowledge(fleet.ctx, actor="ana", id=alert.id).acknowledged_by == "ana"
    fleet.run(60)
    assert [a.id for a in alerts.list_alerts(fleet.ctx, "acknowledged")] == [alert.id]
    new = fleet.roll_out(fleet.release())
    fleet.run(60, lambda: fleet.rollout(new.id).state == "FINISHED")
    fleet.run(10)
    [closed] = alerts.list_alerts(fleet.ctx)
    assert closed.state == "closed"
    assert f"{MODEL}@2" in closed.detail
    with pytest.raises(ConflictError, match="closed"):
        actions.acknowledge(fleet.ctx, actor="ana", id=alert.id)
    with pytest.raises(AbsentError):
        actions.acknowledge(fleet.ctx, actor="ana", id=99)


def test_an_alert_closes_when_the_camera_is_clean_again(fleet):
    baseline(fleet)
    foul(fleet, "south")
    fleet.run(120, drifted(fleet))
    foul(fleet, "south", contrast=-0.8)
    fleet.run(700, lambda: not alerts.list_alerts(fleet.ctx, "open"))
    assert "no alarm in the last 32 windows" in alerts.list_alerts(fleet.ctx)[0].detail


def test_a_new_release_begins_a_new_baseline_and_the_update_is_no_drift(fleet):
    baseline(fleet)
    new = fleet.roll_out(fleet.release(weights=(-1, 0.5, 2)))
    fleet.run(60, lambda: fleet.rollout(new.id).state == "FINISHED")
    fleet.run(300)
    assert fleet.rows_of(drift_tables.finding) == []
    states = fleet.rows_of(drift_tables.drift_state)
    releases = {row.release for row in states if row.scope == "site"}
    assert releases == {f"{MODEL}@1", f"{MODEL}@2"}


def test_throttled_windows_are_kept_and_raise_no_alarm(fleet):
    baseline(fleet)
    fleet.stations["cam-3"].health = Health(throttled=True)
    fleet.run(10)  # the window that is open was not throttled
    fleet.stations["cam-3"].shift += 3
    fleet.run(120)
    assert fleet.rows_of(drift_tables.finding) == []
    windows = fleet.windows("cam-3")
    assert sum(w.health["throttled"] for w in windows) >= 12


def test_a_device_with_a_wrong_clock_is_monitored_by_itself_and_not_with_its_site(fleet):
    baseline(fleet)
    fleet.run(20)
    wrong = fleet.stations["cam-3"]
    wrong.crash()
    wrong.clock_off_s = -20 * 365 * 86_400
    wrong.start()
    wrong.shift += 3
    fleet.run(120)
    windows = fleet.windows("cam-3")
    assert any(not w.health["clock_synced"] for w in windows)
    found = {(f.scope, f.subject) for f in drift_history.list_findings(fleet.ctx)}
    assert found == {("device", "cam-3")}


def test_one_camera_that_stops_sending_is_no_drift_of_its_site(fleet):
    fleet.stations["cam-4"].shift += 1.5  # as it always was
    baseline(fleet)
    fleet.stations["cam-4"].crash()
    fleet.run(300)
    assert [f for f in drift_history.list_findings(fleet.ctx) if f.scope == "site"] == []
    at = max(p.at for p in fleet.rows_of(drift_tables.drift_point) if p.subject == "south")
    assert at > fleet.clock() - 60


def test_the_heatmap_and_the_histograms_agree(fleet):
    fleet.run(60)
    early = drift_history.drift_map(fleet.ctx, MODEL, "device", "cam-3")
    assert not early.ready
    assert 0 < early.baseline_windows < early.baseline_needed == 12
    baseline(fleet)
    foul(fleet, "south", contrast=1.5)
    fleet.run(120)
    assert drift_history.drift_subjects(fleet.ctx, MODEL)[:2] == [
        ("site", "north"),
        ("site", "south"),
    ]
    shown = drift_history.drift_map(fleet.ctx, MODEL, "site", "south")
    assert shown.ready
    assert shown.features == ["contrast", "blur", "edge", "score", "prediction", "(rows)"]
    hot = {cell.feature for cell in shown.cells if cell.alarmed}
    assert "contrast" in hot
    assert "blur" not in hot
    one = drift_history.histograms(fleet.ctx, MODEL, "site", "south", "contrast")
    for shares in (one.training, one.baseline, one.current):
        assert len(shares) == len(one.edges) + 2
        assert sum(shares) == pytest.approx(1)
    assert one.psi > 0.25
    assert one.hellinger > 0.3
    with pytest.raises(AbsentError, match="colour"):
        drift_history.histograms(fleet.ctx, MODEL, "site", "south", "colour")
    with pytest.raises(AbsentError):
        drift_history.drift_map(fleet.ctx, MODEL, "site", "moon")


def test_accuracy_before_and_after_comes_from_the_labels(fleet):
    fleet.run(60)
    since = fleet.clock()
    for name in ("cam-3", "cam-4"):
        fleet.stations[name].spread[:] = 0.1
    fleet.run(60)
    north, south = performance.performance(fleet.ctx, model=MODEL, since=since)
    assert (north.subject, south.subject) == ("north", "south")
    assert north.accuracy == 1.0
    assert north.rows == north.labelled > 1_000
    [one] = performance.performance(fleet.ctx, model=MODEL, device="cam-3", since=since)
    assert (one.scope, one.subject) == ("device", "cam-3")
    assert performance.performance(fleet.ctx, model=MODEL, site="moon") == []


def test_fleet_health_counts_devices_alerts_and_rows(fleet):
    fleet.run(60)
    fleet.stations["cam-4"].crash()
    fleet.run(5)
    health = performance.fleet_health(fleet.ctx)
    assert (health.devices, health.online) == (4, 3)
    assert health.releases == {f"{MODEL}@1": 4}
    assert health.rows_per_s == pytest.approx(120, rel=0.3)
    assert health.windows_per_min == pytest.approx(24, rel=0.3)


def test_the_ledger_misses_nothing_after_crashes_of_both_sides(fleet):
    fleet.stations["cam-1"].crash()
    fleet.run(15)
    fleet.stations["cam-1"].start()
    with fleet.controller_down():
        fleet.run(40)
    fleet.run(60)
    for name in SITES:
        [book] = ledger.ledgers(fleet.ctx, name)
        assert book.missing == 0
        assert book.windows >= 10
        rows = [w.rows for w in fleet.windows(name)]
        assert book.rows == sum(rows)
    with pytest.raises(AbsentError):
        ledger.ledgers(fleet.ctx, "unknown")


def test_monitoring_resumes_where_it_stopped_and_tests_nothing_twice(fleet):
    baseline(fleet)
    foul(fleet, "south")
    fleet.run(120, drifted(fleet))
    points = len(fleet.rows_of(drift_tables.drift_point))
    with fleet.ctx.store.write() as db:
        db.execute(update(tables.setting).values(value=0.0))
    fleet.run(1)
    found = fleet.rows_of(drift_tables.finding)
    assert len(found) == len({(f.scope, f.subject, f.feature, f.at) for f in found})
    assert len(fleet.rows_of(drift_tables.drift_point)) >= points


def test_lost_states_are_made_again_from_the_windows_since_and_nothing_counts_twice(
    fleet,
):
    fleet.engine.jobs = [job for job in fleet.engine.jobs if job.name != "drift"]
    fleet.run(200)
    foul(fleet, "south", contrast=1.5)
    fleet.run(100)

    def outcome(crashes):
        """Findings and states of the devices once every window was applied."""
        for table in (
            drift_tables.drift_state, drift_tables.drift_point, drift_tables.finding,
            tables.alert,
        ):  # fmt: skip
            with fleet.ctx.store.write() as db:
                db.execute(delete(table))
        with fleet.ctx.store.write() as db:
            db.execute(delete(tables.setting).where(tables.setting.c.name == POSITION))
        memory, more = drift_monitor.DriftMemory(64), True
        while more:
            more = drift_monitor.evaluate(fleet.ctx, memory)
            if crashes:
                memory = drift_monitor.DriftMemory(64)
        drift_monitor.save(fleet.ctx, memory)
        found = drift_history.list_findings(fleet.ctx)
        states = fleet.rows_of(drift_tables.drift_state)
        alerted = sum(one.findings for one in alerts.list_alerts(fleet.ctx))
        assert alerted == len(found)
        return (
            {(f.subject, f.feature, f.at) for f in found if f.scope == "device"},
            {one.subject for one in states if one.scope == "device"},
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift_monitor, "BATCH", 40)
        once, again = outcome(crashes=False), outcome(crashes=True)
    assert once == again
    assert {subject for subject, _, _ in once[0]} == {"cam-3", "cam-4"}


def test_windows_are_applied_while_few_states_fit_in_memory(fleet):
    fleet.run(200)
    memory = drift_monitor.DriftMemory(64)
    memory.states = drift_states.DriftStates(limit=1)
    with fleet.ctx.store.write() as db:
        db.execute(delete(drift_tables.drift_point))
        db.execute(delete(drift_tables.drift_state))
        db.execute(delete(tables.setting).where(tables.setting.c.name == POSITION))
    drift_monitor.evaluate_all(fleet.ctx, memory)
    drift_monitor.save(fleet.ctx, memory)
    assert len(memory.states) == 1
    windows = [w for w in fleet.windows("cam-3") if drift_monitor.usable(w)]
    points = [p for p in fleet.rows_of(drift_tables.drift_point) if p.subject == "cam-3"]
    assert max(p.windows for p in points) == len(points) == len(windows)


def add_dataset(fleet, version, label="good"):
    made = DatasetVersion(
        name="plates", version=version, sha256="0" * 64, size=1, rows=1, columns=[], label=label,
        site="station", split="", parents=[], how="uploaded", created_at=fleet.clock(),
        created_by="ana", sites={"north": 1, "south": 1},
    )  # fmt: skip
    with fleet.ctx.store.write() as db:
        columns = tables.dataset.c.keys()
        row = {name: value for name, value in msgspec.to_builtins(made).items() if name in columns}
        db.execute(insert(tables.dataset).values(**row))


def test_a_drift_alert_and_newer_labels_train_again_exactly_once(fleet):
    add_dataset(fleet, 1)
    models.set_policy(
        fleet.ctx, actor="ana", model=MODEL, retrain_on_drift=True, dataset="plates@1"
    )
    baseline(fleet)
    foul(fleet, "south")
    fleet.run(120, drifted(fleet))
    fleet.run(30)
    assert operations.list_operations(fleet.ctx) == []
    add_dataset(fleet, 2)
    add_dataset(fleet, 3, label="")  # unlabelled: nothing can be trained on it
    fleet.run(60)
    [asked] = operations.list_operations(fleet.ctx)
    [alert] = alerts.list_alerts(fleet.ctx)
    assert asked.params["trigger"] == f"alert:{alert.id}"
    assert asked.params["dataset"] == "plates@2"
    assert asked.created_by == "automation"


def test_a_release_of_a_script_is_trained_again_by_the_same_script(fleet):
    asked_for = {"task": "classification", "name": "fit", "values": {"depth": 3}}
    made_by = operations.enqueue(
        fleet.ctx, actor="ana", kind="train", subject=MODEL, params={"script": "ab" * 32}
    )
    with fleet.ctx.store.write() as db:
        db.execute(
            update(tables.release).values(
                operation=made_by.id, report={"estimator": "script", "params": asked_for}
            )
        )
        assert triggers.recipe_of(db, MODEL) == ("script", asked_for, "ab" * 32)


def test_without_the_policy_drift_starts_no_training(fleet):
    add_dataset(fleet, 1)
    baseline(fleet)
    foul(fleet, "south")
    fleet.run(120, drifted(fleet))
    add_dataset(fleet, 2)
    fleet.run(30)
    assert operations.list_operations(fleet.ctx) == []
    assert datasets.get_dataset(fleet.ctx, "plates").version == 2
