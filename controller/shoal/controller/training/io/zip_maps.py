"""Classifiers of scikit-learn's converters end in ZipMap, which makes a list of dictionaries of the
probabilities: no request can carry those, so the probabilities themselves are the output.
"""

import mmap
from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto, helper

from shoal.errors import ModelError

_OLDEST_OPSET = 13
#: Bytes of a file that is written anew: it is read whole for that.
LIMIT = 512 << 20


def flattened(path: Path) -> bytes | None:
    """Bytes of the model in `path`, which was checked, without its ZipMaps; None if it has none."""
    if path.stat().st_size > LIMIT:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(b"ZipMap") < 0:
            return None
    model = ModelProto.FromString(path.read_bytes())
    return model.SerializeToString() if flatten(model) else None


def check_size(path: Path, name: str, notes: list[str]) -> None:
    """ModelError for a file with ZipMaps that is too large to be written without them."""
    if notes and path.stat().st_size > LIMIT:
        raise ModelError(
            f"{name} ends in a ZipMap and is larger than {LIMIT >> 20} MiB",
            'export it with options={"zipmap": False}',
        )


def flatten(model: ModelProto) -> list[str]:
    """Replace each ZipMap whose map is an output by its tensor, of the same name; notes about it.

    A model without any stays as it is, and there are no notes.
    """
    outputs = {value.name: value for value in model.graph.output}
    notes = []
    for node in model.graph.node:
        labels = _labels(node) if node.op_type == "ZipMap" else []
        if not labels or not node.output or node.output[0] not in outputs:
            continue
        name = node.output[0]
        tensor = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", len(labels)])
        outputs[name].CopyFrom(tensor)
        node.op_type, node.domain = "Identity", ""
        del node.attribute[:]
        notes.append(
            f"{name} was a list of maps, and is now the tensor of their values, in the order of "
            f"the labels {', '.join(labels[:20])}"
        )
    if notes and not any(o.domain in ("", "ai.onnx") for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", _OLDEST_OPSET))
    return notes


def _labels(node: NodeProto) -> list[str]:
    for attribute in node.attribute:
        if attribute.name == "classlabels_strings":
            return [text.decode(errors="replace") for text in attribute.strings]
        if attribute.name == "classlabels_int64s":
            return [str(number) for number in attribute.ints]
    return []
