"""Variants of ONNX files as people have them: what is measured decides, and no recipe."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from models.test_real_models import ROOT, WHEELS, files
from shoal.controller.releases.records import Built, VariantReport
from shoal.controller.training.io import comparison
from shoal.controller.training.io.build_tensors import build_tensors
from shoal.controller.training.jobs import TensorsJob
from shoal.profile import load_profiles
from shoal.tensors import Array

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
_ = files  # the fixture

MAGIKA = "magika/models/standard_v3_3/model.onnx"
TURNED = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
VOICE = "silero_vad/data/silero_vad_op18_ifless.onnx"
STATIC = {"int8-u8s8-pc", "int8-u8s8-pc-rr", "int8-s8s8-pc"}
KINDS = ("docs/*.md", "tests/unit/training/*.py", "firmware_profiles/*.toml", "docs/img/*.png")


def octets() -> Iterator[dict[str, Array]]:
    """Files as magika reads them: their first and last 1,024 bytes, 256 where there is none."""
    for kind in KINDS:
        for path in sorted(ROOT.glob(kind))[:6]:
            data = path.read_bytes()
            head, tail = list(data[:1024]), list(data[-1024:])
            head += [256] * (1024 - len(head))
            tail = [256] * (1024 - len(tail)) + tail
            yield {"bytes": np.array([head + tail], np.int32)}


def lines() -> Iterator[dict[str, Array]]:
    """Lines of text, upright and turned, as pictures: float32 (1, 3, 48, 192)."""
    for seed in range(16):
        rng = np.random.default_rng(seed)
        paper, ink = int(rng.integers(150, 255)), int(rng.integers(0, 90))
        picture = Image.new("RGB", (192, 48), (paper, paper, paper - 20))
        font = ImageFont.load_default(size=int(rng.integers(18, 32)))
        text = " ".join(rng.choice(["LOT 4711", "pump A", "12.5 bar", "EXP 2027-03", "No 88"], 2))
        ImageDraw.Draw(picture).text((8, 6), text, font=font, fill=(ink, ink, ink))
        turned = picture.rotate(180) if seed // 2 % 2 else picture
        scaled = (np.asarray(turned, np.float32) / 255 - 0.5) / 0.5
        yield {"x": scaled.transpose(2, 0, 1)[None]}


def frames() -> Iterator[dict[str, Array]]:
    return (WHEELS[VOICE](np.random.default_rng(seed)) for seed in range(16))


def imported(path: Path, items: Iterator[dict[str, Array]], folder: Path) -> Built:
    every, sample = list(items), folder / "sample.npz"
    stacked = {name: np.stack([item[name] for item in every]) for name in every[0]}
    np.savez(sample, **stacked)  # type: ignore[arg-type]
    return build_tensors(TensorsJob(model="m", onnx=path, sample=sample), lambda share, step: None)


def reports(made: Built) -> dict[str, VariantReport]:
    return {report.name: report for report in made.variants}


def timed_profiles() -> list[str]:
    """Profiles of which this machine's CPU says how fast a variant is."""
    cpu = comparison.read_cpu()
    return [name for name, profile in load_profiles().items() if cpu.speaks_for(profile)]


def test_a_classifier_of_files_becomes_a_quarter_as_large_with_the_same_labels(
    files: Path, tmp_path: Path
) -> None:
    made = imported(files / MAGIKA, octets(), tmp_path)
    found = reports(made)["int8-u8s8-pc"]
    assert not found.dropped
    assert found.size < 0.3 * reports(made)["fp32"].size
    assert found.outputs[0].same == 1.0
    if "x86-vnni" in timed_profiles():
        assert (found.time_ratio or 9) < 0.9
        best = next(v for v in made.verdicts if v.profile == "x86-vnni" and v.passed)
        assert best.variant == "int8-u8s8-pc"


def test_a_recurrent_voice_detector_gets_no_int8_and_its_sequence_stays_the_same(
    files: Path, tmp_path: Path
) -> None:
    made = imported(files / VOICE, frames(), tmp_path)
    assert not [name for name in made.files if name.startswith("int8")]
    assert "worst cosine" in reports(made)["int8-weights"].dropped
    assert "it saves next to nothing" in reports(made)["int8-u8s8-pc"].dropped
    for name in made.files.keys() - {"fp32"}:
        assert max(output.max_error for output in reports(made)[name].outputs) < 0.01


def test_a_small_convolution_that_int8_makes_slower_keeps_float32_where_that_is_timed(
    files: Path, tmp_path: Path
) -> None:
    made = imported(files / TURNED, lines(), tmp_path)
    for name in timed_profiles():
        passed = {v.variant for v in made.verdicts if v.profile == name and v.passed}
        assert "fp32" in passed
        assert not STATIC & passed
