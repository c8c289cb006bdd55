"""`shoal-agent labels`: true labels of the device's rows. They never leave this device."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shoal import bundle
from shoal.agent.federated.io.row_buffer import BUFFER, Buffer, RowCounts, open_buffer
from shoal.agent.host.io.config import load
from shoal.agent.host.io.folder import LEARNING, MODELS, give
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.serving.engine import require_rows
from shoal.agent.serving.io.row_table import read_table
from shoal.agent.serving.labels import class_indices, number
from shoal.errors import AbsentError, DatasetError, SettingError
from shoal.manifest import Manifest
from shoal.preparation import Preparation

#: Rows prepared and written at once.
_BATCH = 1_000
_TABLES = (".csv", ".gz", ".parquet")


def add(folder: Path, given: Sequence[str], column: str, model: str) -> str:
    """Import tables and ID=LABEL pairs; lines for the user.

    column   of a table, with the true class or value; model: "" for the only one that serves
    """
    tables = [text for text in given if Path(text).suffix in _TABLES and "=" not in text]
    pairs = [text for text in given if text not in tables]
    for text in pairs:
        if "=" not in text or text.startswith("="):
            hint = "name a .csv or .parquet file, or write ID=LABEL"
            raise SettingError(f"{text!r} is neither", hint)
    buffer = _open(folder)
    lines = [_add_table(folder, buffer, Path(text), column, model) for text in tables]
    if pairs:
        lines.append(_add_pairs(folder, buffer, pairs, model))
    buffer.trim()
    buffer.close()
    return "\n".join(lines)


def held(folder: Path) -> list[RowCounts]:
    """The rows kept on this device."""
    with contextlib.closing(_open(folder)) as buffer:
        return buffer.held()


def clear(folder: Path, model: str) -> int:
    """Delete the rows of a model, or all; number of them."""
    with contextlib.closing(_open(folder)) as buffer:
        return buffer.clear(model)


def text_of(rows: Sequence[RowCounts]) -> str:
    """A line a model, and one for each label."""
    lines = []
    for one in rows:
        count = sum(one.labels.values())
        lines.append(f"{one.model}: {count} labelled rows, {one.without} without, {one.bytes} B")
        lines += [f"  {label}: {number}" for label, number in sorted(one.labels.items())]
    return "\n".join(lines) or "no rows are kept on this device for training"


def _open(folder: Path) -> Buffer:
    here = folder / LEARNING
    buffer = open_buffer(here, load(folder).learning)
    give(folder, [here, *here.glob(f"{BUFFER}*")])
    return buffer


def _add_table(folder: Path, buffer: Buffer, path: Path, column: str, model: str) -> str:
    manifest = _manifest(folder, model)
    table = read_table(path, column, hint="name the one with the true class: --column NAME")
    assert table.labels is not None
    _check(manifest, table.labels, str(path))
    features = [f.name for f in manifest.features]
    work, kept = Preparation(manifest.pipeline, features), 0
    for start in range(0, len(table.values), _BATCH):
        part = slice(start, start + _BATCH)
        prepared = work.rows(0.0, table.columns, table.values[part])
        labels = [table.labels[start + i] for i in prepared.source_rows]
        valid = np.isfinite(prepared.values).all(axis=1)
        chosen = [labels[i] for i in np.flatnonzero(valid)]
        buffer.add(manifest.model, features, prepared.values[valid], chosen)
        buffer.flush()
        kept += len(chosen)
    if not kept:
        raise DatasetError(
            f"{path}: no row has every value that {manifest.release} reads",
            f"its columns are: {', '.join(table.columns[:20])}",
        )
    left = len(table.values) - kept
    out = f", {left} left out: a value is missing" if left else ""
    return f"{path}: {kept} rows of {manifest.model}{out}"


def _add_pairs(folder: Path, buffer: Buffer, pairs: Sequence[str], model: str) -> str:
    manifest = _manifest(folder, model)
    named = [(key, label) for key, _, label in (text.rpartition("=") for text in pairs)]
    _check(manifest, [label for _, label in named], "the command line")
    unknown = [key for key, label in named if not buffer.label(key, label)]
    if unknown:
        hint = 'set learning.keep = "served" in agent.toml, and ask with an "id"'
        raise AbsentError("row served under id", ", ".join(unknown[:5]), hint)
    return f"{len(named)} rows labelled"


def _check(manifest: Manifest, labels: Sequence[str], where: str) -> None:
    """DatasetError names the first label that the model does not know."""
    for label in dict.fromkeys(labels):
        if manifest.labels and class_indices(manifest.labels, [label])[0] < 0:
            known = ", ".join(manifest.labels[:20])
            raise DatasetError(f"{where}: {manifest.model} knows no {label!r}", f"it knows {known}")
        if not manifest.labels and not np.isfinite(number(label)):
            raise DatasetError(f"{where}: {label!r} is no number", "a value is wanted")


def _manifest(folder: Path, model: str) -> Manifest:
    """Manifest of the serving release, which defines columns and classes.

    InputError when it takes tensors, which have neither.
    """
    slots = DiskSlots(folder / MODELS)
    found = {slot.model: slot for slot in slots.found()}
    if model and model not in found:
        raise AbsentError("release that serves", model, f"there are: {', '.join(found) or 'none'}")
    if not model and len(found) != 1:
        there = ", ".join(found) or "none"
        raise AbsentError("single model", there, "roll one out, or name it with --model")
    slot = found[model or next(iter(found))]
    manifest = bundle.read_manifest(slots.path(slot.model, slot.slot))
    require_rows(manifest)
    return manifest
