"""Step 2: data in, a signed release out."""

from pathlib import Path

from demo import table
from demo.context import Context
from demo.table import Table
from shoal.cli.api import JsonObject, at
from shoal.cli.render import size


def train(context: Context) -> None:
    scenario, progress = context.scenario, context.progress
    with progress.step(2, "Train, validate, quantize, sign"):
        data = add_dataset(context, scenario.registered, "v1", parents="")
        progress.report(
            f"dataset {ref(data)}: {data['rows']} rows, {len(scenario.features)} features, "
            f"sha256 {data['sha256'][:12]}…",
            dataset_rows=data["rows"],
        )
        request = {"dataset": ref(data), "estimator": scenario.estimator}
        operation = context.finish(context.api.post(at("models", scenario.model, "train"), request))
        release = context.api.get(at("releases", operation["result"]["release"]))
        describe(context, release)
        policy = {"retrain_on_drift": True, "dataset": scenario.dataset}
        context.api.put(at("models", scenario.model, "policy"), policy)
        context.good = publish(context, release)


def add_dataset(context: Context, rows: Table, name: str, *, parents: str) -> JsonObject:
    """Register a table as the next version of the scenario's dataset."""
    scenario = context.scenario
    path = _written(context, rows, name)
    fields = {
        "name": scenario.dataset, "label": scenario.label, "site": scenario.site,
        "split": scenario.split, "parents": parents,
    }  # fmt: skip
    with path.open("rb") as file:
        made: JsonObject = context.api.upload(at("datasets"), {"file": (path.name, file)}, fields)
    return made


def _written(context: Context, rows: Table, name: str) -> Path:
    path = context.folder / "data" / f"{context.scenario.dataset}-{name}.csv"
    path.parent.mkdir(exist_ok=True)
    table.write(rows, path)
    return path


def describe(context: Context, release: JsonObject) -> None:
    """Report a release's metrics per variant, and the results of the gates."""
    metric, value = _main(release["metrics"])
    context.progress.report(
        f"{ref(release)} validated on held-out data: {metric} {value:.3f}",
        **{f"{ref(release)} {metric}": value},
    )
    for variant in release["variants"]:
        if variant["dropped"]:
            context.progress.report(f"  {variant['name']:<16} left out: {variant['dropped']}")
            continue
        name, value = _main(variant["metrics"])
        context.progress.report(
            f"  {variant['name']:<16} {name} {value:.3f}, cosine to fp32 {variant['cosine']:.5f}, "
            f"{size(variant['size'])}"
        )
    refused = [v for v in release["verdicts"] if not v["passed"]]
    passed = len(release["verdicts"]) - len(refused)
    context.progress.report(
        f"gates per profile and variant: {passed} passed, {len(refused)} refused"
    )


def publish(context: Context, release: JsonObject, override: str = "") -> str:
    """Sign a release for the stable ring; return its name."""
    made = context.api.post(at("releases", ref(release), "publish"), {"override": override})
    context.progress.check(
        made["state"] == "released", f"{ref(made)} is {made['state']}, not released"
    )
    keys = ", ".join(f"{s['role']} key {s['key'][:8]}…" for s in made["signatures"])
    with_ = f" [yellow](override: {override})[/yellow]" if override else ""
    context.progress.report(f"{ref(made)} signed: {keys}{with_}")
    return ref(made)


def ref(thing: JsonObject) -> str:
    """ "name@version" of a dataset or release."""
    return f"{thing.get('model') or thing['name']}@{thing['version']}"


def _main(metrics: dict[str, float]) -> tuple[str, float]:
    for name in ("accuracy", "balanced_accuracy"):
        if name in metrics:
            return name, metrics[name]
    return next(iter(metrics.items()), ("metric", float("nan")))
