"""An ONNX file without its weights, and hostile encodings of one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_files
from shoal import onnx_outline
from shoal.errors import ModelError
from shoal.onnx_outline import data_locations, outline


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def run(model: bytes | Path, folder: Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options).run(None, {"x": x})[0]


def in_a_branch(weights: np.ndarray) -> bytes:
    """y = x + weights, which are an attribute of a node in a branch."""
    constant = onnx_files.node("Constant", [], ["w"], value=numpy_helper.from_array(weights))
    body = helper.make_graph(
        [constant, onnx_files.node("Add", ["x", "w"], ["z"])],
        "then",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [onnx_files.node("Neg", ["x"], ["v"])],
        "else",
        [],
        [helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
    )
    return onnx_files.onnx_of(
        [
            onnx_files.node("ReduceSum", ["x"], ["s"], keepdims=0),
            onnx_files.node("Greater", ["s", "zero"], ["yes"]),
            onnx_files.node("If", ["yes"], ["y"], then_branch=body, else_branch=other),
        ],
        [("x", TensorProto.FLOAT, ["N"])],
        [("y", TensorProto.FLOAT, None)],
        stored=[onnx_files.scalar("zero", 0, TensorProto.FLOAT)],
    )


def test_large_weights_are_left_out_and_found_again_in_the_file(path: Path) -> None:
    path.write_bytes(onnx_files.layers(3, 64))
    found = outline(path, "it")
    assert len(found.content) < 1_200
    assert found.left_out > 3 * 64 * 64 * 4 - 400
    x = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    assert run(found.content, path.parent, x).tobytes() == run(path, path.parent, x).tobytes()


def test_weights_in_attributes_of_branches_are_left_out(path: Path) -> None:
    path.write_bytes(in_a_branch(np.arange(4_000, dtype=np.float32)))
    found = outline(path, "it")
    assert len(found.content) < 1_000


def test_floats_in_their_own_field_are_left_out_like_raw_bytes(path: Path) -> None:
    values = np.arange(64 * 64, dtype=np.float32)
    model = onnx.load_model_from_string(onnx_files.layers(1, 64))
    model.graph.initializer[0].CopyFrom(
        helper.make_tensor("w0", TensorProto.FLOAT, [64, 64], values)
    )
    path.write_bytes(model.SerializeToString())
    found = outline(path, "it")
    assert len(found.content) < 1_000
    x = np.full((1, 64), 1e-4, np.float32)
    assert run(found.content, path.parent, x).tobytes() == run(path, path.parent, x).tobytes()


def test_a_file_of_small_tensors_is_itself(path: Path) -> None:
    for data in (onnx_files.linear(), onnx_files.two_inputs(), onnx_files.upper_case()):
        path.write_bytes(data)
        assert outline(path, "it") == (data, 0, [])


def test_the_data_files_that_a_model_names_are_listed_once(path: Path) -> None:
    data, _ = onnx_files.kept_apart(onnx_files.layers(3), ["a.bin", "b.bin"])
    path.write_bytes(data)
    assert data_locations(path, "it") == ["a.bin", "b.bin"]
    path.write_bytes(onnx_files.layers(3))
    assert data_locations(path, "it") == []


def test_many_numbers_in_a_row_are_skipped_at_once(path: Path) -> None:
    trees = onnx_files.node(
        "Neg", ["x"], ["y"], numbers=[float(i) for i in range(200_000)], more=[300] * 200_000
    )
    data = onnx_files.onnx_of(
        [trees], [("x", TensorProto.FLOAT, [1])], [("y", TensorProto.FLOAT, [1])]
    )
    path.write_bytes(data)
    assert outline(path, "it").content == data


def nested(depth: int) -> bytes:
    """Graphs in attributes of nodes, so many deep, the innermost with a large tensor."""
    graph = helper.make_graph(
        [], "g", [], [], [numpy_helper.from_array(np.zeros(2_000, np.float32), "w")]
    ).SerializeToString()
    for _ in range(depth):
        for number in (6, 5, 1):  # a graph in an attribute, that in a node, that in a graph
            graph = onnx_outline._bytes_head(number, len(graph)) + graph
    return onnx_outline._bytes_head(7, len(graph)) + graph


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "not an ONNX file"),
    "a picture": (lambda: b"GIF89a" * 1_000, "not an ONNX file"),
    "a graph longer than the file": (lambda: b"\x3a\xff\xff\xff\x0f", "not an ONNX file"),
    "a length of 70 bits": (lambda: b"\x3a" + b"\xff" * 10 + b"\x01", "not an ONNX file"),
    "a length that ends with the file": (lambda: b"\x3a\xff", "not an ONNX file"),
    "a tensor longer than its graph": (
        lambda: onnx_outline._bytes_head(7, 2_000) + b"\x2a\xff\xff\x03" + b"\0" * 1_996,
        "not an ONNX file",
    ),
    "groups": (lambda: b"\x3b" * 5_000, "not an ONNX file"),
    "graphs in graphs": (lambda: nested(40), "more than 100 messages deep"),
    "many fields": (lambda: b"\x08\x01\x10\x01" * 100_000, "more than 100000 fields"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_encoding_is_refused_by_name(what: str, path: Path) -> None:
    make, why = HOSTILE[what]
    path.write_bytes(make())
    with pytest.raises(ModelError, match=f"^it .*{why}"):
        outline(path, "it", fields=100_000)


def test_what_is_left_is_bounded(path: Path) -> None:
    path.write_bytes(onnx_files.layers(3))
    with pytest.raises(ModelError, match="it has 0 MiB beside the weights of its tensors"):
        outline(path, "it", limit=100)


def test_a_file_of_more_than_protobuf_carries_is_refused_with_the_way_out(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(ModelError, match=r"it is larger than 2 GiB.*save_as_external_data=True"):
        outline(path, "it")
