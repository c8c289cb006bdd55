"""Samples of a model of tensors that are no sound .npz files, or change when they are converted."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shoal.controller.releases.records import TensorFact
from shoal.controller.training.io.samples import read_sample
from shoal.errors import ModelError


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, x=array)
    return file.getvalue()


def without_a_header() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", b"no array")
    return file.getvalue()


def broken() -> bytes:
    data = bytearray(saved(np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)))
    data[60:80] = b"\xff" * 20
    return bytes(data)


def encrypted() -> bytes:
    data = bytearray(saved(np.ones((2, 3), np.float32)))
    data[data.find(b"PK\x01\x02") + 8] |= 1
    data[6] |= 1
    return bytes(data)


def compressed_in_an_unknown_way() -> bytes:
    data = bytearray(saved(np.ones((2, 3), np.float32)))
    data[data.find(b"PK\x01\x02") + 10] = data[8] = 99
    return bytes(data)


@pytest.mark.parametrize(
    "made", [without_a_header, broken, encrypted, compressed_in_an_unknown_way]
)
def test_a_sample_that_is_no_sound_file_is_refused(
    made: Callable[[], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "sample.npz"
    path.write_bytes(made())
    with pytest.raises(ModelError, match="the sample") as refused:
        read_sample(path, [TensorFact(name="x", type="FP32", shape=["N", 3])])
    assert refused.value.hint


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.array([1, 300]), "INT8"),
        (np.array([1 << 40]), "INT32"),
        (np.array([1 << 63], np.uint64), "INT64"),
        (np.array([1e30]), "FP16"),
    ],
)
def test_a_value_that_the_input_cannot_have_is_refused(
    array: np.ndarray, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "sample.npz"
    path.write_bytes(saved(array))
    with pytest.raises(ModelError, match=f"has values that are no {kind}"):
        read_sample(path, [TensorFact(name="x", type=kind, shape=["N"])])


def test_values_that_the_input_can_have_are_converted(tmp_path: Path) -> None:
    path = tmp_path / "sample.npz"
    path.write_bytes(saved(np.array([[-128, 127]])))
    (item,) = read_sample(path, [TensorFact(name="x", type="INT8", shape=[2])])
    assert item["x"].tolist() == [-128, 127]
    assert item["x"].dtype == np.int8
    path.write_bytes(saved(np.array([np.nan, np.inf, 0.1])))
    items = read_sample(path, [TensorFact(name="x", type="FP32", shape=["N"])])
    assert [item["x"].item() for item in items[1:]] == [np.inf, np.float32(0.1)]


def test_of_many_items_so_many_are_taken_from_all_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sample.npz"
    path.write_bytes(saved(np.arange(10_000, dtype=np.float32)))
    items = read_sample(path, [TensorFact(name="x", type="FP32", shape=["N"])])
    taken = [item["x"].item() for item in items]
    assert len(taken) == 256
    assert (taken[0], taken[-1]) == (0, 9_999)
    assert max(np.diff(taken)) < 41


def test_an_item_without_the_axis_of_a_batch_is_a_batch_of_one(tmp_path: Path) -> None:
    path = tmp_path / "sample.npz"
    path.write_bytes(saved(np.ones((4, 5), np.float32)))
    for shape, expected in (([1, 5], (1, 5)), (["N", 5], (1, 5)), ([3, 5], (5,)), ([5], (5,))):
        items = read_sample(path, [TensorFact(name="x", type="FP32", shape=shape)])
        assert items[0]["x"].shape == expected
