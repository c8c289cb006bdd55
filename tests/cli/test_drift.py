"""`shoal drift` against the real API; the engine's part is done by hand."""

import pytest

from cli.conftest import Cli
from shoal.cli import drift
from shoal.controller.monitoring import apply_baseline_changes, drift_monitor
from shoal.controller.store.drift_tables import drift_baseline
from shoal.controller.store.tables import device
from watched_models import watched


def test_baselines_are_listed_shown_frozen_and_reset(
    shoal: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = shoal.controller.ctx
    model = watched(ctx, 20)
    listed = shoal.json("drift", "list", model, "--site", "s3")
    assert [one["subject"] for one in listed] == ["d00003", "d00013", "s3"]
    assert shoal("drift", "reset", model).exit_code == 2
    assert "use --device, or --site, or --all" in shoal("drift", "reset", model).stderr

    monkeypatch.setattr(drift, "WAIT_S", 0.01)
    waits = shoal("drift", "freeze", model, "--site", "s3", "--yes")
    assert waits.exit_code != 0
    assert f"shoal drift changes {model}" in waits.stderr
    apply_baseline_changes.apply_all(ctx, drift_monitor.DriftMemory(64))
    [change] = shoal.json("drift", "changes", model)
    assert (change["action"], change["changed"]) == ("freeze", 3)
    assert "site s3" in shoal("drift", "changes", model).stdout
    assert len(shoal.json("drift", "list", model, "--state", "frozen")) == 3
    shown = shoal("drift", "show", model, "d00003")
    assert shown.exit_code == 0
    assert "x7" in shown.stdout
    assert "frozen" in shown.stdout
    assert "none of 20 devices drifts" in shoal("drift", "explain", model).stdout
    with ctx.store.write() as db:
        moved = (drift_baseline.c.site > "s5") & (drift_baseline.c.scope == "device")
        db.execute(drift_baseline.update().where(moved).values(drifting=["x1"]))
        twins = device.c.site > "s5"
        db.execute(device.update().where(twins).values(line="7"))
    said = shoal("drift", "explain", model, "--feature", "x1").stdout
    assert "8 of 20 devices drift" in said
    assert "8 of 8 with line 7, 0 of 12 others" in said
    moon = shoal("drift", "show", model, "moon")
    assert f"shoal drift list {model}" in moon.stderr
