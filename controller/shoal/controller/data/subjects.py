"""Rows of a table that are about one subject: found, and left out of a next version."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from shoal.controller.data import csv_detection, datasets, masking_policy, table_files
from shoal.controller.data.masking import KeyOf, Masker, as_texts, canonical
from shoal.controller.data.masking_policy import Hash, Keep
from shoal.controller.data.records import TABLE, DatasetVersion
from shoal.controller.data.stored_tables import StoredTable, TableWriter
from shoal.controller.host.context import Context
from shoal.errors import ConflictError, DatasetError

Rows = npt.NDArray[np.bool_]


def rows_of(ctx: Context, version: DatasetVersion, column: str, value: str, keys: KeyOf) -> Rows:
    """Rows, shape (n,), that have a value in a column; of one that is hashed, its hash.

    DatasetError where that cannot be known: for items, without the column, or where it was masked
    so that several subjects share a value, or with a key that is gone. No error has the value.
    """
    if version.kind != TABLE:
        raise DatasetError(f"{version.ref} is a dataset of {version.kind}: only rows have subjects")
    if column not in [c.name for c in version.columns]:
        known = ", ".join(c.name for c in version.columns[:20])
        raise DatasetError(f"{version.ref} stores no column {column!r:.100}", f"there are: {known}")
    wanted = {canonical(value), *_hash_of(version, column, value, keys)} - {""}
    with open_table(ctx, version) as table:
        return as_texts(table[column]).isin(wanted).to_numpy(bool)


def add_without(ctx: Context, version: DatasetVersion, rows: Rows, *, actor: str) -> DatasetVersion:
    """The next version of a table, without some rows, shape (n,); as `datasets.add_dataset`."""
    dropped = [c.name for c in version.columns if c.role == "dropped"]
    with tempfile.NamedTemporaryFile(dir=datasets.uploads(ctx), suffix=".parquet") as file:
        with open_table(ctx, version) as table, TableWriter(Path(file.name)) as writer:
            for part in table.parts_without(rows):
                writer.write_batch(part)
        if rows.all():
            raise DatasetError(f"{version.ref} has rows of this subject alone", "delete it")
        return datasets.add_dataset(
            ctx, actor=actor, path=Path(file.name), filename=version.ref, name=version.name,
            label=version.label, site=version.site, split=version.split, drop=dropped,
            parents=[version.ref], how="a subject's rows were erased",
            unlabelled=not version.label, masking=version.masking,
        )  # fmt: skip


@contextmanager
def open_table(ctx: Context, version: DatasetVersion) -> Iterator[StoredTable]:
    """The table of a version; one that is stored as it was uploaded is read first.

    ConflictError where its rows were erased.
    """
    datasets.check_kept(version)
    path = ctx.blobs.path(version.sha256)
    if version.content_sha256:
        with StoredTable(path) as table:
            yield table
        return
    how = replace(version.csv or csv_detection.wanted(), thousands="", uneven=0)
    with tempfile.NamedTemporaryFile(dir=datasets.uploads(ctx), suffix=".parquet") as file:
        target = Path(file.name)
        table_files.store_table(path, version.ref, how, target)
        with StoredTable(target) as table:
            yield table


def _hash_of(version: DatasetVersion, column: str, value: str, keys: KeyOf) -> list[str]:
    """What the value is stored as, if the column is hashed."""
    if version.masking is None:
        return []
    masker = Masker(masking_policy.parse(version.masking.policy), keys)
    rule = masker.policy.columns.get(column, Keep())
    if isinstance(rule, Keep):
        return []
    kind = masking_policy.kind_of(rule)
    if not isinstance(rule, Hash):
        raise DatasetError(
            f"{column!r} of {version.ref} is masked by {kind!r}, which several subjects may share",
            "name a column that tells subjects apart",
        )
    known = next(one.key for one in version.masking.columns if one.name == column)
    if masker.key_id(rule) != known:
        raise ConflictError(
            f"key {rule.key!r} is not the one that {column!r} of {version.ref} was hashed with",
            f"without it nobody can tell whose rows they are; put {known}… back, or give the hash",
        )
    return [masker.hashed(column, value)]
