"""Inspection of files that nobody has vouched for, in its child process."""

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import onnx_files
from shoal.controller.training.io import composed_model, import_model, inspection
from shoal.errors import ModelError

HOSTILE = onnx_files.hostile()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_within_ten_seconds_of_cpu(kind: str, path: Path) -> None:
    path.write_bytes(HOSTILE[kind])
    before = cpu_s()
    with pytest.raises(ModelError) as refused:
        inspection.inspect(path, "it")
    assert cpu_s() - before < 11
    assert refused.value.message.startswith("it")
    assert refused.value.hint


#: Prints the most memory, in kB, of an inspection that met its limit. In a process of its own:
#: here it would be that of any child so far, and a forked one begins with its parent's.
PEAK = """
import resource, sys
from pathlib import Path
from shoal.controller.training.io import composed_model, import_model, inspection
from shoal.errors import ModelError
try:
    inspection.inspect(Path(sys.argv[1]), "it")
except ModelError as error:
    assert "needs more than" in error.message, error
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.parametrize(
    "kind", ["a constant of 2 GB", "36 doublings", "a product of two constants of 1.6 GB"]
)
def test_the_memory_of_an_inspection_is_bounded(kind: str, path: Path) -> None:
    path.write_bytes(HOSTILE[kind])
    script = [sys.executable, "-c", PEAK, str(path)]
    ran = subprocess.run(script, capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 1 << 20


REFUSED: dict[str, tuple[bytes, str]] = {
    "noise": (np.random.default_rng(0).bytes(5_000), "not an ONNX file"),
    "nothing": (b"", "no graph"),
    "an operator of its own": (
        onnx_files.onnx_of(
            [onnx_files.node("Magic", ["x"], ["y"], domain="com.acme")],
            [("x", TensorProto.FLOAT, [1])],
            [("y", TensorProto.FLOAT, [1])],
            opsets=[onnx_files.opsetid("", 17), onnx_files.opsetid("com.acme", 1)],
        ),
        "com.acme:Magic",
    ),
    "an opset of the future": (
        onnx_files.onnx_of(
            [onnx_files.node("Neg", ["x"], ["y"])],
            [("x", TensorProto.FLOAT, [1])],
            [("y", TensorProto.FLOAT, [1])],
            opsets=[onnx_files.opsetid("", 99)],
        ),
        "uses opset 99, this onnxruntime knows up to",
    ),
    "a file format of the future": (
        onnx_files.onnx_of(
            [onnx_files.node("Neg", ["x"], ["y"])],
            [("x", TensorProto.FLOAT, [1])],
            [("y", TensorProto.FLOAT, [1])],
            ir=99,
        ),
        "IR version",
    ),
    "texts in a language that is not installed": (
        onnx_files.onnx_of(
            [onnx_files.node("StringNormalizer", ["x"], ["y"], case_change_action="UPPER",
                             locale="tlh_KX.UTF-8")],
            [("x", TensorProto.STRING, ["N"])],
            [("y", TensorProto.STRING, ["N"])],
        ),
        "the rules of tlh_KX.UTF-8",
    ),
    "weights in other files": (
        onnx_files.onnx_of(
            [onnx_files.node("Add", ["x", "w"], ["y"])],
            [("x", TensorProto.FLOAT, [1])],
            [("y", TensorProto.FLOAT, [1])],
            stored=[TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4],
                                data_location=TensorProto.EXTERNAL)],
        ),
        "keeps its weights in other files: '', which has 'w', was not given",
    ),
    "an operator that is not UTF-8": (
        onnx_files.linear().replace(b"MatMul", b"Mat\xff\xfel"),
        "names that are not UTF-8",
    ),
    "a stored tensor of more elements than bytes": (
        onnx_files.onnx_of(
            [onnx_files.node("Neg", ["x"], ["y"])],
            [("x", TensorProto.FLOAT, [1])],
            [("y", TensorProto.FLOAT, [1])],
            stored=[TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 62, 1 << 62])],
        ),
        "'w' has a shape that its",
    ),
    "a list of maps from nowhere": (
        onnx_files.onnx_of(
            [onnx_files.node("ZipMap", ["x"], [], domain="ai.onnx.ml")],
            [("x", TensorProto.FLOAT, ["N", 3])],
            [("y", TensorProto.FLOAT, ["N", 3])],
            opsets=[onnx_files.opsetid("", 17), onnx_files.opsetid("ai.onnx.ml", 3)],
        ),
        "onnxruntime",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_cannot_be_run_here_is_named_with_its_reason(kind: str, path: Path) -> None:
    data, why = REFUSED[kind]
    path.write_bytes(data)
    with pytest.raises(ModelError) as refused:
        inspection.read_facts(path, "mine.onnx")
    assert "mine.onnx" in refused.value.message
    assert why in refused.value.message
    assert refused.value.hint


def test_facts_are_of_the_whole_file(path: Path) -> None:
    path.write_bytes(onnx_files.linear())
    facts = inspection.read_facts(path, "it")
    assert facts.operators == {"Add": 1, "MatMul": 1}
    assert facts.parameters == 7
    assert [(t.name, t.type, t.shape) for t in facts.inputs] == [("x", "FP32", ["N", 3])]


def test_a_sample_gives_the_signature_its_shapes(path: Path, tmp_path: Path) -> None:
    path.write_bytes(onnx_files.two_inputs())
    sample = tmp_path / "sample.npz"
    rng = np.random.default_rng(0)
    np.savez(sample, a=rng.normal(size=(6, 1, 2)), b=rng.integers(0, 9, (6, 1, 2)))
    found = inspection.inspect(path, "it", sample)
    assert found.signature.together == "batch"
    assert not any("made-up" in note for note in found.notes)
    assert found.rss_mb > 20


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"a": np.zeros((2, 1, 2), np.float32)}, "no array 'b'"),
        ({"a": np.zeros((2, 1, 2), np.float32), "b": np.zeros((3, 1, 2), np.int64)},
         "no items in common"),
        ({"a": np.zeros((2, 1, 2), np.float32), "b": np.full((2, 1, 2), 0.5)}, "'b' is float64"),
        ({"a": np.zeros((0, 1, 2), np.float32), "b": np.zeros((0, 1, 2), np.int64)},
         "no items in common"),
        ({"a": np.float32(1), "b": np.zeros((2, 1, 2), np.int64)}, "'a' has no axis"),
        ({"a": np.array([{}], object), "b": np.zeros((1, 1, 2), np.int64)}, "cannot be read"),
    ],
    ids=["missing", "counts", "type", "empty", "scalar", "pickle"],
)  # fmt: skip
def test_a_sample_that_does_not_fit_is_refused_by_name(
    arrays: dict[str, np.ndarray], why: str, path: Path, tmp_path: Path
) -> None:
    path.write_bytes(onnx_files.two_inputs())
    sample = tmp_path / "sample.npz"
    np.savez(sample, **arrays)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=why):
        inspection.inspect(path, "it", sample)


def test_a_name_with_control_characters_is_not_served(path: Path) -> None:
    path.write_bytes(
        onnx_files.onnx_of(
            [onnx_files.node("Neg", ["x\x1b[31m"], ["y"])],
            [("x\x1b[31m", TensorProto.FLOAT, ["N"])],
            [("y", TensorProto.FLOAT, ["N"])],
        )
    )
    with pytest.raises(ModelError, match="has control characters"):
        inspection.inspect(path, "it")


# ---- weights in data files


def apart(folder: Path, data: bytes, names: Sequence[str] = ("weights.bin",)) -> dict[str, Path]:
    """Write a model with data files into `folder`, with the files' own names; data as inspected."""
    model, files = onnx_files.kept_apart(data, names)
    (folder / "model.onnx").write_bytes(model)
    stored = {}
    for i, (name, content) in enumerate(files.items()):
        stored[name] = folder / f"{i}0" / "blob"
        stored[name].parent.mkdir()
        stored[name].write_bytes(content)
    return stored


@pytest.mark.parametrize("names", [["weights.bin"], ["a.data", "b.data"]])
def test_a_model_with_data_files_is_inspected_like_one_file(
    names: list[str], path: Path, tmp_path: Path
) -> None:
    path.write_bytes(onnx_files.layers(4))
    whole = inspection.inspect(path, "it")
    data = apart(tmp_path, onnx_files.layers(4), names)
    found = inspection.inspect(path, "it", data=data)
    assert found.signature == whole.signature
    assert found.golden == whole.golden
    assert found.facts.parameters == whole.facts.parameters == 4 * 64 * 64
    assert found.facts.stored_bytes > 4 * 64 * 64 * 4


def test_a_model_that_is_written_anew_takes_its_data_files_in(path: Path, tmp_path: Path) -> None:
    path.write_bytes(onnx_files.layers(2))
    for_rows, for_steps = import_model.read(path, "it", 64, 64), composed_model.read_whole(path, "")
    data = apart(tmp_path, onnx_files.layers(2))
    assert import_model.read(path, "it", 64, 64, data) == for_rows
    assert composed_model.read_whole(path, "it", data) == for_steps


WRONG: dict[str, tuple[dict[str, str], str]] = {
    "a file that was not given": ({"location": "other.bin"}, "'other.bin', which has 'w0'"),
    "a file above the folder": ({"location": "../weights.bin"}, "'../weights.bin', which has"),
    "a file of the machine": ({"location": "/etc/passwd"}, "'/etc/passwd', which has"),
    "itself": ({"location": "model.onnx"}, "'model.onnx', which has"),
    "no file": ({}, "'', which has"),
    "bytes behind the end": ({"location": "weights.bin", "offset": "64"}, "which has 16384"),
    "an offset below zero": ({"location": "weights.bin", "offset": "-4"}, "'-4' is no number"),
    "an offset of words": ({"location": "weights.bin", "offset": "ten"}, "'ten' is no number"),
    "a length that its shape has not": (
        {"location": "weights.bin", "length": "12"}, "length 12, and its shape needs 16384"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_data_that_is_not_where_the_model_says_is_named(
    what: str, path: Path, tmp_path: Path
) -> None:
    entries, why = WRONG[what]
    model = onnx.load_model_from_string(onnx_files.layers(1))
    model.graph.initializer[0].ClearField("raw_data")
    onnx_files.external(model.graph.initializer[0], **entries)
    path.write_bytes(model.SerializeToString())
    weights = tmp_path / "blob"
    weights.write_bytes(bytes(64 * 64 * 4))
    with pytest.raises(ModelError, match=r"^it") as refused:
        inspection.read_facts(path, "it", {"weights.bin": weights})
    assert why in refused.value.message
    assert refused.value.hint


def test_a_large_file_is_inspected_without_being_read_whole(path: Path) -> None:
    path.write_bytes(onnx_files.layers(1, 64))
    without = inspection.inspect(path, "it").rss_mb
    path.write_bytes(onnx_files.layers(14, 1_024))
    stored_mb = path.stat().st_size / (1 << 20)
    assert stored_mb > 50
    found = inspection.inspect(path, "it")
    assert found.rss_mb - without < 1.5 * stored_mb
    assert found.facts.parameters == 14 << 20


def test_a_large_model_is_not_run_where_memory_is_short(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with path.open("wb") as file:
        file.truncate(200 << 20)
    monkeypatch.setattr(inspection, "available_mb", lambda: 300.0)
    with pytest.raises(ModelError, match=r"to run it takes about 456 MB .* has 300 MB free"):
        inspection.inspect(path, "it")
