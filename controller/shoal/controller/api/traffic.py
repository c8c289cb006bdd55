"""Prometheus metrics in its text format (version 0.0.4): requests and fleet health."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping

from shoal.controller.monitoring.records import FleetHealth

#: Upper bounds of the duration histogram, seconds.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: Other methods are counted as one, to bound the labels.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})

Labels = tuple[tuple[str, str], ...]


class Traffic:
    """Number and duration of requests of this process by route, method and status."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Labels, int] = defaultdict(int)
        self._bins: dict[str, list[int]] = defaultdict(lambda: [0] * (len(BOUNDS) + 1))
        self._seconds: dict[str, float] = defaultdict(float)

    def add(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request. `route` is the declared path, which bounds the labels."""
        at = sum(seconds > bound for bound in BOUNDS)
        method = method if method in METHODS else "other"
        with self._lock:
            self._counts[("method", method), ("route", route), ("status", str(status))] += 1
            self._bins[route][at] += 1
            self._seconds[route] += seconds

    def text(self) -> str:
        """Metric families shoal_http_requests_total and shoal_http_request_seconds."""
        with self._lock:
            counts = dict(self._counts)
            bins = {route: list(found) for route, found in self._bins.items()}
            seconds = dict(self._seconds)
        return "".join([*_requests(counts), *_durations(bins, seconds)])


def fleet_text(health: FleetHealth) -> str:
    """Gauges of the fleet's health."""
    plain = {
        "devices": ("Enrolled devices", health.devices),
        "devices_online": ("Devices online", health.online),
        "devices_failing": ("Devices with an error", health.failing),
        "alerts_open": ("Open alerts", health.alerts),
        "rows_per_second": ("Rows given to models, per second", health.rows_per_s),
        "windows_per_minute": ("Telemetry windows received, per minute", health.windows_per_min),
        "rollouts_running": ("Rollouts that run", health.running_rollouts),
    }
    lines = [
        line
        for name, (title, value) in plain.items()
        for line in (*_family(f"shoal_{name}", "gauge", title), _line(f"shoal_{name}", (), value))
    ]
    lines += _family("shoal_release_devices", "gauge", "Devices that serve a release")
    for release, devices in sorted(health.releases.items()):
        lines.append(_line("shoal_release_devices", (("release", release),), devices))
    return "".join(lines)


def _requests(counts: Mapping[Labels, int]) -> Iterator[str]:
    yield from _family("shoal_http_requests_total", "counter", "Requests answered")
    for labels, count in sorted(counts.items()):
        yield _line("shoal_http_requests_total", labels, count)


def _durations(bins: Mapping[str, list[int]], seconds: Mapping[str, float]) -> Iterator[str]:
    name = "shoal_http_request_seconds"
    yield from _family(name, "histogram", "Time to answer")
    for route, found in sorted(bins.items()):
        total = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), found, strict=True):
            total += count
            yield _line(f"{name}_bucket", (("route", route), ("le", bound)), total)
        yield _line(f"{name}_sum", (("route", route),), round(seconds[route], 6))
        yield _line(f"{name}_count", (("route", route),), total)


def _family(name: str, kind: str, title: str) -> tuple[str, str]:
    return f"# HELP {name} {title}.\n", f"# TYPE {name} {kind}\n"


def _line(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels)
    return f"{name}{{{inside}}} {value}\n" if inside else f"{name} {value}\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
