"""Import an ONNX file: untrusted until checked, then normalised like Shoal's own exports."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto

from shoal.controller.training.io import data_files, inspection, model_checks, onnx_graph, runtime
from shoal.errors import ModelError

_NAMES_OF_PROBABILITIES = ("output", "probabilities", "output_probability", "probs", "scores")


def read(
    path: Path, name: str, features: int, columns: int, data: Mapping[str, Path] = {}
) -> ModelProto:
    """The model in `path`, checked and normalised, as one file.

    features, columns   what the dataset has: input width, and labels (1 for regression)
    data                files that it keeps weights in, by the names that it calls them

    ModelError says what is wrong with `name` and how to export it.
    """
    model = model_checks.read_model(path, name)
    sizes = {called: path.stat().st_size for called, path in data.items()}
    model_checks.check_model(model, name, model_checks.Stored(data=sizes))
    data_files.take_in(model, data, name)
    _check_whole(model, name)
    _check_input(model, name, features)
    # Unchanged, and in a process with limits: onnxruntime names the operator or opset it lacks.
    inspection.check_rows(path, name, features, data)
    wanted = _wanted_output(model, name)
    own = onnx_graph.normalise(model, wanted, features, columns)
    rows = np.zeros((3, features), np.float32)
    found = runtime.outputs(own.SerializeToString(), rows, name).shape
    if found != (3, columns):
        raise ModelError(
            f"{name} returns shape {found} for 3 rows, (3, {columns}) is needed",
            "give one label per output column, in order; a two-class model needs two columns",
        )
    return own


def with_probabilities(model: ModelProto, x: runtime.F32, name: str) -> tuple[ModelProto, str]:
    """The model, with a softmax appended where it outputs logits, and a note about that."""
    outputs = runtime.outputs(model.SerializeToString(), x, name)
    if not np.isfinite(outputs).all():
        raise ModelError(f"{name} outputs NaN or infinity on the dataset's rows", "check the model")
    sums = outputs.sum(1)
    if outputs.min() >= -1e-4 and outputs.max() <= 1 + 1e-4 and np.allclose(sums, 1, atol=1e-2):
        return model, ""
    return onnx_graph.append_softmax(model), "outputs logits: a softmax was added"


def _check_whole(model: ModelProto, name: str) -> None:
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        if "No Op registered" in str(error) or "No opset import" in str(error):
            return  # onnxruntime has more than the standard, and names what it lacks
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{name} is not valid ONNX: {first[:300]}", "export it again") from error


def _check_input(model: ModelProto, name: str, features: int) -> None:
    inputs = onnx_graph.graph_inputs(model.graph)
    if len(inputs) != 1:
        listed = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(f"{name} has inputs {listed}", "export it with one: float32 (N, features)")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise ModelError(
            f"{name} takes {kind}",
            "export it with float32 input; or import it as it is, without the dataset: "
            "--task classification (or another) --sample FILE.npz",
        )
    shape = _shape(inputs[0])
    if len(shape) != 2 or shape[1] not in (features, None):
        raise ModelError(
            f"{name} takes shape {shape}, the dataset has {features} features",
            "drop or add columns, or export it with input (N, features)",
        )


def _wanted_output(model: ModelProto, name: str) -> str:
    """The only float output of rank 2; of several, the one named like probabilities."""
    outputs = [
        value
        for value in model.graph.output
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and len(_shape(value)) in (0, 2)
    ]
    for wanted in _NAMES_OF_PROBABILITIES:
        for value in outputs:
            if value.name.lower() == wanted:
                return str(value.name)
    if len(outputs) != 1:
        listed = ", ".join(value.name for value in model.graph.output)
        raise ModelError(
            f"{name} has outputs {listed}, none is float32 (N, classes)",
            'export it with one output; for scikit-learn with options={"zipmap": False}',
        )
    return str(outputs[0].name)


def _shape(value: ValueInfoProto) -> tuple[int | None, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
