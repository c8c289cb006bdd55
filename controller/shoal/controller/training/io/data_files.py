"""Data files of a model, where it keeps weights beside its ONNX file.

They are stored under other names than the model calls them, so it is pointed at those. They are
not linked beside it: onnxruntime refuses files that have more than one hard link.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from onnx import ModelProto

from shoal.controller.training.io import model_checks
from shoal.errors import ModelError


def folder_of(paths: Iterable[Path]) -> Path:
    """The folder that all of `paths` are below, for onnxruntime: it reads no file outside of it."""
    return Path(os.path.commonpath([path.resolve().parent for path in paths]))


def point_to(model: ModelProto, files: Mapping[str, Path], folder: Path) -> None:
    """Have the model's external data name the files' places below `folder`.

    files   the name that the model calls a file -> its path
    """
    places = {name: str(path.resolve().relative_to(folder)) for name, path in files.items()}
    for tensor in model_checks.tensors_of(model):
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value in places:
                entry.value = places[entry.value]


def take_in(model: ModelProto, files: Mapping[str, Path], name: str) -> None:
    """Put the model's external data, which was checked, into the model itself.

    ModelError for more than model_checks.LIMIT bytes.
    """
    total = sum(path.stat().st_size for path in files.values())
    if total > model_checks.LIMIT:
        raise ModelError(
            f"{name} has {total >> 20} MiB of weights, {model_checks.LIMIT >> 20} are allowed for "
            "a model of rows",
            "use a smaller model, or import it with --task tensors",
        )
    for tensor in model_checks.tensors_of(model):
        entries = {one.key: one.value for one in tensor.external_data}
        if not entries:
            continue
        start, length = model_checks.span_of(tensor, name)
        with files[entries["location"]].open("rb") as file:
            file.seek(start)
            tensor.raw_data = file.read(length)
        del tensor.external_data[:]
        tensor.ClearField("data_location")
