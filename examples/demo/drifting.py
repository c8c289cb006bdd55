"""Step 5: a site's input changes; drift is found there and only there; retraining mends it."""

from typing import NamedTuple

from demo import bad_releases, power_cuts, rolling_out, table
from demo.bad_releases import Bad
from demo.streaming import accuracy_by_site, enough
from demo.training import add_dataset, describe, publish, ref
from demo.world import World
from shoal.cli.api import JsonObject, at

#: A loss of accuracy below this is none: inputs may move without harm, on a user's own table.
_MATTERS = 0.05


class Course(NamedTuple):
    """Accuracy per site before, during and after; and bad releases, built meanwhile."""

    before: dict[str, float]
    during: dict[str, float]
    after: dict[str, float]
    bad: list[Bad]


def drift_and_mend(world: World, before: dict[str, float]) -> Course:
    story, scenario = world.story, world.scenario
    with story.step(5, f"Drift: {scenario.change}"):
        changed = world.now()
        since = _worsen(world)
        alerts = _alerts(world, changed)
        during = {site: _during(world, site, since) for site in sorted(scenario.drifting)}
        _only_there(world, alerts)
        release = _retrained(world)
        describe(world, release)
        world.good = publish(world, release)
        bad = bad_releases.build(world)  # while the rollout goes on: its checks come in step 6
        cuts = power_cuts.Cuts(world, ref(release))
        started = rolling_out.start(world, world.good)
        rolling_out.finished(world, started, lambda: cuts.look(started["id"]))
        cuts.done()
        after = accuracy_by_site(world, world.now(), world.good)
        for site in sorted(scenario.drifting):
            _course(world, site, before[site], during[site], after[site])
        _alerts_close(world, alerts)
    return Course(before, during, after, bad)


def _worsen(world: World) -> float:
    """Take each step of the change; when the last of them was in force everywhere."""
    began = world.now()
    for number, step in enumerate(world.scenario.worse, 1):
        began = world.now()
        for station, rows in step.items():
            table.write(rows, world.csv(station))
        for site in sorted(world.scenario.drifting):
            seen = enough(world, site, began + 1.0)
            world.story.tell(
                f"change {number} of {len(world.scenario.worse)}: accuracy at {site} "
                f"{seen['accuracy']:.3f}"
            )
    return began + 1.0


def _alerts(world: World, since: float) -> list[JsonObject]:
    """One open drift alert for each drifting site."""
    wanted = world.scenario.drifting

    def look() -> list[JsonObject] | None:
        found = _drift_alerts(world)
        return found if wanted <= {alert["site"] for alert in found} else None

    found = world.story.until(
        f"drift alerts at {', '.join(sorted(wanted))}", 60, look, lambda: _drift_alerts(world)
    )
    for alert in found:
        world.story.tell(
            f"alert {alert['id']}, {alert['opened_at'] - since:.1f} s after the first change: "
            f"{alert['title']}",
            **{f"drift at {alert['site']} found after s": round(alert["opened_at"] - since, 1)},
        )
    return found


def _drift_alerts(world: World) -> list[JsonObject]:
    return [a for a in world.api.items(at("alerts"), state="open") if a["kind"] == "drift"]


def _only_there(world: World, alerts: list[JsonObject]) -> None:
    """No alert and no finding at any other site, or device of another site."""
    wanted = world.scenario.drifting
    elsewhere = {a["site"] for a in _drift_alerts(world)} - wanted
    world.story.must(not elsewhere, f"drift was also alarmed at {', '.join(elsewhere)}")
    there = {s.name for s in world.scenario.stations if s.site in wanted} | wanted
    everywhere = {t for s in world.scenario.stations for t in (s.name, s.site)}
    stray = [subject for subject in sorted(everywhere - there) if _findings(world, subject)]
    world.story.must(not stray, f"drift was also found at {', '.join(stray)}")
    findings = [f for subject in sorted(there) for f in _findings(world, subject)]
    features = len({f["feature"] for f in findings})
    world.story.tell(
        f"{len(findings)} findings on {features} features at {', '.join(sorted(there))}; "
        f"none at {', '.join(sorted(everywhere - there))}",
        findings=len(findings),
    )


def _findings(world: World, subject: str) -> list[JsonObject]:
    """The newest findings about a device or site."""
    model = world.scenario.model
    return list(world.api.items(at("findings"), model=model, subject=subject, limit=500))


def _during(world: World, site: str, since: float) -> float:
    seen = enough(world, site, since)
    return float(seen["accuracy"])


def _retrained(world: World) -> JsonObject:
    """Add the newly labelled rows; the controller's own policy does the rest."""
    scenario, story = world.scenario, world.story
    data = add_dataset(world, scenario.relabelled, "v2", parents=f"{scenario.dataset}@1")
    story.tell(f"newly labelled rows registered: {ref(data)}, {data['rows']} rows, from @1")

    def started() -> JsonObject | None:
        found = world.api.items(at("operations"))
        return next((o for o in found if o["params"].get("dataset") == ref(data)), None)

    operation = story.until("the controller starts to retrain by itself", 60, started)
    ended = world.finish(operation)
    release: JsonObject = world.api.get(at("releases", ended["result"]["release"]))
    story.must(
        release["trigger"].startswith("alert:"),
        f"{ref(release)} was not triggered by an alert but by {release['trigger']!r}",
    )
    took = ended["finished_at"] - ended["started_at"]
    story.tell(
        f"retrained by policy ({release['trigger']}) in {took:.1f} s: {ref(release)}, "
        f"state {release['state']}",
        retrain_seconds=round(took, 1),
    )
    return release


def _course(world: World, site: str, before: float, during: float, after: float) -> None:
    world.story.tell(
        f"accuracy at {site}: before [green]{before:.3f}[/green], "
        f"during [red]{during:.3f}[/red], after [green]{after:.3f}[/green]",
        **{f"accuracy at {site}": [round(v, 4) for v in (before, during, after)]},
    )
    world.story.must(
        after - during > 0.5 * (before - during) or during > before - _MATTERS,
        f"retraining did not mend {site}: {before:.3f} → {during:.3f} → {after:.3f}",
    )


def _alerts_close(world: World, alerts: list[JsonObject]) -> None:
    """The alert's cause is gone with the release that it was about."""
    world.story.until(
        "drift alerts close by themselves", 60, lambda: not _drift_alerts(world),
        lambda: [a["title"] for a in _drift_alerts(world)],
    )  # fmt: skip
    numbers = ", ".join(str(alert["id"]) for alert in alerts)
    world.story.tell(f"alert {numbers} closed by itself: its release is replaced there")
