"""Step 4: stations stream, windows arrive, baselines fill; accuracy as it is while all is well."""

from demo.setting_up import BASELINE_WINDOWS
from demo.world import World
from shoal.cli.api import JsonObject, at

_ROWS = 100


def stream(world: World) -> dict[str, float]:
    """Accuracy per site, before anything changes."""
    story = world.story
    with story.step(4, "Stream: windows, sketches, baselines"):
        since = world.now()
        subjects = _baselines(world)
        story.tell(
            f"{len(subjects)} baselines of {BASELINE_WINDOWS} windows: "
            f"{', '.join(sorted(subjects))}"
        )
        health = world.api.get(at("fleet"))
        story.tell(
            f"{health['devices']} devices, {health['online']} online, "
            f"{health['rows_per_s']:.0f} rows/s, {health['windows_per_min']:.0f} windows/min",
            rows_per_s=round(health["rows_per_s"], 1),
        )
        before = accuracy_by_site(world, since)
        quiet = list(world.api.items(at("alerts"), state="open"))
        story.must(not quiet, f"an alert before anything changed: {[a['title'] for a in quiet]}")
        story.tell("no alert while nothing changes")
    return before


def accuracy_by_site(world: World, since: float, release: str = "") -> dict[str, float]:
    """Accuracy of each site from labels joined on the devices; waits for enough of them."""
    found = {}
    for site in dict.fromkeys(station.site for station in world.scenario.stations):
        seen = enough(world, site, since, release)
        found[site] = float(seen["accuracy"])
        p50 = seen["p50_us"]
        world.story.tell(
            f"accuracy at {site}: [bold]{found[site]:.3f}[/bold] over {seen['labelled']} labelled "
            f"rows" + (f", p50 {p50:.0f} µs" if p50 is not None else "")
        )
    return found


def enough(world: World, site: str, since: float, release: str = "") -> JsonObject:
    """Performance of a site, once it stands on _ROWS labelled rows of every station."""

    def look() -> JsonObject | None:
        seen = world.accuracy(site=site, since=since, release=release)
        return seen if seen["labelled"] >= 2 * _ROWS else None

    return world.story.until(
        f"labelled rows of {site}", 45, look,
        lambda: str(world.accuracy(site=site, since=since, release=release)),
    )  # fmt: skip


def _baselines(world: World) -> set[str]:
    """Wait until every device and site has its baseline; their names."""
    model, stations = world.scenario.model, world.scenario.stations
    wanted = [("device", s.name) for s in stations]
    wanted += [("site", site) for site in dict.fromkeys(s.site for s in stations)]

    def waiting() -> list[str]:
        seen = (
            (scope, subject, world.api.get(at("drift"), model=model, scope=scope, subject=subject))
            for scope, subject in wanted
        )
        return [
            f"{scope} {subject} {m['baseline_windows']}/{m['baseline_needed']}"
            for scope, subject, m in seen
            if not m["ready"]
        ]

    world.story.until("baselines", 90, lambda: not waiting(), waiting)
    return {subject for _, subject in wanted}
