"""A model's signature, found by running it."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto

import onnx_files
from shoal.controller.training.io import model_checks, runtime, tensor_runs, zip_maps
from shoal.controller.training.io.tensor_runs import Measured
from shoal.errors import ModelError
from shoal.golden import GoldenTensors
from shoal.tensors import Array


def measured(data: bytes, samples: Sequence[dict[str, Array]] = ()) -> Measured:
    facts = model_checks.check_model(onnx.load_model_from_string(data), "m")
    model_checks.check_servable(facts, "m")
    return tensor_runs.measure(runtime.open_session(data, "m"), facts, "m", samples)


def axes(found: Measured) -> dict[str, int | None]:
    signature = found.signature
    return {tensor.name: tensor.batch for tensor in (*signature.inputs, *signature.outputs)}


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_the_axis_that_counts_items_is_found(kind: int) -> None:
    found = measured(onnx_files.linear(kind))
    assert found.signature.together == "batch"
    assert axes(found) == {"x": 0, "y": 0}
    assert found.signature.inputs[0].dims == [-1, 3]


def test_several_inputs_of_several_types_are_stacked_together() -> None:
    found = measured(onnx_files.two_inputs())
    assert axes(found) == {"a": 0, "b": 0, "sum": 0, "above": 0}
    assert [t.datatype for t in found.signature.outputs] == ["FP32", "BOOL"]


def test_items_whose_answers_depend_on_their_company_run_alone() -> None:
    found = measured(onnx_files.mean_of_batch())
    assert found.signature.together == "alone"
    assert any("run together answer otherwise" in note for note in found.notes)


def test_a_state_is_found_with_its_batch_on_another_axis() -> None:
    found = measured(onnx_files.accumulator())
    (state,) = found.signature.states
    assert (state.taken, state.given, state.shape) == ("state", "stateN", [1, 1, 2])
    assert axes(found) == {"x": 0, "state": 1, "y": 0, "stateN": 1}


def test_a_declared_shape_that_is_wrong_is_noted_and_not_signed() -> None:
    texts = np.array(["ab", "c", "d"], object)
    found = measured(onnx_files.upper_case(), [{"texts": texts}])
    count = found.signature.outputs[1]
    assert (count.name, count.dims) == ("count", [-1])
    assert any("count is declared as INT64 [7], and is INT64 [1]" in note for note in found.notes)


def test_a_length_that_no_file_declares_is_found_on_the_ladder() -> None:
    found = measured(onnx_files.needs_length(96))
    golden = msgspec.msgpack.decode(found.golden, type=GoldenTensors)
    assert golden.vectors[0].arrays()["x"].shape[1] % 4 == 0
    assert any("made-up inputs" in note for note in found.notes)


def test_golden_vectors_are_the_sample_and_its_answers() -> None:
    samples: list[dict[str, Any]] = [
        {"x": np.full((1, 3), i, np.float32)} for i in range(40)
    ]  # fmt: skip
    golden = msgspec.msgpack.decode(
        measured(onnx_files.linear(), samples).golden, type=GoldenTensors
    )
    assert len(golden.vectors) == 32
    weights = np.arange(6, dtype=np.float32).reshape(3, 2)
    for i, vector in enumerate(golden.vectors):
        assert (vector.arrays()["x"] == i).all()
        expected = np.full((1, 3), i, np.float32) @ weights + 1
        assert vector.outputs["fp32"]["y"].deviation(expected.astype(np.float32)) == 0


def test_random_outputs_are_named_and_not_checked_on_devices() -> None:
    found = measured(onnx_files.noisy())
    golden = msgspec.msgpack.decode(found.golden, type=GoldenTensors)
    assert set(golden.vectors[0].outputs["fp32"]) == {"y"}
    assert any("noise differs from run to run" in note for note in found.notes)


def test_lists_of_maps_become_the_tensor_of_their_values() -> None:
    model = onnx.load_model_from_string(onnx_files.classifier_with_maps())
    notes = zip_maps.flatten(model)
    assert "the labels ok, worn" in notes[0]
    found = measured(model.SerializeToString())
    assert [(t.name, t.datatype, t.dims) for t in found.signature.outputs] == [
        ("label", "INT64", [-1]),
        ("probabilities", "FP32", [-1, 2]),
    ]


def test_a_model_without_maps_keeps_its_bytes() -> None:
    data = onnx_files.linear()
    model = onnx.load_model_from_string(data)
    assert zip_maps.flatten(model) == []
    assert model.SerializeToString() == data


def test_a_sample_for_which_the_model_fails_is_named_with_its_shape() -> None:
    with pytest.raises(ModelError, match=r"item 0 of the sample: x FP32 \[1, 4\]"):
        measured(onnx_files.linear(), [{"x": np.zeros((1, 4), np.float32)}])


def test_a_type_that_no_request_can_carry_is_refused_by_name() -> None:
    data = onnx_files.onnx_of(
        [onnx_files.node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)],
        [("x", TensorProto.FLOAT, [1])],
        [("y", TensorProto.BFLOAT16, [1])],
    )
    with pytest.raises(ModelError, match="output 'y' is BFLOAT16, which no request can carry"):
        measured(data)


def _values_above_a_half(axis: str) -> bytes:
    """y: the values of x (N, 3) above 0.5, as many as there are."""
    return onnx_files.onnx_of(
        [
            onnx_files.node("Reshape", ["x", "flat"], ["values"]),
            onnx_files.node("Greater", ["values", "half"], ["chosen"]),
            onnx_files.node("Compress", ["values", "chosen"], ["y"], axis=0),
        ],
        [("x", TensorProto.FLOAT, ["N", 3])],
        [("y", TensorProto.FLOAT, [axis])],
        stored=[onnx_files.ints("flat", [-1]), onnx_files.scalar("half", 0.5, TensorProto.FLOAT)],
    )


def test_items_whose_number_of_answers_depends_on_their_values_run_alone() -> None:
    one_each: list[dict[str, Array]] = [{"x": np.float32([[0, i, 0]])} for i in (1, 2, 3)]
    found = measured(_values_above_a_half("found"), one_each)
    assert found.signature.together == "alone"
    assert any("may depend on its values" in note for note in found.notes)


def test_items_of_which_one_has_no_answer_run_alone_whatever_the_file_declares() -> None:
    items: list[dict[str, Array]] = [{"x": np.float32([[0, i, 0]])} for i in (1, 2, 0)]
    assert measured(_values_above_a_half("N"), items).signature.together == "alone"
