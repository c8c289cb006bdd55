"""Devices that were away, join later or replace another get what the fleet runs: a real controller
with its broker, and real agents."""

import shutil
from pathlib import Path

import pytest

import onnx_files
from broker.served import Api, Served
from broker.tensor_rollouts import enrol, released, running
from waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.mark.timeout(300)
def test_who_missed_a_rollout_joins_later_or_replaces_another_gets_its_release(
    served: Served, tmp_path: Path
) -> None:
    api = Api(served.start().ready())
    model = tmp_path / "upper.onnx"
    model.write_bytes(onnx_files.upper_case())

    def serves(name: str) -> str:
        return str(api.get(f"devices/{name}")["releases"].get("upper", ""))

    first, away = (enrol(api, tmp_path / name, name) for name in ("cam-a", "cam-b"))
    with running(first):
        eventually(lambda: api.get("devices/cam-a")["online"], "the first agent", 60)
        release = released(api, {"upper": (model, None)})["upper"]
        assert serves("cam-a") == release
    assert serves("cam-b") == ""
    assert api.get("groups/fleet")["releases"][0]["release"] == release
    api.post("devices/cam-a/decommission", {})
    shutil.move(first, tmp_path / "broken")
    with running(away), running(enrol(api, tmp_path / "cam-a", "cam-a")):
        later = enrol(api, tmp_path / "cam-c", "cam-c")
        with running(later):
            for name in ("cam-a", "cam-b", "cam-c"):
                eventually(lambda name=name: serves(name) == release, f"{name} converges", 90)
        told = api.get("devices/cam-a/timeline")["items"]
        assert not [one for one in told if one["kind"] == "fault" and "older" in one["detail"]]
    rollout = api.get(f"rollouts/{api.get('rollouts')['items'][0]['id']}")
    assert rollout["state"] == "FINISHED"
    eventually(lambda: api.get("deviations")["items"] == [], "nobody deviates", 30)
