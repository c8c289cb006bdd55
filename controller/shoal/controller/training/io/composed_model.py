"""A model with its declared steps, in an opset that has their operators."""

from collections.abc import Mapping
from pathlib import Path

from onnx import ModelProto, version_converter

from shoal.controller.training.io import data_files, model_checks, onnx_graph, zip_maps
from shoal.controller.training.steps import composition, declaration
from shoal.controller.training.steps.declaration import Declaration
from shoal.controller.training.steps.graph import IR
from shoal.errors import ModelError


def composed(path: Path, steps: Path, name: str, data: Mapping[str, Path] = {}) -> bytes:
    """Bytes of the model in `path`, which was checked, with the steps in the file `steps`, and with
    the weights in its data files."""
    model = read_whole(path, name, data)
    zip_maps.flatten(model)
    return compose(model, declaration.parse(steps.read_bytes()), name).SerializeToString()


def read_whole(path: Path, name: str, data: Mapping[str, Path] = {}) -> ModelProto:
    """The model in `path` with the weights in its files `data`, by the names that it calls them;
    ModelError when it is too large to be written anew."""
    sizes = {called: where.stat().st_size for called, where in data.items()}
    if path.stat().st_size + sum(sizes.values()) > zip_maps.LIMIT:
        raise ModelError(
            f"{name} is larger than {zip_maps.LIMIT >> 20} MiB: steps cannot become part of it",
            "leave --steps out, and prepare its inputs in the program that sends them",
        )
    model = model_checks.read_model(path, name)
    if data:
        model_checks.check_model(model, name, model_checks.Stored(data=sizes))
        data_files.take_in(model, data, name)
    return model


def compose(model: ModelProto, steps: Declaration, name: str) -> ModelProto:
    """`model` with its steps, raised to their opset where it is older; ModelError when they do not
    fit."""
    raised, _ = raise_opset(model, steps.opset, name)
    facts = model_checks.check_model(raised, name)
    return composition.compose(raised, facts, steps, name)


def raise_opset(model: ModelProto, needed: int, name: str) -> tuple[ModelProto, list[str]]:
    """The model in opset `needed`, by onnx.version_converter, and a note about that;
    itself without a note when it has it."""
    opset = onnx_graph.opset_of(model)
    if opset == 0 or opset >= needed:
        return model, []
    hint = f"export it with opset {needed} or newer"
    if model.functions:
        raise ModelError(
            f"{name} has opset {opset}, steps need {needed}, and its functions cannot be raised",
            hint,
        )
    try:
        raised = version_converter.convert_version(model, needed)
    except Exception as error:  # the converter's C++ has many kinds
        raise ModelError(
            f"{name} has opset {opset}, steps need {needed}, and it cannot be raised: "
            f"{' '.join(str(error).split())[:200]}",
            hint,
        ) from error
    raised.ir_version = max(model.ir_version, IR)
    if not raised.metadata_props:
        raised.metadata_props.extend(model.metadata_props)
    how = f"from opset {opset} to {needed}, which its steps need"
    return raised, [f"it was raised {how}, by onnx.version_converter"]
