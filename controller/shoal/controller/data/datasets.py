"""Datasets: immutable and versioned, with roles and lineage."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace
from sqlalchemy import ColumnElement, Connection, Row, Text, and_, cast, func, or_, select

from shoal import manifest
from shoal.controller.access import audit
from shoal.controller.data import cleaning, csv_detection, frames, table_files
from shoal.controller.data.cleaning import Mask
from shoal.controller.data.masking import Masker
from shoal.controller.data.records import (
    TABLE,
    CleaningReport,
    CsvFormat,
    DatasetVersion,
    LeftOut,
    Masking,
)
from shoal.controller.data.stored_tables import StoredTable, hash_table
from shoal.controller.host.context import Blob, Context
from shoal.controller.store import changes, used_versions
from shoal.controller.store.paging import Orders, has_text, page_of
from shoal.controller.store.records import Page
from shoal.controller.store.tables import dataset
from shoal.errors import AbsentError, ConflictError, DatasetError, SettingError

_ORDERS: Orders = {
    "created": (dataset.c.created_at, dataset.c.name, dataset.c.version),
    "name": (dataset.c.name, dataset.c.version),
    "rows": (dataset.c.rows, dataset.c.name, dataset.c.version),
    "size": (dataset.c.size, dataset.c.name, dataset.c.version),
}
LIMIT = 1 << 30  # bytes of an uploaded file
#: Columns of a record; a report is read by itself.
_FIELDS = [column for column in dataset.c if column.name != "report"]


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
    masker: Masker | None = None,
    masking: Masking | None = None,
) -> DatasetVersion:
    """Register the table at `path` as the next version of `name`.

    filename   original name, for error messages
    site, split   columns; rows with the same `split` value stay in the same part of a split
    parents    "name@version" of the datasets it was derived from, and `how`
    unlabelled   it has no label, and `label` is ""
    csv        as of `csv_detection.wanted`; what is "" in it, or None, is detected
    masker     masks the table before anything of it is stored, or said
    masking    how it was masked already, as the version that it was made from

    It is stored as typed Parquet. The same rows with the same roles are the existing version, not
    a new one; `same_as` of the answer says so, and names another version that has the same rows.
    DatasetError, with a hint, for a file that cannot be a dataset.
    """
    check_name(name)
    parents = [get_dataset(ctx, parent).ref for parent in parents]
    with tempfile.NamedTemporaryFile(dir=uploads(ctx), suffix=".parquet") as file:
        target = Path(file.name)
        asked = csv or csv_detection.wanted()
        reading = table_files.store_table(path, filename, asked, target, masker)
        masking = masker.outcome() if masker else masking
        drop = _still_there(masking, drop, label=label, site=site, split=split)
        with StoredTable(target) as table:
            columns = frames.describe(
                table, label=label, site=site, split=split, drop=drop, unlabelled=unlabelled
            )
            features = [c.name for c in columns if c.role == "feature"]
            hashes = hash_table(table, features)
            unused = frames.left_out(table, columns)
            left_out = _left_out(unused, reading)
            report = cleaning.examine(table, columns, hashes, left_out, unused, masking)
            values = {
                "rows": len(table), "columns": msgspec.to_builtins(columns), "label": label,
                "site": site, "split": split, "sites": _sites(table, site), "how": how,
                "csv": msgspec.to_builtins(reading.how),
                "left_out": msgspec.to_builtins(left_out),
                "duplicates": int(cleaning.duplicates_of(hashes.rows).sum()),
                "content_sha256": hashes.content,
                "report": msgspec.to_builtins(report), "masking": msgspec.to_builtins(masking),
            }  # fmt: skip
        if masker is None and (found := _first_of_file(ctx, name, path, values)):
            return replace(found, same_as=found.ref)
        blob = ctx.blobs.put_file(target, LIMIT)
    return register(
        ctx, actor=actor, name=name, blob=blob, parents=parents, values=values,
        same=("kind", "columns", "masking"),
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
    """Store a version of `name`, or find the existing one with the same content.

    parents   "name@version" each
    values    other columns of the table `dataset`, as builtins
    same      those in which versions of the same content differ
    """
    none: dict[str, Any] = {
        "contents": None, "csv": None, "left_out": [], "duplicates": 0, "content_sha256": "",
        "report": None, "masking": None,
    }  # fmt: skip
    values = {"kind": TABLE, **none} | dict(values)
    with ctx.store.write() as db:
        alike = {column: values[column] for column in same}
        content = values["content_sha256"] or blob.sha256
        if (found := _same(db, name, content, alike)) is not None:
            return replace(found, same_as=found.ref)
        other = _holding(db, content)
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
    return replace(get_dataset(ctx, ref), same_as=other)


def list_datasets(ctx: Context) -> list[DatasetVersion]:
    """Every version, newest first."""
    newest = select(*_FIELDS).order_by(dataset.c.created_at.desc(), dataset.c.version.desc())
    with ctx.store.read() as db:
        return [_record(row) for row in db.execute(newest)]


def page(
    ctx: Context,
    *,
    name: str = "",
    kind: str = "",
    q: str = "",
    sort: str = "-created",
    cursor: str = "",
    limit: int = 50,
) -> tuple[list[DatasetVersion], Page]:
    """Versions that match every given filter, newest first unless `sort` says otherwise.

    name   of the dataset, exactly
    kind   "table", "images", "audio" or "tensors"
    q      part of "name@version", of the label or of who added it
    Raises InputError for an unknown order, an invalid limit or cursor.
    """
    mine = dataset.c
    wanted = [mine.kind == kind] if kind else []
    wanted += [mine.name == name] if name else []
    ref = mine.name + "@" + cast(mine.version, Text)
    wanted += has_text(q, ref, mine.label, mine.created_by)
    query = select(*_FIELDS).where(*wanted)
    with ctx.store.read() as db:
        rows, made = page_of(db, query, _ORDERS, sort=sort, cursor=cursor, limit=limit)
    return [_record(row) for row in rows], made


def versions_of(ctx: Context, name: str) -> list[DatasetVersion]:
    """All versions of a dataset, newest first; AbsentError for none."""
    query = select(*_FIELDS).where(dataset.c.name == name).order_by(dataset.c.version.desc())
    with ctx.store.read() as db:
        found = [_record(row) for row in db.execute(query)]
    if not found:
        raise AbsentError("dataset", name, "list them: shoal dataset list")
    return found


def check_kept(version: DatasetVersion) -> None:
    """ConflictError where a version's rows were erased."""
    if version.erased_at:
        raise ConflictError(
            f"the rows of {version.ref} were erased: a subject's were among them",
            f"take a later version: shoal dataset versions {version.name}",
        )


def list_labelled_tables(ctx: Context) -> list[DatasetVersion]:
    """The versions that `get_labelled_table` finds, newest first."""
    tables = [one for one in list_datasets(ctx) if one.kind == TABLE and one.label]
    return [one for one in tables if not one.erased_at]


def get_dataset(ctx: Context, ref: str) -> DatasetVersion:
    """ "name@version", or "name" for its newest version; AbsentError if it does not exist."""
    name, at, version = ref.partition("@")
    query = select(*_FIELDS).where(dataset.c.name == name).order_by(dataset.c.version.desc())
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


def get_report(ctx: Context, ref: str) -> CleaningReport:
    """What was found in a table when it was added, or now, for one from before it was looked for.

    DatasetError for items, AbsentError as get_dataset.
    """
    version = get_dataset(ctx, ref)
    if version.kind != TABLE:
        raise DatasetError(
            f"{version.ref} is a dataset of {version.kind}, not a table of rows",
            f"what was left out of it: shoal dataset show {version.ref}",
        )
    this = (dataset.c.name == version.name) & (dataset.c.version == version.version)
    with ctx.store.read() as db:
        kept = db.scalar(select(dataset.c.report).where(this))
    if kept is not None:
        return msgspec.convert(kept, CleaningReport)
    report = _examine_again(ctx, version)
    with ctx.store.write() as db:
        db.execute(dataset.update().where(this).values(report=msgspec.to_builtins(report)))
    return report


def _examine_again(ctx: Context, version: DatasetVersion) -> CleaningReport:
    check_kept(version)
    how = version.csv or csv_detection.wanted()
    with tempfile.NamedTemporaryFile(dir=uploads(ctx), suffix=".parquet") as file:
        target, path = Path(file.name), ctx.blobs.path(version.sha256)
        table_files.store_table(path, version.ref, replace(how, thousands="", uneven=0), target)
        with StoredTable(target) as table:
            hashes = hash_table(table, frames.features_of(version))
            unused = frames.left_out(table, version.columns)
            return cleaning.examine(table, version.columns, hashes, version.left_out, unused)


def uploads(ctx: Context) -> Path:
    """The folder of files that are being read."""
    folder = ctx.folder / "uploads"  # which is emptied at a start
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


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
    check_kept(found)
    return found


def check_name(name: str) -> None:
    try:
        manifest.check_model(name)
    except SettingError as error:
        raise SettingError(f"dataset name {name!r}", error.hint) from error


def _sites(frame: StoredTable, site: str) -> dict[str, int]:
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
    db: Connection, name: str, content: str, alike: Mapping[str, Any]
) -> DatasetVersion | None:
    kept = dataset.c.erased_at == 0
    query = select(*_FIELDS).where(dataset.c.name == name, kept, _holds(content))
    for row in db.execute(query):
        found = row._mapping
        # Nothing is kept of how the oldest versions were read.
        if all(found[c] == v or (c == "csv" and found[c] is None) for c, v in alike.items()):
            return _record(row)
    return None


def _holds(content: str) -> ColumnElement[bool]:
    """Items are known by their file, tables by their rows."""
    return or_(
        dataset.c.content_sha256 == content,
        and_(dataset.c.content_sha256 == "", dataset.c.sha256 == content),
    )


def _holding(db: Connection, content: str) -> str:
    """The first version that holds the same, with other roles or another name; "" for none."""
    kept = dataset.c.erased_at == 0
    query = select(dataset.c.name, dataset.c.version).where(_holds(content), kept)
    row = db.execute(query.order_by(dataset.c.created_at).limit(1)).first()
    return "" if row is None else f"{row.name}@{row.version}"


def _first_of_file(
    ctx: Context, name: str, path: Path, values: Mapping[str, Any]
) -> DatasetVersion | None:
    """The version that is this very file: tables were once stored as they were uploaded."""
    old = (dataset.c.name == name) & (dataset.c.kind == TABLE) & (dataset.c.content_sha256 == "")
    with ctx.store.read() as db:
        if db.scalar(select(func.count()).where(old)) == 0:
            return None
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return _same(db, name, sha256, {key: values[key] for key in ("columns", "csv")})


def _still_there(masking: Masking | None, drop: Sequence[str], **roles: str) -> list[str]:
    """Those of `drop` that are stored; DatasetError for another role of what the policy drops."""
    gone = {one.name for one in masking.columns if one.rule == "drop"} if masking else set()
    for role, column in roles.items():
        if column in gone:
            raise DatasetError(
                f"column {column!r} is the {role}, and the masking policy drops it",
                f'give it another rule, such as: [columns.{column}] rule = "keep"',
            )
    return [column for column in drop if column not in gone]


def _left_out(unused: Mapping[str, Mask], reading: table_files.Reading) -> list[LeftOut]:
    counts = [
        LeftOut(reason=why, count=int(rows.sum())) for why, rows in unused.items() if rows.any()
    ]
    return reading.left_out + counts


def _record(row: Row[Any]) -> DatasetVersion:
    columns = {str(name): value for name, value in row._mapping.items()}
    return msgspec.convert(columns, DatasetVersion)
