"""Arrays become a dataset of tensors: with roles, mapped from disk, and checked."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal.controller.data import uploads
from shoal.controller.data.array_files import ArrayItems
from shoal.controller.data.item_labels import Roles
from shoal.controller.data.open_items import open_items
from shoal.controller.data.records import Packed
from shoal.controller.data.tensor_packs import pack_tensors
from shoal.errors import DatasetError

WAVES = np.random.default_rng(0).normal(size=(40, 2, 8)).astype(np.float32)
CLASSES = ["hum", "click", "click", "hum"] * 10


def add(path: Path, drop: list[str] | None = None, **roles: str) -> tuple[Packed, ArrayItems]:
    target = path.with_suffix(".items")
    assert uploads.is_items(path)
    assert uploads.is_arrays(path)
    packed = pack_tensors(path, target, path.name, Roles(**roles), drop or [])
    items = open_items(target, "waves@1")
    assert isinstance(items, ArrayItems)
    return packed, items


def test_arrays_of_a_compressed_file_are_mapped_once_they_are_stored(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", wave=WAVES, kind=CLASSES, day=np.arange(40) % 3)
    packed, items = add(tmp_path / "a.npz", label="kind", split="day")
    assert isinstance(items.array("wave"), np.memmap)
    assert np.array_equal(items.read(3)["wave"], WAVES[3])
    assert items.labels().tolist() == CLASSES
    assert packed.contents.classes == {"click": 20, "hum": 20}
    assert (packed.contents.inputs[0].datatype, packed.contents.inputs[0].low) == ("FP32", [2, 8])
    assert packed.contents.groups == 3


def test_what_is_odd_in_arrays_is_counted(tmp_path: Path) -> None:
    waves, label = WAVES.copy(), np.arange(40) / 10
    waves[3, 0, 0], waves[4, 1, 2], label[7] = np.nan, np.inf, np.nan
    np.savez(tmp_path / "a.npz", wave=waves, label=label, extra=WAVES)
    packed, items = add(tmp_path / "a.npz", drop=["extra"])
    assert packed.contents.notes == ["wave: 2 items have NaN or infinite values; they are used"]
    assert [(one.reason, one.count) for one in packed.contents.left_out] == [("no label", 1)]
    assert (len(items), items.name(7), items.labels()[7]) == (39, "item 8 of waves@1", 0.8)
    assert np.array_equal(items.read(7)["wave"], waves[8])


def test_unlabelled_arrays_are_said_to_be(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", WAVES)
    packed, items = add(tmp_path / "a.npy", source="none")
    assert (packed.label, items.label_kind, items.inputs) == ("", "", ("input",))
    with pytest.raises(DatasetError, match=r"which array of a\.npy is the label.*--unlabelled"):
        add(tmp_path / "a.npy")


@pytest.mark.parametrize("fixed", [True, False])
def test_columns_of_lists_in_parquet_are_tensors(fixed: bool, tmp_path: Path) -> None:
    inner = pa.list_(pa.float32(), 8 if fixed else -1)
    column = pa.array(WAVES.tolist(), pa.list_(inner, 2 if fixed else -1))
    table = pa.table({"wave": column, "label": CLASSES, "site": [i % 2 for i in range(40)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    packed, items = add(tmp_path / "a.parquet")
    assert packed.sites == {"0": 20, "1": 20}
    assert np.array_equal(items.read(39)["wave"], WAVES[39])
    assert items.labels().tolist() == CLASSES


def test_parquet_of_numbers_alone_is_a_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2], "b": [0, 1]}), tmp_path / "a.parquet")
    assert not uploads.is_items(tmp_path / "a.parquet")


def parquet(**columns: pa.Array) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


REFUSED = {
    "lists of several lengths": (parquet(x=pa.array([[1, 2], [3]])), "'x' has lists of several"),
    "a missing list": (parquet(x=pa.array([[1, 2], None])), "'x' has lists of several"),
    "a missing number": (parquet(x=pa.array([[1, None]])), "'x' has no tensors"),
    "lists of texts": (parquet(x=pa.array([["a"]])), "'x' has no tensors"),
    "complex numbers": (npz(z=np.zeros((3, 2), complex)), "'z': dtype complex128"),
    "a label that there is not": (npz(x=WAVES), "no array 'kind' for label"),
}


@pytest.mark.parametrize(("data", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_arrays_that_no_model_can_take_are_refused_by_name(
    data: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    roles = {"label": "kind"} if "kind" in words else {"source": "none"}
    with pytest.raises(DatasetError, match=words) as refused:
        pack_tensors(path, tmp_path / "out", "a.bin", Roles(**roles), [])
    assert refused.value.hint


def test_a_damaged_array_is_refused_by_name(tmp_path: Path) -> None:
    data = bytearray(npz(x=WAVES))
    data[500] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DatasetError, match=r"CRC-32 for file 'x\.npy'"):
        add(tmp_path / "a.npz", source="none")
