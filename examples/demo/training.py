"""Step 2: data in, a signed release out."""

from pathlib import Path

from demo import table
from demo.table import Table
from demo.world import World
from shoal.cli.api import JsonObject, at
from shoal.cli.render import size


def train(world: World) -> None:
    scenario, story = world.scenario, world.story
    with story.step(2, "Train, validate, quantize, sign"):
        data = add_dataset(world, scenario.registered, "v1", parents="")
        story.tell(
            f"dataset {ref(data)}: {data['rows']} rows, {len(scenario.features)} features, "
            f"sha256 {data['sha256'][:12]}…",
            dataset_rows=data["rows"],
        )
        asked = {"dataset": ref(data), "estimator": scenario.estimator}
        operation = world.finish(world.api.post(at("models", scenario.model, "train"), asked))
        release = world.api.get(at("releases", operation["result"]["release"]))
        describe(world, release)
        policy = {"retrain_on_drift": True, "dataset": scenario.dataset}
        world.api.put(at("models", scenario.model, "policy"), policy)
        world.good = publish(world, release)


def add_dataset(world: World, rows: Table, name: str, *, parents: str) -> JsonObject:
    """Register a table as the next version of the scenario's dataset."""
    scenario = world.scenario
    path = _written(world, rows, name)
    fields = {
        "name": scenario.dataset, "label": scenario.label, "site": scenario.site,
        "split": scenario.split, "parents": parents,
    }  # fmt: skip
    with path.open("rb") as file:
        made: JsonObject = world.api.upload(at("datasets"), {"file": (path.name, file)}, fields)
    return made


def _written(world: World, rows: Table, name: str) -> Path:
    path = world.folder / "data" / f"{world.scenario.dataset}-{name}.csv"
    path.parent.mkdir(exist_ok=True)
    table.write(rows, path)
    return path


def describe(world: World, release: JsonObject) -> None:
    """Tell a release's quality: per variant, and what the gates said."""
    metric, value = _main(release["metrics"])
    world.story.tell(
        f"{ref(release)} validated on held-back data: {metric} {value:.3f}",
        **{f"{ref(release)} {metric}": value},
    )
    for variant in release["variants"]:
        name, value = _main(variant["metrics"])
        world.story.tell(
            f"  {variant['name']:<16} {name} {value:.3f}, cosine to fp32 {variant['cosine']:.5f}, "
            f"{size(variant['size'])}"
        )
    refused = [v for v in release["verdicts"] if not v["passed"]]
    passed = len(release["verdicts"]) - len(refused)
    world.story.tell(f"gates per profile and variant: {passed} passed, {len(refused)} refused")


def publish(world: World, release: JsonObject, override: str = "") -> str:
    """Sign it for the stable ring; its name."""
    made = world.api.post(at("releases", ref(release), "publish"), {"override": override})
    world.story.must(made["state"] == "released", f"{ref(made)} is {made['state']}, not released")
    keys = ", ".join(f"{s['role']} key {s['key'][:8]}…" for s in made["signatures"])
    with_ = f" [yellow](override: {override})[/yellow]" if override else ""
    world.story.tell(f"{ref(made)} signed: {keys}{with_}")
    return ref(made)


def ref(thing: JsonObject) -> str:
    """ "name@version" of a dataset or release."""
    return f"{thing.get('model') or thing['name']}@{thing['version']}"


def _main(metrics: dict[str, float]) -> tuple[str, float]:
    for name in ("accuracy", "balanced_accuracy"):
        if name in metrics:
            return name, metrics[name]
    return next(iter(metrics.items()), ("metric", float("nan")))
