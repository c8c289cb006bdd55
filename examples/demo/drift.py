"""Step 5: a site's input changes; drift is detected there only; retraining restores accuracy."""

from typing import NamedTuple

from demo import bad_releases, power_cuts, rollout, table
from demo.bad_releases import BadRelease
from demo.context import Context
from demo.streaming import accuracy_by_site, labelled_performance
from demo.training import add_dataset, describe, publish, ref
from shoal.cli.api import JsonObject, at

#: A smaller loss of accuracy is ignored: on a user's table, drift may be harmless.
_SMALL_LOSS = 0.05


class DriftResult(NamedTuple):
    """Accuracy per site before, during and after the drift; and bad releases, built meanwhile."""

    before: dict[str, float]
    during: dict[str, float]
    after: dict[str, float]
    bad: list[BadRelease]


def drift_and_retrain(context: Context, before: dict[str, float]) -> DriftResult:
    progress, scenario = context.progress, context.scenario
    with progress.step(5, f"Drift: {scenario.change}"):
        changed = context.now()
        since = _apply_change(context)
        alerts = _alerts(context, changed)
        during = {site: _during(context, site, since) for site in sorted(scenario.drifting)}
        _check_no_other_site(context, alerts)
        release = _retrained(context)
        describe(context, release)
        context.good = publish(context, release)
        bad = bad_releases.build(context)  # while the rollout goes on: its checks come in step 6
        cuts = power_cuts.PowerCuts(context, ref(release))
        started = rollout.start(context, context.good)
        rollout.finished(context, started, lambda: cuts.look(started["id"]))
        cuts.done()
        after = accuracy_by_site(context, context.now(), context.good)
        for site in sorted(scenario.drifting):
            _report_recovery(context, site, before[site], during[site], after[site])
        _alerts_close(context, alerts)
    return DriftResult(before, during, after, bad)


def _apply_change(context: Context) -> float:
    """Apply each step of the change; return when the last one was effective everywhere."""
    began = context.now()
    for number, step in enumerate(context.scenario.change_steps, 1):
        began = context.now()
        for station, rows in step.items():
            table.write(rows, context.csv(station))
        for site in sorted(context.scenario.drifting):
            seen = labelled_performance(context, site, began + 1.0)
            context.progress.report(
                f"change {number} of {len(context.scenario.change_steps)}: accuracy at {site} "
                f"{seen['accuracy']:.3f}"
            )
    return began + 1.0


def _alerts(context: Context, since: float) -> list[JsonObject]:
    """One open drift alert for each drifting site."""
    wanted = context.scenario.drifting

    def look() -> list[JsonObject] | None:
        found = _drift_alerts(context)
        return found if wanted <= {alert["site"] for alert in found} else None

    found = context.progress.wait_for(
        f"drift alerts at {', '.join(sorted(wanted))}", 60, look, lambda: _drift_alerts(context)
    )
    for alert in found:
        context.progress.report(
            f"alert {alert['id']}, {alert['opened_at'] - since:.1f} s after the first change: "
            f"{alert['title']}",
            **{f"drift at {alert['site']} found after s": round(alert["opened_at"] - since, 1)},
        )
    return found


def _drift_alerts(context: Context) -> list[JsonObject]:
    return [a for a in context.api.items(at("alerts"), state="open") if a["kind"] == "drift"]


def _check_no_other_site(context: Context, alerts: list[JsonObject]) -> None:
    """Check that no other site, or device of one, has an alert or a finding."""
    wanted = context.scenario.drifting
    elsewhere = {a["site"] for a in _drift_alerts(context)} - wanted
    context.progress.check(not elsewhere, f"drift was also alarmed at {', '.join(elsewhere)}")
    there = {s.name for s in context.scenario.stations if s.site in wanted} | wanted
    everywhere = {t for s in context.scenario.stations for t in (s.name, s.site)}
    stray = [subject for subject in sorted(everywhere - there) if _findings(context, subject)]
    context.progress.check(not stray, f"drift was also found at {', '.join(stray)}")
    findings = [f for subject in sorted(there) for f in _findings(context, subject)]
    features = len({f["feature"] for f in findings})
    context.progress.report(
        f"{len(findings)} findings on {features} features at {', '.join(sorted(there))}; "
        f"none at {', '.join(sorted(everywhere - there))}",
        findings=len(findings),
    )


def _findings(context: Context, subject: str) -> list[JsonObject]:
    """The newest findings about a device or site."""
    model = context.scenario.model
    return list(context.api.items(at("findings"), model=model, subject=subject, limit=500))


def _during(context: Context, site: str, since: float) -> float:
    seen = labelled_performance(context, site, since)
    return float(seen["accuracy"])


def _retrained(context: Context) -> JsonObject:
    """Add the newly labelled rows; the controller's policy starts the training."""
    scenario, progress = context.scenario, context.progress
    data = add_dataset(context, scenario.relabelled, "v2", parents=f"{scenario.dataset}@1")
    progress.report(f"newly labelled rows registered: {ref(data)}, {data['rows']} rows, from @1")

    def started() -> JsonObject | None:
        found = context.api.items(at("operations"))
        return next((o for o in found if o["params"].get("dataset") == ref(data)), None)

    operation = progress.wait_for("the controller starts to retrain", 60, started)
    ended = context.finish(operation)
    release: JsonObject = context.api.get(at("releases", ended["result"]["release"]))
    progress.check(
        release["trigger"].startswith("alert:"),
        f"{ref(release)} was not triggered by an alert but by {release['trigger']!r}",
    )
    took = ended["finished_at"] - ended["started_at"]
    progress.report(
        f"retrained by policy ({release['trigger']}) in {took:.1f} s: {ref(release)}, "
        f"state {release['state']}",
        retrain_seconds=round(took, 1),
    )
    return release


def _report_recovery(
    context: Context, site: str, before: float, during: float, after: float
) -> None:
    context.progress.report(
        f"accuracy at {site}: before [green]{before:.3f}[/green], "
        f"during [red]{during:.3f}[/red], after [green]{after:.3f}[/green]",
        **{f"accuracy at {site}": [round(v, 4) for v in (before, during, after)]},
    )
    context.progress.check(
        after - during > 0.5 * (before - during) or during > before - _SMALL_LOSS,
        f"retraining did not restore accuracy at {site}: {before:.3f} → {during:.3f} → {after:.3f}",
    )


def _alerts_close(context: Context, alerts: list[JsonObject]) -> None:
    """Wait until the alerts close: their release was replaced."""
    context.progress.wait_for(
        "drift alerts close by themselves", 60, lambda: not _drift_alerts(context),
        lambda: [a["title"] for a in _drift_alerts(context)],
    )  # fmt: skip
    numbers = ", ".join(str(alert["id"]) for alert in alerts)
    context.progress.report(f"alert {numbers} closed by itself: its release is replaced there")
