"""Step 6: two releases that load but misbehave on the device; neither gets past the canaries."""

from pathlib import Path
from typing import NamedTuple

from demo import graphs, rolling_out
from demo.training import publish, ref
from demo.world import World
from shoal.cli.api import JsonObject, at

#: The only profile that runs this variant: a release can be bad there and nowhere else.
_VARIANT, _PROFILE = "int8-u8s8-pc-rr", "x86-avx2"
_QUANTIZED = ("int8-u8s8-pc", "int8-u8s8-pc-rr", "int8-s8s8-pc")
#: Three times the budget of x86-vnni, half as much again as that of x86-avx2.
_SLOW_S = 0.060


class Bad(NamedTuple):
    """A release that must not reach the fleet.

    what       what is wrong with it
    causes     slugs of which one must be why it is refused on the device
    override   reason to publish it although the controller's own gate refused it
    """

    what: str
    operation: JsonObject
    causes: frozenset[str]
    override: str


def build(world: World) -> list[Bad]:
    """Start to import both. They wait for their turn and are built while the fleet goes on."""
    model = graphs.fit(world.scenario)
    folder = world.folder / "models"
    folder.mkdir(exist_ok=True)
    good = _saved(folder / "mine.onnx", graphs.build(model))
    rolled = _saved(folder / "rolled.onnx", graphs.build(model, rolled=1))
    burn = graphs.burn_for(model, _SLOW_S, world.timer)
    slow = _saved(folder / "slow.onnx", graphs.build(model, burn=burn))
    return [
        Bad(
            f"wrong labels in {_VARIANT}, the variant of {_PROFILE}",
            _import(world, good, {_VARIANT: rolled}),
            frozenset({"golden-mismatch"}),
            "demo: what the controller's gate refuses, the device must refuse too",
        ),
        Bad(
            "right labels, but too slow for the budget of x86-vnni and x86-avx2",
            _import(world, slow, dict.fromkeys(_QUANTIZED, slow)),
            frozenset({"too-slow"}),
            "",
        ),
    ]


def refused(world: World, bad: list[Bad]) -> None:
    with world.story.step(6, "Two bad releases, stopped at the canaries"):
        for each in bad:
            _one(world, each)


def _one(world: World, bad: Bad) -> None:
    story = world.story
    built = world.finish(bad.operation)
    release = world.api.get(at("releases", built["result"]["release"]))
    story.tell(f"{ref(release)}: {bad.what}; the controller says: {release['state']}")
    override = bad.override if release["state"] == "refused" else ""
    name = publish(world, release, override)
    started = rolling_out.start(world, name)
    paused = _paused(world, started["id"], bad)
    _told_failures(world, paused, bad)
    _never_beyond_the_canaries(world, started["id"], name)
    _undone(world, started["id"], name)


def _paused(world: World, id_: str, bad: Bad) -> JsonObject:
    def look() -> JsonObject | None:
        now = world.rollout(id_)
        world.story.must(now["state"] != "FINISHED", f"{now['release']} went through the gate")
        return now if now["state"] == "PAUSED" else None

    return world.story.until(
        f"the gate stops: {bad.what}", 90, look, lambda: rolling_out.states(world, id_)
    )


def _told_failures(world: World, paused: JsonObject, bad: Bad) -> None:
    """The rollout says why, and each failing device is back on the good slot."""
    story = world.story
    story.must(bool(paused["reason"]), "the rollout paused without a reason")
    story.tell(f"rollout paused: {paused['reason']}")
    devices = world.rollout_devices(paused["id"]).values()
    failed = [d for d in devices if d["state"] in ("FAILED", "REJECTED", "TIMED_OUT")]
    story.must(bool(failed), "the rollout paused, but no device failed")
    for device in failed:
        story.must(
            device["cause"] in bad.causes,
            f"{device['device']} failed by {device['cause']}: {device['detail']}",
        )
        serves = world.serving(device["device"])
        story.must(serves == world.good, f"{device['device']} serves {serves}, not {world.good}")
        story.tell(
            f"{device['device']} ({device['profile']}): {device['cause']}: {device['detail']}; "
            f"still serves {serves}"
        )


def _never_beyond_the_canaries(world: World, id_: str, release: str) -> None:
    """By every stable device's own timeline, not by what the rollout thinks."""
    stable = [station.name for station in world.scenario.stations if station.ring == "stable"]
    reached = [
        name
        for name in stable
        if any(e["release"] == release or e["rollout"] == id_ for e in world.timeline(name))
        or world.serving(name) == release
    ]
    world.story.must(not reached, f"{release} reached {', '.join(reached)}")
    world.story.tell(f"none of {len(stable)} stable devices ever heard of {release}")


def _undone(world: World, id_: str, release: str) -> None:
    """Abort with rollback: canaries that could run it go back too."""
    world.api.post(at("rollouts", id_, "abort"), {"rollback": True})
    names = [station.name for station in world.scenario.stations]
    world.story.until(
        "every device is back on the good release", 60,
        lambda: world.rollout(id_)["state"] == "ROLLED_BACK"
        and all(world.serving(name) == world.good for name in names),
        lambda: rolling_out.states(world, id_),
    )  # fmt: skip
    world.story.tell(f"aborted and rolled back: all {len(names)} devices serve {world.good}")


def _import(world: World, onnx: Path, variants: dict[str, Path]) -> JsonObject:
    fields = {
        "dataset": f"{world.scenario.dataset}@2",
        "labels": ",".join(world.scenario.classes),
    }
    files = {"onnx": (onnx.name, onnx.read_bytes())}
    files |= {f"variant:{name}": (path.name, path.read_bytes()) for name, path in variants.items()}
    model = world.scenario.model
    started: JsonObject = world.api.upload(at("models", model, "import"), files, fields)
    return started


def _saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
