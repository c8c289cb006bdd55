"""Metrics for Prometheus, in its text format (version 0.0.4)."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from shoal.controller.monitoring.records import FleetHealth

#: Upper bounds of the duration histogram, seconds.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: Any other method counts as "other": the number of label values stays bounded.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class HttpMetrics:
    """Requests of this process by route, method and status, and their durations.

    engine   text of the engine's metrics, which its own process measures
    """

    def __init__(self, engine: Callable[[], str] = str) -> None:
        self._engine = engine
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "shoal_http_requests", "Requests answered.", ["method", "route", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "shoal_http_request_seconds", "Time to answer.", ["route"], buckets=BOUNDS,
            registry=self._registry,
        )  # fmt: skip

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request. `route` is the declared path, never the requested one: bounded."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> str:
        """Metric families shoal_http_requests_total and shoal_http_request_seconds, and those of
        the engine."""
        return generate_latest(self._registry).decode() + self._engine()


def fleet_text(health: FleetHealth) -> str:
    """Gauges of the fleet's health."""
    gauges = {
        "devices": ("Enrolled devices.", health.devices),
        "devices_online": ("Devices online.", health.online),
        "devices_failing": ("Devices with an error.", health.failing),
        "alerts_open": ("Open alerts.", health.alerts),
        "rows_per_second": ("Rows given to models, per second.", health.rows_per_s),
        "windows_per_minute": ("Telemetry windows received, per minute.", health.windows_per_min),
        "rollouts_running": ("Rollouts that run.", health.running_rollouts),
    }
    registry = CollectorRegistry()
    for name, (title, value) in gauges.items():
        Gauge(f"shoal_{name}", title, registry=registry).set(value)
    title = "Devices that serve a release."
    devices_of = Gauge("shoal_release_devices", title, ["release"], registry=registry)
    for release, devices in sorted(health.releases.items()):
        devices_of.labels(release).set(devices)
    return generate_latest(registry).decode()
