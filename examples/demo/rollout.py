"""Step 3: a rollout, canary stage first; also used by later steps."""

from collections.abc import Callable

from demo.context import Context
from shoal.cli.api import JsonObject, at

_STAGES = [
    {"name": "canary", "select": {"ring": "canary"}, "min_executed": 2},
    {"name": "everyone", "select": {}},
]


def roll_out(context: Context) -> None:
    progress = context.progress
    with progress.step(3, "Roll out: canary, gate, everyone"):
        started = start(context, context.good)
        finished(context, started)


def start(context: Context, release: str) -> JsonObject:
    plan = {"release": release, "stages": _STAGES, "on_failure": "pause", "deadline_s": 300.0}
    started: JsonObject = context.api.post(at("rollouts"), plan)
    return started


def finished(
    context: Context, started: JsonObject, meanwhile: Callable[[], object] = lambda: None
) -> JsonObject:
    """Wait until a rollout succeeds; report each stage and device."""
    id_ = started["id"]

    def look() -> JsonObject | None:
        meanwhile()
        now = context.rollout(id_)
        bad = now["state"] in ("PAUSED", "STOPPED", "ROLLED_BACK", "FAILED")
        context.progress.check(
            not bad, f"rollout of {now['release']} is {now['state']}: {now['reason']}"
        )
        return now if now["state"] == "FINISHED" else None

    ended = context.progress.wait_for(
        f"rollout {id_} of {started['release']}", 120, look, lambda: states(context, id_)
    )
    for stage in ended["stages"]:
        took = stage["finished_at"] - stage["started_at"]
        context.progress.report(
            f"stage {stage['name']}: {stage['succeeded']} of {stage['devices']} devices "
            f"succeeded in {took:.1f} s; gate: {stage['verdict'] or stage['state']}"
        )
    _report_serving(context, ended["release"])
    return ended


def states(context: Context, id_: str) -> str:
    """State of each device of a rollout."""
    rollout = context.rollout(id_)
    devices = context.rollout_devices(id_).values()
    each = ", ".join(f"{d['device']} {d['state']} {d['cause']}".strip() for d in devices)
    return f"rollout {rollout['state']} {rollout['reason']}: {each}"


def _report_serving(context: Context, release: str) -> None:
    """Wait until every device reports the release; report the chosen variants."""
    names = [station.name for station in context.scenario.stations]
    context.progress.wait_for(
        f"every device serves {release}", 30,
        lambda: all(context.serving(name) == release for name in names),
        lambda: ", ".join(f"{name} {context.serving(name)}" for name in names),
    )  # fmt: skip
    model = context.scenario.model
    chosen = [f"{name} {context.device(name)['variants'].get(model, '?')}" for name in names]
    context.progress.report(f"serving {release}: {', '.join(chosen)}")
