"""The probe in its real subprocess: a bad model crashes only the probe."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from real_models import FEATURES, answers, mlp, model_of, put_release, slot_of
from shoal.agent.update.acceptance import judge_probe
from shoal.agent.update.io.probe import SubprocessProber
from shoal.errors import ModelError, ShoalError
from shoal.profile import Profile, profile

PROFILE = profile("x86-vnni")
RECENT = np.random.default_rng(2).normal(size=(10, FEATURES)).astype(np.float32)


@pytest.fixture
def prober(tmp_path: Path) -> SubprocessProber:
    return SubprocessProber(lambda model, slot: tmp_path / slot, dict(os.environ))


def tried(
    prober: SubprocessProber, used: Profile = PROFILE, recent: np.ndarray | None = None
) -> list:
    return prober.probe("parts", "b", used, recent, slot_of(), lambda: False)


def test_a_sound_release_passes_and_every_variant_is_timed(
    prober: SubprocessProber, tmp_path: Path
) -> None:
    small, large = (mlp(hidden=h).SerializeToString() for h in (8, 20_000))
    put_release(tmp_path / "b", models={"int8-u8s8-pc": small, "fp32": large})
    measured = tried(prober)
    assert [m.variant for m in measured] == ["int8-u8s8-pc", "fp32"]
    for one in measured:
        assert one.worst_error < 1e-6
        assert 0 < one.p50_ms <= one.p99_ms
        assert 20 < one.rss_mb < 200
    assert judge_probe(measured, PROFILE).variant == "int8-u8s8-pc"


def test_wrong_labels_on_golden_vectors_are_counted(
    prober: SubprocessProber, tmp_path: Path
) -> None:
    model = mlp().SerializeToString()
    rows = np.random.default_rng(9).normal(size=(16, FEATURES)).astype(np.float32)
    wrong = np.roll(answers(model, rows), 1, axis=1)
    put_release(tmp_path / "b", models={"fp32": model}, golden={"fp32": wrong})
    verdict = judge_probe(tried(prober), PROFILE)
    assert verdict.cause == "golden-mismatch"
    assert "16 of 16 labels differ" in verdict.detail


def test_a_release_over_its_latency_budget_is_too_slow(
    prober: SubprocessProber, tmp_path: Path
) -> None:
    heavy = mlp(hidden=768, layers=3).SerializeToString()
    put_release(tmp_path / "b", models={"fp32": heavy})
    tight = msgspec.structs.replace(PROFILE.budget, p99_ms=0.02)
    used = msgspec.structs.replace(PROFILE, budget=tight)
    verdict = judge_probe(tried(prober, used), used)
    assert verdict.cause == "too-slow"
    assert verdict.facts["p99_ms"] > 0.02


def test_the_shadow_run_reports_how_often_the_new_release_disagrees(
    prober: SubprocessProber, tmp_path: Path
) -> None:
    put_release(tmp_path / "a", version=1)
    put_release(tmp_path / "b", version=1)
    assert tried(prober, recent=RECENT)[0].disagree == 0.0
    put_release(tmp_path / "b", version=2)
    here, there = (
        answers((tmp_path / slot / "fp32.onnx").read_bytes(), RECENT).argmax(1) for slot in "ab"
    )
    assert tried(prober, recent=RECENT)[0].disagree == pytest.approx((here != there).mean())


def memory_hungry() -> bytes:
    """ConstantOfShape of 4 GB: loads, and allocates the memory when it runs."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1 << 15, 1 << 15])
    nodes = [
        helper.make_node("Constant", [], ["s"], value=shape),
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["input", "w"], ["h"]),
        helper.make_node("Add", ["h", "sum"], ["output"]),
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [FEATURES, 3], [0.1] * FEATURES * 3)
    return model_of(nodes, [weight]).SerializeToString()


def test_a_model_that_allocates_too_much_kills_its_probe_and_is_too_big(
    prober: SubprocessProber, tmp_path: Path
) -> None:
    golden = {"fp32": np.zeros((16, 3), np.float32)}
    put_release(tmp_path / "b", models={"fp32": memory_hungry()}, golden=golden)
    with pytest.raises(ShoalError) as caught:
        tried(prober)
    assert caught.value.code == "too-big"


def test_a_model_that_does_not_load_names_the_operator(
    prober: SubprocessProber, tmp_path: Path
) -> None:
    golden = {"fp32": np.zeros((16, 3), np.float32)}
    broken = model_of([helper.make_node("Nope", ["input"], ["output"])]).SerializeToString()
    put_release(tmp_path / "b", models={"fp32": broken}, golden=golden)
    with pytest.raises(ModelError, match="operator Nope"):
        tried(prober)


def children() -> set[int]:
    """Child processes of this one, zombies included."""
    found = Path("/proc/self/task").glob("*/children")
    return {int(pid) for path in found for pid in path.read_text().split()}


def test_a_prepared_process_runs_the_next_probe(prober: SubprocessProber, tmp_path: Path) -> None:
    before = children()
    put_release(tmp_path / "b")
    began = threading.Thread(target=prober.prepare, args=[PROFILE])
    began.start()
    began.join()  # the thread that started it has ended before the probe
    prober.prepare(PROFILE)
    (ready,) = children() - before
    assert len(tried(prober, recent=RECENT)) == 1
    assert children() == before
    assert not Path(f"/proc/{ready}").exists()


def test_a_dismissed_process_ends_and_leaves_no_zombie(prober: SubprocessProber) -> None:
    before = children()
    prober.dismiss()
    prober.prepare(PROFILE)
    prober.dismiss()
    prober.dismiss()
    assert children() == before


def test_a_prepared_process_that_died_does_not_fail_the_release(
    prober: SubprocessProber, tmp_path: Path
) -> None:
    before = children()
    put_release(tmp_path / "b")
    prober.prepare(PROFILE)
    (ready,) = children() - before
    os.kill(ready, signal.SIGKILL)
    os.waitid(os.P_PID, ready, os.WEXITED | os.WNOWAIT)
    assert tried(prober)[0].worst_error < 1e-6
    assert children() == before


def test_without_memory_for_its_budget_no_process_is_prepared(tmp_path: Path) -> None:
    left = [PROFILE.budget.rss_mb - 1.0]
    prober = SubprocessProber(lambda model, slot: tmp_path / slot, dict(os.environ), left.pop)
    before = children()
    prober.prepare(PROFILE)
    assert children() == before
    put_release(tmp_path / "b")
    assert len(tried(prober)) == 1


PREPARES = """
import os, sys, time
from shoal.agent.update.io.probe import SubprocessProber
from shoal.profile import profile
SubprocessProber(None, dict(os.environ)).prepare(profile("x86-vnni"))
print(*open(f"/proc/self/task/{os.getpid()}/children").read().split(), flush=True)
time.sleep(600)
"""


def is_alive(process: Path) -> bool:
    try:
        return process.joinpath("stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_prepared_process_ends_when_its_agent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PREPARES], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        waits = Path("/proc") / agent.stdout.readline().decode().strip()
        assert waits.exists()
        agent.kill()
    end = time.monotonic() + 30
    while is_alive(waits):
        assert time.monotonic() < end, "it did not end"
        time.sleep(0.05)


def test_a_cancelled_probe_ends_at_once(prober: SubprocessProber, tmp_path: Path) -> None:
    put_release(tmp_path / "b", models={"fp32": mlp(hidden=1024, layers=6).SerializeToString()})
    began = time.monotonic()
    with pytest.raises(ShoalError):
        prober.probe("parts", "b", PROFILE, None, None, lambda: True)
    assert time.monotonic() - began < 5
