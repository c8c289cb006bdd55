"""Stored datasets of tensors: a .npz that is not compressed, so that its arrays are mapped.

Made of .npz, .npy and Parquet files; `label`, `site` and `split` are arrays of those names.
"""

import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from shoal.controller.data import array_files, splits
from shoal.controller.data.array_files import (
    INPUT,
    LABEL,
    SITE,
    SPLIT,
    UNREADABLE,
    ArrayItems,
    StoredArray,
)  # fmt: skip
from shoal.controller.data.frames import MAX_COLUMNS, in_order
from shoal.controller.data.item_labels import NONE, Roles
from shoal.controller.data.packs import PackWriter
from shoal.controller.data.parquet_tensors import is_parquet, write_parquet
from shoal.controller.data.records import Contents, InputSummary, LeftOut, Packed
from shoal.errors import DatasetError, InputError
from shoal.tensors import Array, datatype_of

#: Classes whose counts are kept, and bytes of an array that are looked at at once.
_MOST_CLASSES, _CHUNK = 1_000, 16 << 20


def pack_tensors(
    path: Path, target: Path, source: str, roles: Roles, drop: Sequence[str]
) -> Packed:
    """Write the arrays of a .npz, .npy or Parquet file to `target`.

    drop   arrays that are left out

    DatasetError, naming `source`, for a file or array that cannot be read or has no datatype of
    the Open Inference Protocol, and for labels that are missing.
    """
    with PackWriter(target) as writer:
        if is_parquet(path):
            write_parquet(path, source, writer, lambda known: _names(known, source, roles, drop))
        else:
            stored = array_files.read_headers(path, source)
            stored = {name or INPUT: array for name, array in stored.items()}
            for name, new in _names(list(stored), source, roles, drop).items():
                _copy(stored[name], name, new, source, writer)
    items = array_files.open_arrays(target, source)
    if not items.label_kind and roles.source != NONE:
        raise DatasetError(
            f"which array of {source} is the label? It has: {', '.join(items.inputs[:20])}",
            "name it with --label, or say --unlabelled",
        )
    return _packed(items)


def _names(known: Sequence[str], source: str, roles: Roles, drop: Sequence[str]) -> dict[str, str]:
    """Names in the stored file by names in the given one, of those that are taken."""
    given = {LABEL: roles.label, SITE: roles.site, SPLIT: roles.split}
    for role, name in [*given.items(), *(("drop", name) for name in drop)]:
        if name and name not in known:
            raise DatasetError(
                f"{source} has no array {name!r} for {role}",
                f"there are: {', '.join(list(known)[:20])}",
            )
    renamed = {name: role for role, name in given.items() if name}
    shadowed = set(renamed.values()) - set(renamed)
    left = set(drop) | shadowed | ({LABEL} if roles.source == NONE else set())
    return {name: renamed.get(name, name) for name in known if name not in left}


def _copy(array: StoredArray, name: str, new: str, source: str, writer: PackWriter) -> None:
    """Copy an array; its bytes are checked against those that the archive says."""
    try:
        datatype_of(np.zeros(0, array.dtype))
    except InputError as error:
        raise DatasetError(f"{source}: array {name!r}: {error.message}", "leave it out") from error
    try:
        with writer.open(f"{new}.npy") as out:
            if not array.member:
                with array.path.open("rb") as file:
                    shutil.copyfileobj(file, out, _CHUNK)
                return
            with zipfile.ZipFile(array.path) as archive, archive.open(array.member) as member:
                shutil.copyfileobj(member, out, _CHUNK)
    except UNREADABLE as error:
        raise DatasetError(
            f"{source}: array {name!r} cannot be read: {error!s:.200}",
            "write the file again with numpy.savez",
        ) from error


def _packed(items: ArrayItems) -> Packed:
    groups = items.groups()
    sites = Counter(items.sites().tolist())
    if len(sites) > MAX_COLUMNS:
        raise DatasetError(f"the site array has {len(sites)} values", "is it really a site?")
    labels = items.labels() if items.label_kind else np.zeros(0)
    numbers = labels if items.label_kind == "numbers" else np.zeros(0)
    counts = Counter(labels.tolist()) if items.label_kind == "classes" else {}
    by_part = splits.parts_of(groups) if groups is not None else None
    parts = dict(Counter(groups.tolist())) if groups is not None and by_part is not None else {}
    missing = items.unlabelled
    return Packed(
        kind="tensors",
        count=len(items),
        label=LABEL if items.label_kind else "",
        site=SITE if items.has_sites else "",
        split=SPLIT if groups is not None else "",
        sites={name: sites[name] for name in in_order(sites)} if items.has_sites else {},
        contents=Contents(
            inputs=[_summary(name, items.array(name)) for name in items.inputs],
            label_kind=items.label_kind,
            classes={name: counts[name] for name in in_order(counts)[:_MOST_CLASSES]},
            low=float(numbers.min()) if numbers.size else None,
            high=float(numbers.max()) if numbers.size else None,
            parts=parts,
            groups=0 if groups is None else len(np.unique(groups)),
            left_out=[LeftOut(reason="no label", count=missing)] if missing else [],
            notes=list(_notes(items, labels, parts)),
        ),
    )


def _summary(name: str, array: Array) -> InputSummary:
    shape = list(array.shape[1:])
    return InputSummary(name=name, datatype=datatype_of(array), low=shape, high=shape)


def _notes(items: ArrayItems, labels: Array, parts: dict[str, int]) -> Iterator[str]:
    for name in items.inputs:
        if count := _not_finite(items.array(name)):
            yield f"{name}: {count} items have NaN or infinite values; they are used"
    if parts:
        held = ", ".join(f"{name} {count}" for name, count in parts.items())
        yield f"parts named by you ({held}): all but train is held back"
    if items.label_kind == "classes" and all(str(one).lstrip("-").isdigit() for one in labels):
        yield f"labels are whole numbers, taken for {len(items.classes)} classes"
    if items.label_kind == "numbers" and labels.dtype.kind in "iu":
        yield "labels are whole numbers of many values, taken for numbers"


def _not_finite(array: Array) -> int:
    """Items with a value that is NaN or infinite."""
    if array.dtype.kind != "f" or not array.size:
        return 0
    step = max(_CHUNK // max(array[0].nbytes, 1), 1)
    found = 0
    for at in range(0, len(array), step):
        finite = np.isfinite(array[at : at + step])
        found += int(np.logical_not(finite.reshape(len(finite), -1).all(axis=1)).sum())
    return found
