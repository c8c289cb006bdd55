"""The alert rules for Prometheus: tested by promtool, and about numbers that there are."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fakes import memory_folder
from fleet import Fleet
from shoal.controller.api.metrics import HttpMetrics, fleet_text
from shoal.controller.engine_metrics import StoredMetrics
from shoal.controller.host.io.metrics_file import read_metrics
from shoal.controller.monitoring import performance

RULES = Path(__file__).parents[3] / "deploy/prometheus/shoal.rules.yml"
PAGE = Path(__file__).parents[3] / "docs/monitoring-the-controller.md"


def promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt install prometheus")
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, cwd=RULES.parent, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", RULES.name)


def test_the_rules_fire_when_they_should_and_not_before() -> None:
    promtool("test", "rules", "shoal.test.yml")


def families() -> set[str]:
    """Names of all series that a controller serves."""
    with memory_folder() as folder:
        fleet = Fleet(folder)
        fleet.station("cam-1", ring="canary")
        fleet.run(5)
        StoredMetrics(fleet.engine._metrics).measure(fleet.ctx)
        fleet.engine.write_metrics()
        http = HttpMetrics(lambda: read_metrics(fleet.ctx.folder))
        http.observe("/x", "GET", 200, 0.1)
        text = fleet_text(performance.fleet_health(fleet.ctx)) + http.text()
    lines = re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
    return {name for name, _ in lines}


def test_every_number_in_the_rules_and_on_the_page_is_one_that_there_is() -> None:
    known = families()
    for path in (RULES, PAGE):
        named = set(re.findall(r"\bshoal_[a-z_]+", path.read_text()))
        assert named, path
        assert named <= known, (path.name, named - known)


def test_the_page_explains_every_alert() -> None:
    alerts = re.findall(r"alert: (\w+)", RULES.read_text())
    assert len(alerts) >= 12
    page = PAGE.read_text()
    assert [name for name in alerts if f"`{name}`" not in page] == []
