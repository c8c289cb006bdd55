"""`shoal dataset`: tables for training, versioned by content."""

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Group

from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.deletion import deletion_of
from shoal.cli.render import Columns, JsonObject, card, instant, plain, size, table
from shoal.errors import SettingError


@click.group(cls=CommandGroup)
def dataset() -> None:
    """Datasets: register a table, show its versions and lineage."""


@dataset.command("add")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", required=True, help="Its name: lower-case letters, digits, hyphens.")
@click.option("--label", required=True, help="Column to predict.")
@click.option("--site", default="", help="Column with the site of a row.")
@click.option(
    "--split",
    default="",
    help="Group column: rows with the same value are held back together (batch, machine).",
)
@click.option("--drop", multiple=True, help="Column to exclude; may be repeated, or a,b,c.")
@click.option(
    "--parent", "parents", multiple=True, metavar="NAME@N", help="A version that it was made from."
)
@click.pass_obj
def add(
    session: Session, /, file: Path, drop: Sequence[str], parents: Sequence[str], **fields: str
) -> None:
    """Register FILE (CSV, also .gz; or Parquet) as the next version of a dataset.

    The same file with the same column roles is the same version: nothing is stored twice.

    \b
    Examples:
      shoal dataset add parts.csv --name parts --label ok --site plant
      shoal dataset add parts2.csv --name parts --label ok --parent parts@1
    """
    fields |= {"drop": ",".join(drop), "parents": ",".join(parents)}
    try:
        with file.open("rb") as content:
            made = session.api.upload(at("datasets"), {"file": (file.name, content)}, fields)
    except OSError as error:
        raise SettingError(f"{file}: {error.strerror}") from error
    session.show(made, lambda: f"{_ref(made)}: {made['rows']} rows, sha256 {made['sha256'][:16]}…")


@dataset.command("list")
@click.pass_obj
def list_datasets(session: Session) -> None:
    """List datasets, every version.

    \b
    Example:
      shoal dataset list
    """
    found = list(session.api.items(at("datasets")))
    columns: Columns = {
        "dataset": _ref,
        "rows": "rows",
        "size": lambda d: size(d["size"]),
        "label": "label",
        "site": "site",
        "split": "split",
        "made from": "parents",
        "how": "how",
        "when": lambda d: instant(d["created_at"]),
        "by": "created_by",
    }
    none = "no dataset; register one with: shoal dataset add FILE --name NAME --label COLUMN"
    session.show(found, lambda: table(found, columns, empty=none))


@dataset.command("show")
@click.argument("ref", metavar="NAME[@N]")
@click.pass_obj
def show_dataset(session: Session, ref: str) -> None:
    """Show one version (without @N the newest): lineage, columns, rows per site.

    \b
    Example:
      shoal dataset show parts@2
    """
    found = session.api.get(at("datasets", ref))
    session.show(found, lambda: _card(found))


dataset.add_command(
    deletion_of("datasets", "a version of a dataset", "shoal dataset delete stamps@1")
)


def _ref(dataset: JsonObject) -> str:
    return plain(f"{dataset['name']}@{dataset['version']}")


def _card(found: JsonObject) -> Group:
    about: Columns = {
        "dataset": _ref,
        "sha256": "sha256",
        "rows": "rows",
        "size": lambda d: size(d["size"]),
        "label": "label",
        "site": "site",
        "rows per site": "sites",
        "split": "split",
        "made from": "parents",
        "how": "how",
        "registered": lambda d: instant(d["created_at"]),
        "by": "created_by",
    }
    columns: Columns = {
        "column": "name",
        "role": "role",
        "type": "dtype",
        "missing": "missing",
        "low": "low",
        "high": "high",
        "values": lambda c: plain(c["values"][:12]),
    }
    return Group(card(found, about), "", table(found["columns"], columns, empty="no column"))
