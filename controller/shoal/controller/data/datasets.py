"""Datasets: immutable and versioned, with roles and lineage."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Connection, Row, func, select

from shoal import manifest
from shoal.controller.access import audit
from shoal.controller.data import csv_detection, frames
from shoal.controller.data.records import TABLE, CsvFormat, DatasetVersion, LeftOut
from shoal.controller.host.context import Blob, Context
from shoal.controller.store import changes, used_versions
from shoal.controller.store.tables import dataset
from shoal.errors import AbsentError, DatasetError, SettingError

if TYPE_CHECKING:
    import pandas as pd

LIMIT = 1 << 30  # bytes of an uploaded file


def add_dataset(
    ctx: Context,
    *,
    actor: str,
    path: Path,
    filename: str,
    name: str,
    label: str,
    site: str = "",
    split: str = "",
    drop: Sequence[str] = (),
    parents: Sequence[str] = (),
    how: str = "uploaded",
    unlabelled: bool = False,
    csv: CsvFormat | None = None,
) -> DatasetVersion:
    """Register the table at `path` as the next version of `name`.

    filename   original name, for error messages
    site, split   columns; rows with the same `split` value stay in the same part of a split
    parents    "name@version" of the datasets it was derived from, and `how`
    unlabelled   it has no label, and `label` is ""
    csv        as of `csv_detection.wanted`; what is "" in it, or None, is detected

    The same bytes with the same roles, read alike, are the existing version, not a new one.
    DatasetError, with a hint, for a file that cannot be a dataset.
    """
    check_name(name)
    frame, csv, left_out = frames.read_table(path, filename, csv or csv_detection.wanted())
    columns = frames.describe(
        frame, label=label, site=site, split=split, drop=drop, unlabelled=unlabelled
    )
    for reason, rows in frames.left_out(frame, columns).items():
        left_out += [LeftOut(reason=reason, count=int(rows.sum()))] if rows.any() else []
    values = {
        "rows": len(frame), "columns": msgspec.to_builtins(columns), "label": label,
        "site": site, "split": split, "sites": _sites(frame, site), "how": how,
        "csv": msgspec.to_builtins(csv), "left_out": msgspec.to_builtins(left_out),
        "duplicates": frames.duplicates(frame),
    }  # fmt: skip
    parents = [get_dataset(ctx, parent).ref for parent in parents]
    return register(
        ctx, actor=actor, name=name, blob=ctx.blobs.put_file(path, LIMIT), parents=parents,
        values=values, same=("kind", "columns", "csv"),
    )  # fmt: skip


def register(
    ctx: Context,
    *,
    actor: str,
    name: str,
    blob: Blob,
    parents: Sequence[str],
    values: Mapping[str, Any],
    same: Sequence[str],
) -> DatasetVersion:
    """Store a version of `name`, or find the existing one with the same bytes.

    parents   "name@version" each
    values    other columns of the table `dataset`, as builtins
    same      those in which versions of the same bytes differ
    """
    none: dict[str, Any] = {"contents": None, "csv": None, "left_out": [], "duplicates": 0}
    values = {"kind": TABLE, **none} | dict(values)
    with ctx.store.write() as db:
        alike = {column: values[column] for column in same}
        if (found := _same(db, name, blob.sha256, alike)) is not None:
            return found
        version = _latest(db, name) + 1
        db.execute(
            dataset.insert().values(
                name=name, version=version, sha256=blob.sha256, size=blob.size,
                parents=list(parents), created_at=ctx.clock(), created_by=actor, **values,
            )
        )  # fmt: skip
        ref = f"{name}@{version}"
        audit.record(db, ctx, actor, "dataset.add", ref, sha256=blob.sha256, parents=list(parents))
        changes.note(db, ctx, "dataset", ref)
    return get_dataset(ctx, ref)


def list_datasets(ctx: Context) -> list[DatasetVersion]:
    """Every version, newest first."""
    newest = select(dataset).order_by(dataset.c.created_at.desc(), dataset.c.version.desc())
    with ctx.store.read() as db:
        return [_record(row) for row in db.execute(newest)]


def list_labelled_tables(ctx: Context) -> list[DatasetVersion]:
    """The versions that `get_labelled_table` finds, newest first."""
    return [one for one in list_datasets(ctx) if one.kind == TABLE and one.label]


def get_dataset(ctx: Context, ref: str) -> DatasetVersion:
    """ "name@version", or "name" for its newest version; AbsentError if it does not exist."""
    name, at, version = ref.partition("@")
    query = select(dataset).where(dataset.c.name == name).order_by(dataset.c.version.desc())
    if at:
        if not manifest.is_version(version):
            raise SettingError(
                f"dataset {ref!r:.200}", "write it as name@version, such as stations@2"
            )
        query = query.where(dataset.c.version == int(version))
    with ctx.store.read() as db:
        row = db.execute(query.limit(1)).first()
    if row is None:
        raise AbsentError("dataset", ref, "list them: shoal dataset list")
    return _record(row)


def get_labelled_table(ctx: Context, ref: str) -> DatasetVersion:
    """A table with a label, as training and imports of rows need it; DatasetError for another."""
    found = get_dataset(ctx, ref)
    if found.kind != TABLE:
        raise DatasetError(
            f"{found.ref} is a dataset of {found.kind}, not a table of rows",
            "models of rows need a table: shoal dataset add FILE.csv --name NAME --label COLUMN; "
            "an import with --task tensors takes it",
        )
    if not found.label:
        raise DatasetError(
            f"{found.ref} has no label",
            f"add it with one: shoal dataset add FILE --name {found.name} --label COLUMN",
        )
    return found


def check_name(name: str) -> None:
    try:
        manifest.check_model(name)
    except SettingError as error:
        raise SettingError(f"dataset name {name!r}", error.hint) from error


def _sites(frame: "pd.DataFrame", site: str) -> dict[str, int]:
    if not site:
        return {}
    found = frame[site].value_counts(dropna=False)
    if len(found) > frames.MAX_COLUMNS:
        raise DatasetError(f"site column {site!r} has {len(found)} values", "is it really a site?")
    counts: dict[str, int] = {}
    for name, count in zip(frames.names_of(found.index.to_series()), found, strict=True):
        counts[str(name)] = counts.get(str(name), 0) + int(count)
    return dict(sorted(counts.items()))


def _latest(db: Connection, name: str) -> int:
    """The highest version that was ever used; 0 for none."""
    known = db.scalar(select(func.max(dataset.c.version)).where(dataset.c.name == name)) or 0
    return max(known, used_versions.newest(db, "dataset", name))


def _same(
    db: Connection, name: str, sha256: str, alike: Mapping[str, Any]
) -> DatasetVersion | None:
    query = select(dataset).where(dataset.c.name == name, dataset.c.sha256 == sha256)
    for row in db.execute(query):
        # Nothing is kept of how the oldest versions were read.
        if all(row._mapping[column] in (value, None) for column, value in alike.items()):
            return _record(row)
    return None


def _record(row: Row[Any]) -> DatasetVersion:
    columns = {str(name): value for name, value in row._mapping.items()}
    return msgspec.convert(columns, DatasetVersion)
