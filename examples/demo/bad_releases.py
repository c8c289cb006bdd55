"""Step 6: two faulty releases, stopped at the canaries by the devices' checks."""

from pathlib import Path
from typing import NamedTuple

from demo import graphs, rollout
from demo.context import Context
from demo.training import publish, ref
from shoal.cli.api import JsonObject, at

#: The only profile with this variant: a release can be faulty there and nowhere else.
_VARIANT, _PROFILE = "int8-u8s8-pc-rr", "x86-avx2"
_QUANTIZED = ("int8-u8s8-pc", "int8-u8s8-pc-rr", "int8-s8s8-pc")
#: Three times the budget of x86-vnni, half as much again as that of x86-avx2.
_SLOW_S = 0.060


class BadRelease(NamedTuple):
    """A release that must not reach the fleet.

    what       its fault
    causes     expected causes of the failure on the device
    override   reason to publish it although the controller's gate refused it
    """

    what: str
    operation: JsonObject
    causes: frozenset[str]
    override: str


def build(context: Context) -> list[BadRelease]:
    """Start to import both; they are built in the background."""
    model = graphs.fit(context.scenario)
    folder = context.folder / "models"
    folder.mkdir(exist_ok=True)
    good = _saved(folder / "mine.onnx", graphs.build(model))
    rolled = _saved(folder / "rolled.onnx", graphs.build(model, rolled=1))
    burn = graphs.burn_for(model, _SLOW_S, context.timer)
    slow = _saved(folder / "slow.onnx", graphs.build(model, burn=burn))
    return [
        BadRelease(
            f"wrong labels in {_VARIANT}, the variant of {_PROFILE}",
            _import(context, good, {_VARIANT: rolled}),
            frozenset({"golden-mismatch"}),
            "demo: what the controller's gate refuses, the device must refuse too",
        ),
        BadRelease(
            "right labels, but too slow for the budget of x86-vnni and x86-avx2",
            _import(context, slow, dict.fromkeys(_QUANTIZED, slow)),
            frozenset({"too-slow"}),
            "",
        ),
    ]


def refused(context: Context, bad: list[BadRelease]) -> None:
    with context.progress.step(6, "Two bad releases, stopped at the canaries"):
        for each in bad:
            _check_bad_release(context, each)


def _check_bad_release(context: Context, bad: BadRelease) -> None:
    progress = context.progress
    built = context.finish(bad.operation)
    release = context.api.get(at("releases", built["result"]["release"]))
    progress.report(f"{ref(release)}: {bad.what}; state on the controller: {release['state']}")
    override = bad.override if release["state"] == "refused" else ""
    name = publish(context, release, override)
    started = rollout.start(context, name)
    paused = _paused(context, started["id"], bad)
    _report_failures(context, paused, bad)
    _check_canaries_only(context, started["id"], name)
    _roll_back(context, started["id"], name)


def _paused(context: Context, id_: str, bad: BadRelease) -> JsonObject:
    def look() -> JsonObject | None:
        now = context.rollout(id_)
        context.progress.check(now["state"] != "FINISHED", f"{now['release']} passed the gate")
        return now if now["state"] == "PAUSED" else None

    return context.progress.wait_for(
        f"the gate stops: {bad.what}", 90, look, lambda: rollout.states(context, id_)
    )


def _report_failures(context: Context, paused: JsonObject, bad: BadRelease) -> None:
    """Check the rollout's reason, and that each failed device serves the good release."""
    progress = context.progress
    progress.check(bool(paused["reason"]), "the rollout paused without a reason")
    progress.report(f"rollout paused: {paused['reason']}")
    devices = context.rollout_devices(paused["id"]).values()
    failed = [d for d in devices if d["state"] in ("FAILED", "REJECTED", "TIMED_OUT")]
    progress.check(bool(failed), "the rollout paused, but no device failed")
    for device in failed:
        progress.check(
            device["cause"] in bad.causes,
            f"{device['device']} failed by {device['cause']}: {device['detail']}",
        )
        serves = context.serving(device["device"])
        progress.check(
            serves == context.good, f"{device['device']} serves {serves}, not {context.good}"
        )
        progress.report(
            f"{device['device']} ({device['profile']}): {device['cause']}: {device['detail']}; "
            f"still serves {serves}"
        )


def _check_canaries_only(context: Context, id_: str, release: str) -> None:
    """Check by every stable device's own timeline that the release did not reach it."""
    stable = [station.name for station in context.scenario.stations if station.ring == "stable"]
    reached = [
        name
        for name in stable
        if any(e["release"] == release or e["rollout"] == id_ for e in context.timeline(name))
        or context.serving(name) == release
    ]
    context.progress.check(not reached, f"{release} reached {', '.join(reached)}")
    context.progress.report(f"none of {len(stable)} stable devices received {release}")


def _roll_back(context: Context, id_: str, release: str) -> None:
    """Abort with rollback, also of canaries that could run the release."""
    context.api.post(at("rollouts", id_, "abort"), {"rollback": True})
    names = [station.name for station in context.scenario.stations]
    context.progress.wait_for(
        "every device is back on the good release", 60,
        lambda: context.rollout(id_)["state"] == "ROLLED_BACK"
        and all(context.serving(name) == context.good for name in names),
        lambda: rollout.states(context, id_),
    )  # fmt: skip
    context.progress.report(
        f"aborted and rolled back: all {len(names)} devices serve {context.good}"
    )


def _import(context: Context, onnx: Path, variants: dict[str, Path]) -> JsonObject:
    fields = {
        "dataset": f"{context.scenario.dataset}@2",
        "labels": ",".join(context.scenario.classes),
    }
    files = {"onnx": (onnx.name, onnx.read_bytes())}
    files |= {f"variant:{name}": (path.name, path.read_bytes()) for name, path in variants.items()}
    model = context.scenario.model
    started: JsonObject = context.api.upload(at("models", model, "import"), files, fields)
    return started


def _saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
