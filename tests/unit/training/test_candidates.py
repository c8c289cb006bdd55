"""Which forms of a model a release gets: made, measured beside fp32, and kept where they pay."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

import digit_graphs
from controllers import digits
from shoal.controller.data import frames
from shoal.controller.data.records import DatasetVersion
from shoal.controller.training.io import comparison, rows, runtime, stored_weights
from shoal.controller.training.io.candidates import LIMIT_S, Judged
from shoal.controller.training.io.row_candidates import judge_candidates
from shoal.controller.training.io.rows import Data
from shoal.controller.training.io.variants import Variants
from shoal.controller.training.jobs import Job
from shoal.estimators import read_params

U8S8, S8S8 = "int8-u8s8-pc", "int8-s8s8-pc"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    path = tmp_path_factory.mktemp("digits") / "digits.csv"
    frame = digits()
    frame.to_csv(path, index=False)
    version = DatasetVersion(
        name="d", version=1, sha256="", size=0, rows=len(frame),
        columns=frames.describe(frame, label="digit", site="station", split="", drop=()),
        label="digit", site="station", split="", parents=[], how="", created_at=0, created_by="",
    )  # fmt: skip
    job = Job(model="m", dataset=version, table=path)
    return rows.prepare(job, read_params("mlp", {}), "classification")


def tried(model: onnx.ModelProto, data: Data, limit_s: float = LIMIT_S) -> tuple[Variants, Judged]:
    built = Variants({"fp32": model.SerializeToString()}, {}, [])
    judged = judge_candidates(
        built, data, "classification", lambda fraction, step: None, limit_s=limit_s
    )
    return built, judged


def passed(judged: Judged, profile: str) -> list[str]:
    return [v.variant for v in judged.verdicts if v.profile == profile and v.passed]


def operators(model: bytes) -> set[str]:
    return {node.op_type for node in onnx.load_from_string(model).graph.node}


def test_a_network_of_an_old_opset_is_converted_and_quantized_per_channel(data: Data) -> None:
    built, judged = tried(digit_graphs.conv(opset=11), data)
    report = judged.reports[U8S8]
    assert passed(judged, "rpi4")[0] == U8S8
    assert (report.same_labels or 0.0) > 0.99
    assert report.size == len(built.files[U8S8]) < 0.4 * judged.reports["fp32"].size
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= operators(built.files[U8S8])


def test_what_depends_on_the_rows_beside_it_is_left_out_and_a_quarter_of_the_bytes_remain(
    data: Data,
) -> None:
    built, judged = tried(digit_graphs.lstm(), data)
    dynamic, stored = judged.reports["int8-dynamic"], judged.reports["int8-weights"]
    assert dynamic.in_company
    assert "depends on the rows that run with it" in dynamic.dropped
    assert 0 < dynamic.size < 0.4 * judged.reports["fp32"].size
    assert "int8-dynamic" not in built.files
    assert passed(judged, "rpi4")[-2:] == ["int8-weights", "fp32"]
    assert stored.size < 0.3 * judged.reports["fp32"].size
    assert stored.same_labels == 1.0
    assert operators(built.files[stored.name]) >= {"Cast", "Mul", "LSTM"}


def test_weights_stored_in_16_bits_change_an_answer_by_a_thousandth(data: Data) -> None:
    model = digit_graphs.lstm()
    half = stored_weights.as_float16(model).SerializeToString()
    whole = model.SerializeToString()
    assert len(half) < 0.55 * len(whole)
    want, got = (runtime.outputs(file, data.held.x, "m") for file in (whole, half))
    np.testing.assert_allclose(got, want, atol=5e-3)


def test_the_layers_that_quantization_ruins_are_found_and_left_as_they_are(data: Data) -> None:
    _, judged = tried(digit_graphs.wide_range(), data)
    assert judged.reports[U8S8].detail == "quantized but for Gemm_wide, Gemm_0"
    assert judged.reports[U8S8].metrics["accuracy"] > 0.95
    assert "0.02 allowed" in judged.reports["int8-dynamic"].dropped


def test_when_the_time_is_over_what_is_left_is_skipped_and_fp32_serves(data: Data) -> None:
    built, judged = tried(digit_graphs.wide_range(), data, limit_s=0.0)
    assert list(built.files) == passed(judged, "rpi5") == ["fp32"]
    assert {r.size > 0 for r in judged.reports.values() if r.dropped} == {False}
    assert "0 allowed" in judged.reports[U8S8].dropped


def test_time_is_compared_with_fp32s_whatever_else_runs(data: Data) -> None:
    small, large = (
        runtime.open_session(model.SerializeToString(), "m")
        for model in (digit_graphs.wide_range(), digit_graphs.lstm())
    )
    assert comparison.row_time_ratio(large, small, data.held.x) > 2
    assert comparison.row_time_ratio(small, large, data.held.x) < 0.5


def test_a_report_of_an_earlier_release_can_still_be_read() -> None:
    old = {"name": "fp32", "sha256": "", "size": 9, "metrics": {}, "cosine": 1.0, "detail": ""}
    report = msgspec.convert(old, comparison.VariantReport)
    assert (report.dropped, report.time_ratio) == ("", None)


def test_this_cpu_is_known_by_the_names_that_devices_report(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags\t: fpu avx2 avx_vnni\n")
    assert comparison.read_cpu(tmp_path / "cpuinfo").flags == {"fpu", "avx2", "avx_vnni"}
    assert comparison.read_cpu(tmp_path / "none").flags == set()
