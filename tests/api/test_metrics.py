"""Numbers for Prometheus: true, and bounded whatever is asked for."""

import re

from api.controller_app import ControllerApp
from shoal.controller.api.metrics import HttpMetrics, fleet_text
from shoal.controller.monitoring.records import FleetHealth

LABEL = r'[a-z]+="(?:[^"\\\n]|\\.)*"'
LINE = re.compile(rf"[a-z_]+(?:{{{LABEL}(?:,{LABEL})*}})? [-+0-9.e]+")


def test_every_line_is_in_the_text_format(controller: ControllerApp) -> None:
    controller.get("/api/v1/devices")
    answer = controller.get("/metrics", "viewer")
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    for line in answer.text.splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or LINE.fullmatch(line), line
    assert answer.text.endswith("\n")


def test_what_is_asked_for_at_random_adds_no_lines(controller: ControllerApp) -> None:
    for number in range(20):
        controller.client.open(f"/random/{number}", method="GET")
        controller.client.open("/api/v1/devices", method=f"RANDOM{number}")
    text = controller.get("/metrics", "viewer").text
    assert "RANDOM" not in text
    assert "/random" not in text
    assert 'shoal_http_requests_total{method="other",route="none",status="405"} 20.0' in text


def test_the_histogram_is_cumulative_and_sums_up() -> None:
    metrics = HttpMetrics()
    for seconds in (0.001, 0.02, 0.02, 99.0):
        metrics.observe("/x", "GET", 200, seconds)
    text = metrics.text()
    assert 'shoal_http_request_seconds_bucket{le="0.005",route="/x"} 1.0' in text
    assert 'shoal_http_request_seconds_bucket{le="0.025",route="/x"} 3.0' in text
    assert 'shoal_http_request_seconds_bucket{le="+Inf",route="/x"} 4.0' in text
    assert 'shoal_http_request_seconds_count{route="/x"} 4.0' in text
    assert 'shoal_http_request_seconds_sum{route="/x"} 99.041' in text


def test_a_releases_name_cannot_break_out_of_its_label() -> None:
    health = FleetHealth(
        devices=1, online=1, failing=0, alerts=0, rows_per_s=0.5, windows_per_min=1.0,
        running_rollouts=0, releases={'a"} 1\nb{c="': 2},
    )  # fmt: skip
    line = fleet_text(health).splitlines()[-1]
    assert line == 'shoal_release_devices{release="a\\"} 1\\nb{c=\\""} 2.0'
