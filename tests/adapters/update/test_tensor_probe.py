"""The probe of a release of tensors: its golden vectors, in the probe's own process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from shoal.agent.update.acceptance import Measured, Verdict, judge_probe
from shoal.agent.update.io.probe import SubprocessProber
from shoal.errors import ModelError
from shoal.profile import profile
from tensor_models import MODEL, MODELS, TensorModel, lookup, picture, put_tensors, raw, slot_of

PROFILE = profile("x86-vnni")


@pytest.fixture
def prober(tmp_path: Path) -> SubprocessProber:
    return SubprocessProber(lambda model, slot: tmp_path / slot, dict(os.environ))


def tried(prober: SubprocessProber, recent: Any = None) -> list[Measured]:
    return prober.probe(MODEL, "b", PROFILE, recent, slot_of(), lambda: False)


def judged(prober: SubprocessProber) -> Verdict:
    return judge_probe(tried(prober), PROFILE)


@pytest.mark.parametrize("name", ["identity BYTES", "scaled", "constant", "running_sum"])
def test_a_sound_release_passes_and_is_timed(
    name: str, prober: SubprocessProber, tmp_path: Path
) -> None:
    put_tensors(tmp_path / "b", MODELS[name]())
    (measured,) = tried(prober)
    assert measured.deviation == 0.0
    assert 0 < measured.p50_ms <= measured.p99_ms
    assert 20 < measured.rss_mb < 200
    verdict = judge_probe([measured], PROFILE)
    assert verdict.variant == "fp32"
    assert verdict.facts["deviation"] == 0.0


def test_a_wrong_output_is_named_with_its_vector_and_how_far_it_is(
    prober: SubprocessProber, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 2, 3, 4, 4), np.uint8)
    made = picture()
    model = TensorModel(made.graph, made.signature, [{"picture": part} for part in pixels])
    means, best = zip(*(raw(model, feeds) for feeds in model.feeds), strict=True)
    off = means[1].copy()
    off[0, 0] += 1e-3 * np.abs(off).max()
    golden = [{"means": means[0], "best": best[0]}, {"means": off, "best": best[1]}]
    put_tensors(tmp_path / "b", model, golden=golden)
    verdict = judged(prober)
    assert verdict.cause == "golden-mismatch"
    assert "fp32: output 'means' of golden vector 1 is 10 times as far" in verdict.detail
    assert verdict.facts["where"] == "output 'means' of golden vector 1"


def test_an_output_of_another_shape_is_a_mismatch_too(
    prober: SubprocessProber, tmp_path: Path
) -> None:
    golden = [{"vectors": np.zeros((1, 2, 2), np.float32)}]
    put_tensors(tmp_path / "b", lookup(), golden=golden)
    verdict = judged(prober)
    assert verdict.cause == "golden-mismatch"
    assert "output 'vectors' of golden vector 0 is farther from" in verdict.detail


def test_a_bundle_without_golden_outputs_of_its_variant_is_unusable(
    prober: SubprocessProber, tmp_path: Path
) -> None:
    put_tensors(tmp_path / "b", lookup(), golden=[{}])
    with pytest.raises(ModelError, match="no golden outputs"):
        tried(prober)


def test_a_release_over_its_latency_budget_is_too_slow(
    prober: SubprocessProber, tmp_path: Path
) -> None:
    put_tensors(tmp_path / "b", picture())
    tight = msgspec.structs.replace(PROFILE.budget, p99_ms=1e-5)
    used = msgspec.structs.replace(PROFILE, budget=tight)
    assert judge_probe(tried(prober), used).cause == "too-slow"


def test_rows_of_the_release_that_serves_are_not_run_through_it(
    prober: SubprocessProber, tmp_path: Path
) -> None:
    put_tensors(tmp_path / "b", lookup())
    (measured,) = tried(prober, recent=np.zeros((3, 4), np.float32))
    assert (measured.disagree, measured.compared) == (-1.0, 0)


def test_a_probe_of_rows_reports_what_it_always_did() -> None:
    rows = Measured(
        variant="fp32", worst_error=0, labels_differ=0, golden_rows=1, p50_ms=0.1, p99_ms=0.1,
        rss_mb=50,
    )  # fmt: skip
    assert not {"deviation", "where"} & judge_probe([rows], PROFILE).facts.keys()


def test_the_probe_loads_nothing_that_it_does_not_need() -> None:
    """Every update waits for its start."""
    script = (
        "import sys, shoal.agent.update.io.trial;"
        "print({name.partition('.')[0] for name in sys.modules} & set(sys.argv[1:]))"
    )
    heavy = ["onnxruntime", "orjson", "httptools", "paho", "sqlite3", "asyncio"]
    ran = subprocess.run(
        [sys.executable, "-c", script, *heavy], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "set()"
