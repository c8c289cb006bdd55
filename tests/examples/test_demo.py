"""The main job, whole: `shoal demo --exit` with its broker, controller and six agents."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from soaking import soak

SECONDS = 400
ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SHOAL_DATA", ROOT.parent / "shared" / "data"))
HYDRAULIC = DATA / "demo" / "hydraulic_uci447_features.csv.gz"


def demo(folder: Path, *more: str) -> dict[str, object]:
    """Content of demo.json after a run in `folder`."""
    command = [sys.executable, "-m", "shoal.cli", "demo", "--exit", "--folder", str(folder), *more]
    run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert run.returncode == 0, run.stdout + run.stderr
    return msgspec.json.decode((folder / "demo.json").read_bytes(), type=dict)


def still_there(folder: Path) -> list[str]:
    """Command lines of processes that name `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in text:
            found.append(text)
    return found


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 20)
def test_the_main_job_runs_end_to_end_and_leaves_no_process_behind(tmp_path: Path) -> None:
    found = demo(tmp_path / "d")
    assert found["held"] is True
    steps = found["steps"]
    assert [step["number"] for step in steps] == list(range(1, 9))
    assert all(step["held"] for step in steps)
    numbers = {name: value for step in steps for name, value in step["numbers"].items()}
    before, during, after = numbers["accuracy at east"]
    assert during < 0.7 < 0.85 < after <= 1.0
    assert before > 0.9
    assert (numbers["missing"], numbers["overlapping"]) == (0, 0)
    assert still_there(tmp_path) == []


@soak
@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 20)
@pytest.mark.skipif(not HYDRAULIC.exists(), reason=f"no {HYDRAULIC}")
def test_drift_is_found_and_healed_on_a_table_of_ones_own(tmp_path: Path) -> None:
    found = demo(
        tmp_path / "d", "--until", "5", "--data", str(HYDRAULIC), "--label", "pump_leak",
        "--site", "cooler_pct", "--train-site", "100", "--split", "group", "--drop",
        "cycle,valve_pct,accumulator_bar,unstable",
    )  # fmt: skip
    assert found["held"] is True
    assert [step["number"] for step in found["steps"]] == [1, 2, 3, 4, 5]
    numbers = {name: value for step in found["steps"] for name, value in step["numbers"].items()}
    for site in ("20", "3"):
        before, during, after = numbers[f"accuracy at {site}"]
        assert during < before
        assert after > 0.85
    assert still_there(tmp_path) == []
