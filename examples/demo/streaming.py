"""Step 4: stations stream, windows arrive, baselines fill; accuracy without drift."""

from demo.context import Context
from demo.setup_fleet import BASELINE_WINDOWS
from shoal.cli.api import JsonObject, at

_ROWS = 100


def stream(context: Context) -> dict[str, float]:
    """Accuracy per site, before anything changes."""
    progress = context.progress
    with progress.step(4, "Stream: windows, sketches, baselines"):
        since = context.now()
        subjects = _baselines(context)
        progress.report(
            f"{len(subjects)} baselines of {BASELINE_WINDOWS} windows: "
            f"{', '.join(sorted(subjects))}"
        )
        health = context.api.get(at("fleet"))
        progress.report(
            f"{health['devices']} devices, {health['online']} online, "
            f"{health['rows_per_s']:.0f} rows/s, {health['windows_per_min']:.0f} windows/min",
            rows_per_s=round(health["rows_per_s"], 1),
        )
        before = accuracy_by_site(context, since)
        alerts = list(context.api.items(at("alerts"), state="open"))
        progress.check(
            not alerts, f"an alert before anything changed: {[a['title'] for a in alerts]}"
        )
        progress.report("no alert while nothing changes")
    return before


def accuracy_by_site(context: Context, since: float, release: str = "") -> dict[str, float]:
    """Accuracy of each site from labels joined on the devices, with enough labelled rows."""
    found = {}
    for site in dict.fromkeys(station.site for station in context.scenario.stations):
        seen = labelled_performance(context, site, since, release)
        found[site] = float(seen["accuracy"])
        p50 = seen["p50_us"]
        context.progress.report(
            f"accuracy at {site}: [bold]{found[site]:.3f}[/bold] over {seen['labelled']} labelled "
            f"rows" + (f", median p50 {p50:.0f} µs" if p50 is not None else "")
        )
    return found


def labelled_performance(
    context: Context, site: str, since: float, release: str = ""
) -> JsonObject:
    """Performance of a site, once it has _ROWS labelled rows per station."""

    def look() -> JsonObject | None:
        seen = context.accuracy(site=site, since=since, release=release)
        return seen if seen["labelled"] >= 2 * _ROWS else None

    return context.progress.wait_for(
        f"labelled rows of {site}", 45, look,
        lambda: str(context.accuracy(site=site, since=since, release=release)),
    )  # fmt: skip


def _baselines(context: Context) -> set[str]:
    """Wait until every device and site has its baseline; return their names."""
    model, stations = context.scenario.model, context.scenario.stations
    wanted = [("device", s.name) for s in stations]
    wanted += [("site", site) for site in dict.fromkeys(s.site for s in stations)]

    def waiting() -> list[str]:
        seen = (
            (
                scope,
                subject,
                context.api.get(at("drift"), model=model, scope=scope, subject=subject),
            )
            for scope, subject in wanted
        )
        return [
            f"{scope} {subject} {m['baseline_windows']}/{m['baseline_needed']}"
            for scope, subject, m in seen
            if not m["ready"]
        ]

    context.progress.wait_for("baselines", 90, lambda: not waiting(), waiting)
    return {subject for _, subject in wanted}
