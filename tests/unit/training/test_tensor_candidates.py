"""Variants of a model of tensors: made and measured on a sample, in a process with limits."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from sklearn.datasets import load_digits

import digit_graphs
from shoal.controller.releases.records import Built, VariantReport
from shoal.controller.training.io import runtime, tensor_candidates
from shoal.controller.training.io.build_tensors import build_tensors
from shoal.controller.training.jobs import TensorsJob
from shoal.golden import GoldenTensors


def imported(model: onnx.ModelProto, folder: Path, items: int = 24) -> Built:
    """The model as an import of tensors, with digits as its sample; 0: none."""
    folder.mkdir(exist_ok=True)
    path, sample = folder / "own.onnx", folder / "sample.npz"
    path.write_bytes(model.SerializeToString())
    np.savez(sample, input=load_digits().data[:items, None].astype(np.float32))
    job = TensorsJob(model="m", onnx=path, sample=sample if items else None)
    return build_tensors(job, lambda share, step: None)


def reports(made: Built) -> dict[str, VariantReport]:
    return {report.name: report for report in made.variants}


@pytest.fixture(scope="module")
def convolution(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return imported(digit_graphs.conv(opset=11), tmp_path_factory.mktemp("conv"))


def test_a_convolution_gets_int8_that_agrees_with_fp32_on_held_back_items(
    convolution: Built,
) -> None:
    report = reports(convolution)["int8-u8s8-pc"]
    (output,) = report.outputs
    assert not report.dropped
    assert report.size == len(convolution.files["int8-u8s8-pc"])
    assert report.size < 0.4 * reports(convolution)["fp32"].size
    assert (output.output, output.same) == ("output", 1.0)
    assert 0.99 < (output.cosine or 0) <= 1
    assert report.time_ratio is not None
    passed = [v.variant for v in convolution.verdicts if v.profile == "rpi4" and v.passed]
    assert passed == ["int8-u8s8-pc", "fp32"]
    assert "int8-u8s8-pc" in convolution.card


def test_golden_vectors_hold_what_each_variant_answers_with_a_tolerance_of_its_own(
    convolution: Built,
) -> None:
    vectors = msgspec.msgpack.decode(convolution.golden, type=GoldenTensors).vectors
    session = runtime.open_session(convolution.files["int8-u8s8-pc"], "int8")
    for vector in vectors:
        assert vector.outputs.keys() == convolution.files.keys()
        stored = vector.outputs["int8-u8s8-pc"]["output"]
        (answer,) = session.run(["output"], vector.arrays())
        assert stored.deviation(answer) == 0.0
        assert stored.deviation(answer + 0.5) > 1.0
        assert stored.tolerance >= 0.1
        assert vector.outputs["fp32"]["output"].tolerance == 0.0


def test_what_depends_on_company_is_marked_to_run_alone(tmp_path: Path) -> None:
    made = imported(digit_graphs.lstm(), tmp_path)
    assert made.signature is not None
    assert made.signature.together == "batch"
    dynamic = reports(made)["int8-dynamic"]
    assert dynamic.in_company
    assert dynamic.dropped or "int8-dynamic" in made.files


@pytest.mark.parametrize(
    ("items", "words"), [(0, "no sample was given"), (7, "8 items of a sample are needed")]
)
def test_without_enough_items_fp32_serves_alone_and_the_reason_is_said(
    items: int, words: str, tmp_path: Path
) -> None:
    made = imported(digit_graphs.lstm(), tmp_path, items)
    assert list(made.files) == ["fp32"]
    left_out = [report for report in made.variants if report.name != "fp32"]
    assert left_out
    assert all(words in report.dropped for report in left_out)
    assert {v.variant for v in made.verdicts if v.passed} == {"fp32"}


def test_a_process_that_dies_costs_the_variants_and_not_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_candidates, "_CPU_S", 1)
    monkeypatch.setattr(tensor_candidates, "_WALL", 300)
    made = imported(digit_graphs.lstm(), tmp_path)
    assert list(made.files) == ["fp32"]
    assert any("CPU used" in report.dropped for report in made.variants)
