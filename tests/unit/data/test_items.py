"""Items of .npz and .npy files: read one by one, labelled or not, split alike at every time."""

import io
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shoal.controller.data.items import Items
from shoal.controller.data.open_items import open_items
from shoal.errors import DatasetError

WAVES = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
CLASSES = np.array(["hum", "click", "click", "hum"] * 10)


def npz(path: Path, save: Callable[..., None] = np.savez, **arrays: np.ndarray) -> Items:
    save(path, **arrays)
    return open_items(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_items_are_read_one_by_one_with_their_labels_and_sites(
    save: Callable[..., None], tmp_path: Path
) -> None:
    texts = np.array([f"part {i}" for i in range(40)])
    items = npz(
        tmp_path / "a.npz", save, wave=WAVES, text=texts, label=CLASSES, site=np.arange(40) % 2
    )
    assert (len(items), items.inputs, items.kind) == (40, ("wave", "text"), "tensors")
    assert (items.label_kind, items.classes) == ("classes", ["click", "hum"])
    item = items.read(7)
    assert np.array_equal(item["wave"], WAVES[7])
    assert item["text"] == "part 7"
    assert Counter(items.labels().tolist()) == {"hum": 20, "click": 20}
    assert Counter(items.sites().tolist()) == {"0": 20, "1": 20}


def test_an_array_in_columns_first_order_and_one_of_no_elements_are_read(tmp_path: Path) -> None:
    columns = np.asfortranarray(WAVES)
    items = npz(tmp_path / "a.npz", x=columns, empty=np.zeros((40, 0), np.int8))
    assert np.array_equal(items.read(3)["x"], WAVES[3])
    assert items.read(3)["empty"].shape == (0,)


def test_a_single_array_is_the_input_of_unlabelled_items(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", WAVES)
    items = open_items(tmp_path / "x.npy")
    assert np.array_equal(items.read(39)["input"], WAVES[39])
    with pytest.raises(DatasetError, match=r"x.npy has no labels"):
        items.labels()


def test_labels_that_are_numbers_stay_numbers(tmp_path: Path) -> None:
    targets = WAVES[:, :2].astype(np.float64)
    items = npz(tmp_path / "a.npz", x=WAVES, label=targets)
    assert items.label_kind == "numbers"
    assert np.array_equal(items.labels(), targets)


def test_the_split_is_the_same_each_time_and_has_each_class_on_both_sides(tmp_path: Path) -> None:
    items = npz(tmp_path / "a.npz", x=WAVES, label=CLASSES)
    train, held = items.split(seed=1, holdout=0.25)
    assert sorted([*train, *held]) == list(range(40))
    assert Counter(CLASSES[held]) == {"hum": 5, "click": 5}
    assert np.array_equal(items.split(1, 0.25)[1], held)
    assert not np.array_equal(items.split(2, 0.25)[1], held)


def test_items_of_a_group_stay_together(tmp_path: Path) -> None:
    batch = np.repeat(np.arange(8), 5)
    items = npz(tmp_path / "a.npz", x=WAVES, label=CLASSES, split=batch)
    train, held = items.split(seed=0, holdout=0.25)
    assert set(batch[train]).isdisjoint(batch[held])
    assert len(held) == 10


def test_parts_that_a_person_named_train_and_test_are_kept(tmp_path: Path) -> None:
    parts = np.array(["test", "train", "Train", "val"] * 10)
    items = npz(tmp_path / "a.npz", x=WAVES, split=parts)
    _, held = items.split(seed=0, holdout=0.2)
    assert set(parts[held]) == {"test", "val"}
    assert len(held) == 20


def without_its_elements() -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1 << 20)}
    )
    return file.getvalue()


def members(**data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in data.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def saved(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


HOSTILE = {
    "an array that says it is huge": (members(x=without_its_elements()), "other than"),
    "a file that says it is huge": (without_its_elements(), "other than"),
    "a pickle": (saved(x=np.array([{}], object)), "holds objects"),
    "no array": (members(), "no arrays"),
    "no file of arrays": (b"PK and nothing more", "cannot be read"),
    "a torn file": (saved(x=WAVES)[:900], "cannot be read"),
    "no items": (saved(x=WAVES[:0]), "no items in common"),
    "other numbers of items": (saved(x=WAVES, label=CLASSES[:5]), r"x \[40, 8\], label \[5\]"),
    "a number alone": (saved(x=np.array(3)), "no axis"),
    "sites of two axes": (saved(x=WAVES, site=WAVES), "'site' is float32"),
}


@pytest.mark.parametrize(("data", "words"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_that_is_no_set_of_items_is_refused_by_name(
    data: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=words) as refused:
        open_items(path)
    assert "bad.npz" in refused.value.message
    assert refused.value.hint


def test_a_file_that_unpacks_to_more_than_is_read_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((1000, 1000)))
    with pytest.raises(DatasetError, match="7 MiB"):
        open_items(tmp_path / "bomb.npz", limit=1 << 20)
