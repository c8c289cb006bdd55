"""Compare two versions of tables."""

from shoal.controller.data import datasets
from shoal.controller.data.records import TABLE, DatasetDiff, DatasetVersion
from shoal.controller.data.subjects import open_table
from shoal.controller.data.table_diff import diff_tables
from shoal.controller.host.context import Context
from shoal.errors import AbsentError, DatasetError


def compare(ctx: Context, ref: str, before: str = "") -> DatasetDiff:
    """What changed from one version to another.

    before   "name@version" or "name"; "" for the version of the same name before it

    AbsentError for a version that there is not, DatasetError for items.
    """
    after = datasets.get_dataset(ctx, ref)
    first = datasets.get_dataset(ctx, before) if before else _one_before(ctx, after)
    for one in (first, after):
        if one.kind != TABLE:
            raise DatasetError(
                f"{one.ref} is a dataset of {one.kind}: only tables are compared",
                f"see what it holds: shoal dataset show {one.ref}",
            )
    with open_table(ctx, first) as old, open_table(ctx, after) as new:
        found = diff_tables(old, new, first.columns, after.columns)
    return DatasetDiff(before=first.ref, after=after.ref, table=found)


def _one_before(ctx: Context, version: DatasetVersion) -> DatasetVersion:
    found, _ = datasets.page(ctx, name=version.name, limit=200)
    if older := [one for one in found if one.version < version.version]:
        return max(older, key=lambda one: one.version)
    raise AbsentError(
        "dataset", f"before {version.ref}",
        f"name what to compare with: shoal dataset diff NAME@N {version.ref}",
    )  # fmt: skip
