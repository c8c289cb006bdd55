"""Step 3: a rollout, canary stage first; and what the later steps need of one."""

from collections.abc import Callable

from demo.world import World
from shoal.cli.api import JsonObject, at

_STAGES = [
    {"name": "canary", "select": {"ring": "canary"}, "min_executed": 2},
    {"name": "everyone", "select": {}},
]


def roll_out(world: World) -> None:
    story = world.story
    with story.step(3, "Roll out: canary, gate, everyone"):
        started = start(world, world.good)
        finished(world, started)


def start(world: World, release: str) -> JsonObject:
    plan = {"release": release, "stages": _STAGES, "on_failure": "pause", "deadline_s": 300.0}
    started: JsonObject = world.api.post(at("rollouts"), plan)
    return started


def finished(
    world: World, started: JsonObject, meanwhile: Callable[[], object] = lambda: None
) -> JsonObject:
    """Wait for a rollout's good end, and tell each stage and device."""
    id_ = started["id"]

    def look() -> JsonObject | None:
        meanwhile()
        now = world.rollout(id_)
        bad = now["state"] in ("PAUSED", "STOPPED", "ROLLED_BACK", "FAILED")
        world.story.must(not bad, f"rollout of {now['release']} is {now['state']}: {now['reason']}")
        return now if now["state"] == "FINISHED" else None

    ended = world.story.until(
        f"rollout {id_} of {started['release']}", 120, look, lambda: states(world, id_)
    )
    for stage in ended["stages"]:
        took = stage["finished_at"] - stage["started_at"]
        world.story.tell(
            f"stage {stage['name']}: {stage['succeeded']} of {stage['devices']} devices "
            f"succeeded in {took:.1f} s; gate: {stage['verdict'] or stage['state']}"
        )
    _told_serving(world, ended["release"])
    return ended


def states(world: World, id_: str) -> str:
    """Where each device of a rollout is."""
    rollout = world.rollout(id_)
    devices = world.rollout_devices(id_).values()
    each = ", ".join(f"{d['device']} {d['state']} {d['cause']}".strip() for d in devices)
    return f"rollout {rollout['state']} {rollout['reason']}: {each}"


def _told_serving(world: World, release: str) -> None:
    """Every device serves the release, by its own inventory, with the variant that it chose."""
    names = [station.name for station in world.scenario.stations]
    world.story.until(
        f"every device says that it serves {release}", 30,
        lambda: all(world.serving(name) == release for name in names),
        lambda: ", ".join(f"{name} {world.serving(name)}" for name in names),
    )  # fmt: skip
    model = world.scenario.model
    chosen = [f"{name} {world.device(name)['variants'].get(model, '?')}" for name in names]
    world.story.tell(f"serving {release}: {', '.join(chosen)}")
