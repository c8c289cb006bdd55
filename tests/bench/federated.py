"""Rounds over the real broker beside Flower's simulation and deployment; memory of both ends."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import round_fleet
from bench.report import Aim, Found, Row
from bench.trainer_memory import trainer_row
from shoal.federated.plan import Compression

HERE = Path(__file__).parent
#: Seconds that Flower may take for all its rounds with so many clients, and to end its processes.
PATIENCE_S, GRACE_S = 240, 30
#: Devices with which its deployment is measured as well: a client is three processes.
DEPLOYED = (10,)
SIMULATION = "Flower's simulation: float32, in one machine's memory, no network"
DEPLOYMENT = "Flower's deployment: float32, a process a client, HTTP without TLS"
INT8 = Compression(kind="int8")
VENV, PACKAGES = ".venv-peers/flower", "flwr[simulation] and onnxruntime"
RSS, LARGE = Aim(at_most=60.0), Aim(at_most=150.0)


def run(*, quick: bool) -> Found:
    devices, rounds = ((4,), 2) if quick else ((10, 50, 200), 6)
    lesson = round_fleet.make_lesson()
    rows: list[Row] = []
    notes = {"model": f"784-128-10, {lesson.size:,} numbers; 10 steps of 32 rows a device"}
    for count in devices:
        ours = _ours(lesson, count, rounds)
        sides = {"flower": (SIMULATION, _flower("flower_rounds.py", lesson, count, rounds))}
        if count in DEPLOYED:
            found = _flower("flower_deployment.py", lesson, count, rounds, PATIENCE_S)
            sides["flower, deployed"] = (DEPLOYMENT, found)
        made, told = _compared(count, ours, sides)
        rows += made
        notes |= told
    rows += _controller(quick)
    rows.append(trainer_row(lesson, RSS))
    return Found(rows=rows, notes=notes)


def _ours(lesson: round_fleet.Lesson, devices: int, rounds: int) -> dict[str, Any]:
    """seconds of each round; bytes of one, up and down. Or why there are none."""
    with tempfile.TemporaryDirectory() as name:
        try:
            found = round_fleet.learn(Path(name), lesson, devices, rounds, INT8)
        except TimeoutError as error:
            return {"missing": str(error)}
    done = [one for one in found if one.state == "DONE"]
    down = devices * (4 * lesson.size + len(lesson.graph))
    return {
        "seconds": [one.seconds for one in done],
        "bytes": float(np.median([one.bytes for one in done])) + down,
        "failed": len(found) - len(done),
    }


def _flower(
    script: str, lesson: round_fleet.Lesson, devices: int, rounds: int, *more: int
) -> dict[str, Any]:
    """Likewise, of Flower: as `script`, below peer/, runs it."""
    with tempfile.TemporaryDirectory() as name:
        graph = Path(name) / "train.onnx"
        graph.write_bytes(lesson.graph)
        try:
            done = subprocess.run(
                [_python(), str(HERE / "peer" / script), str(graph),
                 *map(str, (lesson.size, devices, rounds, *more))],
                capture_output=True, text=True, timeout=PATIENCE_S + GRACE_S,
                env=os.environ | {"FLWR_HOME": name, **_QUIET},
            )  # fmt: skip
        except OSError:
            return {"missing": f"no Flower: SHOAL_FLOWER_PYTHON, or {VENV} with {PACKAGES}"}
        except subprocess.TimeoutExpired:
            return {"missing": f"did not finish within {PATIENCE_S} s"}
    if done.returncode:
        return {"missing": done.stderr.strip()[-200:]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _python() -> str:
    return os.environ.get("SHOAL_FLOWER_PYTHON", str(HERE.parents[1] / VENV / "bin/python"))


_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


_Side = tuple[str, dict[str, Any]]


def _compared(
    devices: int, ours: dict[str, Any], sides: dict[str, _Side]
) -> tuple[list[Row], dict[str, str]]:
    """The first round of each side is a warm-up and reported separately."""
    notes, rows = _noted("shoal", devices, ours), []
    for name, (against, theirs) in sides.items():
        notes |= _noted(name, devices, theirs)
        if "missing" in ours or "missing" in theirs:
            continue
        mine, other = (float(np.median(side["seconds"][1:])) for side in (ours, theirs))
        sent, theirs_sent = (side["bytes"] / 1e6 for side in (ours, theirs))
        rows += [
            _row(f"a round of {devices} devices", "s", mine, other, against),
            _row("... its parameters", "MB", sent, theirs_sent, against),
        ]
    return rows, notes


def _noted(name: str, devices: int, side: dict[str, Any]) -> dict[str, str]:
    if "missing" in side:
        return {f"{name}, {devices} devices": side["missing"]}
    return {f"{name}, {devices} devices, first round": f"{side['seconds'][0]:.2f} s"}


def _controller(quick: bool) -> list[Row]:
    """Peak of resident memory over what it was before the round, by devices."""
    size = 20_000 if quick else 2_000_000
    counts: Sequence[int] = (2, 4) if quick else (10, 50, 200)
    found = {count: _peak(count, size) for count in counts}
    first = counts[0]
    rows = [
        _row(
            f"controller, {count} updates of {size:,}", "MB", found[count], found[first],
            f"the same with {first} updates",
        )
        for count in counts[1:]
    ]  # fmt: skip
    return rows if quick else [*rows, _large_model()]


def _large_model() -> Row:
    size = 10_000_000
    peak, raw = _peak(10, size), 4 * size / 1e6
    return Row(
        what=f"controller, 10 updates of {size:,}", unit="MB", ours=peak,
        against="the parameters in float32", raw=raw, ratio=peak / raw, over=peak - raw,
        aim=LARGE.text("MB"), held=LARGE.holds(peak),
    )  # fmt: skip


def _peak(devices: int, size: int) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "bench.round_memory", str(devices), str(size), "fedavg"],
        capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(HERE.parent)},
    )  # fmt: skip
    output = json.loads(done.stdout)
    assert output["state"] == "DONE", output
    return float(output["peak"] - output["before"])


def _row(what: str, unit: str, ours: float, raw: float, against: str) -> Row:
    return Row(
        what=what, unit=unit, ours=ours, against=against, raw=raw, ratio=ours / raw,
        over=ours - raw,
    )  # fmt: skip
