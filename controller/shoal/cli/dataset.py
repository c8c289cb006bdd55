"""`shoal dataset`: tables, images, audio and tensors, versioned by content."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Group

from shoal.cli import dataset_contents
from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.deletion import deletion_of
from shoal.cli.folder_tar import FolderTar
from shoal.cli.options import confirm, listed, yes_option
from shoal.cli.render import Columns, JsonObject, card, instant, plain, size, table
from shoal.errors import SettingError

#: Seconds to wait for an answer: a hundred thousand images are each decoded.
_WAIT_S = 1_300.0


@click.group(cls=CommandGroup)
def dataset() -> None:
    """Datasets: register tables, images, audio, tensors; show versions and lineage."""


@dataset.command("add")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--name", required=True, help="Its name: lower-case letters, digits, hyphens.")
@click.option(
    "--kind",
    type=click.Choice(["table", "images", "audio", "tensors"]),
    help="What it holds. Default: found out by its content, and said.",
)
@click.option("--label", default="", help="Column to predict; or array, or column of labels.csv.")
@click.option(
    "--labels-from",
    type=click.Choice(["folders", "csv", "coco", "yolo"]),
    help="Where labels of images and sounds are. Default: found out, and said.",
)
@click.option("--unlabelled", is_flag=True, help="It has no labels.")
@click.option("--site", default="", help="Column or array with the site of a row or item.")
@click.option(
    "--split",
    default="",
    help="Group column: rows with the same value are held back together (batch, machine).",
)
@click.option("--drop", multiple=True, help="Column to exclude; may be repeated, or a,b,c.")
@click.option(
    "--parent", "parents", multiple=True, metavar="NAME@N", help="A version that it was made from."
)
@click.option("--separator", default="", help='Between values of a CSV file: , ";" | or tab.')
@click.option("--decimal", default="", help="Decimal mark of a CSV file, . or ,")
@click.option("--encoding", default="", help="Of a CSV file, such as utf-16, cp1252 or latin-1.")
@click.option("--skip", type=int, metavar="N", help="Lines of a CSV file before its header.")
@click.option(
    "--mask",
    "mask_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Masking policy, TOML: what is done to columns before the table is stored.",
)
@click.option("--mask-as", default="", metavar="NAME[@N]", help="Mask as that version was masked.")
@click.option("--no-mask", is_flag=True, help="Mask nothing, though the version before was masked.")
@click.pass_obj
def add(
    session: Session,
    /,
    path: Path,
    drop: Sequence[str],
    parents: Sequence[str],
    unlabelled: bool,
    mask_file: Path | None,
    no_mask: bool,
    **given: str | int | None,
) -> None:
    """Register PATH as the next version of a dataset.

    \b
    PATH is
      a table            CSV, also .gz; or Parquet
      images or sounds   a folder, or .zip, .tar, .tar.gz; labels by folder, or in it as
                         labels.csv (file,label[,site][,split]), COCO or YOLO
      tensors            .npz with an array for each input, and label, site, split; .npy;
                         Parquet with columns of lists

    What was found, and every file or row that was left out, is said. A table is stored as typed
    Parquet: the same rows with the same roles are the same version, whatever file they come in, and
    that is said; nothing is stored twice. How a CSV file was read (separator, decimal mark,
    encoding) is found out and kept with the version.

    With --mask columns of a table are dropped, hashed, generalised, put into buckets, or moved in
    time on the controller before anything is stored; later versions are masked likewise, without
    being asked. `shoal dataset policy NAME` prints how.

    \b
    Examples:
      shoal dataset add parts.csv --name parts --label ok --site plant
      shoal dataset add parts2.csv --name parts --label ok --parent parts@1
      shoal dataset add export.csv --name line3 --label ok --encoding cp1252 --skip 3
      shoal dataset add visits.csv --name visits --label readmitted --mask policy.toml
      shoal dataset add photos/ --name photos
      shoal dataset add sounds.zip --name sounds --unlabelled
    """
    fields = {name: str(value) for name, value in given.items() if value}
    fields |= {"drop": ",".join(drop), "parents": ",".join(parents)}
    fields |= {"unlabelled": "true"} if unlabelled else {}
    fields |= {"no_mask": "true"} if no_mask else {}
    try:
        if mask_file is not None:
            fields["mask"] = mask_file.read_text("utf-8")
        with _opened(path) as (name, content):
            if isinstance(content, FolderTar):
                session.err.print(f"sending {content.count} files, {size(content.length)}")
            made = session.api.upload(at("datasets"), {"file": (name, content)}, fields, _WAIT_S)
    except OSError as error:
        raise SettingError(f"{error.filename or path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{mask_file} is not UTF-8", "save it as UTF-8") from error
    session.show(made, lambda: "\n".join(_added(session, made)))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of a file, or of a folder as a tar."""
    if path.is_dir():
        yield f"{path.resolve().name}.tar", FolderTar(path)  # type: ignore[misc]
        return
    with path.open("rb") as content:
        yield path.name, content


@dataset.command("list")
@listed
@click.pass_obj
def list_datasets(session: Session, search: str, limit: int) -> None:
    """List datasets, every version, newest first.

    \b
    Examples:
      shoal dataset list
      shoal dataset list --search parts@
    """
    found = list(session.api.items(at("datasets"), most=limit, q=search))
    columns: Columns = {
        "dataset": _ref,
        "kind": "kind",
        "rows or items": "rows",
        "size": lambda d: size(d["size"]),
        "label": "label",
        "site": "site",
        "split": "split",
        "made from": "parents",
        "how": "how",
        "when": lambda d: instant(d["created_at"]),
        "by": "created_by",
    }
    none = "no such dataset; register one with: shoal dataset add PATH --name NAME"
    session.show(found, lambda: table(found, columns, empty=none))


@dataset.command("show")
@click.argument("ref", metavar="NAME[@N]")
@click.pass_obj
def show_dataset(session: Session, ref: str) -> None:
    """Show one version (without @N the newest): lineage, columns or contents, rows per site.

    \b
    Example:
      shoal dataset show parts@2
    """
    found = session.api.get(at("datasets", ref))
    session.show(found, lambda: Group(_card(found), *_findings(session, found)))


@dataset.command("report")
@click.argument("ref", metavar="NAME[@N]")
@click.pass_obj
def report(session: Session, ref: str) -> None:
    """What in a table may mislead training, with counts, columns and rows.

    Looked for when it is added: columns that give the label away, the same rows in training and
    test, the same features with another label, markers of missing values (-999), other units, gross
    errors, text in the wrong encoding, one name spelt in several ways, what is left out, missing,
    duplicate, constant, and skewed. Those that warn come first, and are on the model card of what
    is trained on it. Rows are numbered from 1, without the header.

    \b
    Examples:
      shoal dataset report parts
      shoal dataset report parts@2 --json
    """
    found = session.api.get(at("datasets", ref, "report"))
    session.show(found, lambda: Group(*dataset_contents.report(found)))


@dataset.command("policy")
@click.argument("ref", metavar="NAME[@N]")
@click.pass_obj
def policy(session: Session, ref: str) -> None:
    """Print the masking policy of a table, as TOML: what was done to columns before it was stored.

    The next version of the dataset is masked likewise; with --mask FILE another way.

    \b
    Examples:
      shoal dataset policy visits > policy.toml
      shoal dataset add visits2.csv --name visits --label readmitted --mask policy.toml
    """
    found = session.api.get(at("datasets", ref))
    if found["masking"] is None:
        raise SettingError(
            f"{_ref(found)} was not masked",
            f"write a policy and add it again: shoal dataset add FILE --name {found['name']} "
            "--mask policy.toml",
        )
    session.show(found["masking"], lambda: plain(found["masking"]["policy"].rstrip("\n")))


@dataset.command("versions")
@click.argument("name")
@listed
@click.pass_obj
def versions(session: Session, name: str, search: str, limit: int) -> None:
    """List the versions of one dataset, newest first.

    \b
    Example:
      shoal dataset versions parts
    """
    found = list(session.api.items(at("datasets"), most=limit, q=search, name=name))
    columns: Columns = {
        "version": _ref,
        "rows or items": "rows",
        "size": lambda d: size(d["size"]),
        "label": "label",
        "left out": lambda d: plain(sum(one["count"] for one in d["left_out"]) or ""),
        "duplicates": lambda d: plain(d["duplicates"] or ""),
        "made from": "parents",
        "when": lambda d: instant(d["created_at"]),
        "by": "created_by",
    }
    none = "no such dataset; see all with: shoal dataset list"
    session.show(found, lambda: table(found, columns, empty=none))


@dataset.command("diff")
@click.argument("before", metavar="A[@N]")
@click.argument("after", metavar="B[@N]")
@click.pass_obj
def diff(session: Session, before: str, after: str) -> None:
    """What changed from table A to table B: columns, rows, distributions.

    A row is the same when its values in the columns of both are; one that is there twice counts
    twice. A column differs when its distributions are farther apart than chance explains, and than
    0.05 of 1: of numbers the largest distance of the distribution functions (Kolmogorov), of text
    half the sum of how far the shares are apart.

    \b
    Examples:
      shoal dataset diff parts@1 parts@2
      shoal dataset diff parts@1 parts --json
    """
    found = session.api.get(at("datasets", after, "diff"), before=before)
    session.show(found, lambda: Group(*dataset_contents.diff(found)))


@dataset.command("forget")
@click.argument("name")
@click.option("--column", required=True, help="Column that says whom a row is about.")
@click.option(
    "--value",
    default="",
    help="The subject's value there, or its hash; - or without it: asked for, or read from stdin.",
)
@yes_option
@click.pass_obj
def forget(session: Session, name: str, column: str, value: str, yes: bool) -> None:
    """Erase a subject's rows from every version of a table, and name what was trained on them.

    A version without the rows is added; the files of those that have them are deleted, as soon as
    no operation runs, and nothing can be trained on them any more. A column that is hashed is
    searched for the hash of the value. Runs, releases, devices, tasks and policies that the rows
    went into are named: retrain and roll out. The value is in no record and no log; say it on
    stdin where your shell keeps a history.

    \b
    Examples:
      shoal dataset forget visits --column patient --value P0017 --yes
      shoal dataset forget visits --column patient --yes < value.txt
    """
    if value in ("", "-"):
        asked = session.err.is_terminal and sys.stdin.isatty()
        value = click.prompt("value", hide_input=True, err=True) if asked else sys.stdin.readline()
    if not yes:
        confirm(f"Erase the rows of this subject from {name}? They cannot be brought back.")
    body = {"column": column, "value": value.strip()}
    found = session.api.post(at("datasets", name, "forget"), body)
    session.show(found, lambda: "\n".join(dataset_contents.forgotten(found)))


dataset.add_command(
    deletion_of("datasets", "a version of a dataset", "shoal dataset delete stamps@1")
)


def _added(session: Session, made: JsonObject) -> Iterator[str]:
    yield from dataset_contents.added(made)
    if made["kind"] == "table":
        ref = f"{made['name']}@{made['version']}"
        yield from dataset_contents.warnings(session.api.get(at("datasets", ref, "report")), ref)


def _findings(session: Session, found: JsonObject) -> list[Any]:
    if found["kind"] != "table":
        return []
    made = session.api.get(at("datasets", f"{found['name']}@{found['version']}", "report"))
    return ["", *dataset_contents.report(made)]


def _ref(dataset: JsonObject) -> str:
    return plain(f"{dataset['name']}@{dataset['version']}")


def _card(found: JsonObject) -> Group:
    about: Columns = {
        "dataset": _ref,
        "kind": "kind",
        "sha256": "sha256",
        "of the rows": "content_sha256",
        "rows" if found["kind"] == "table" else "items": "rows",
        "size": lambda d: size(d["size"]),
        "label": "label",
        "site": "site",
        "rows per site" if found["kind"] == "table" else "items per site": "sites",
        "split": "split",
        "made from": "parents",
        "how": "how",
        "CSV": lambda d: dataset_contents.csv_format(d["csv"]),
        "duplicate rows": lambda d: str(d["duplicates"] or ""),
        "registered": lambda d: instant(d["created_at"]),
        "by": "created_by",
    }
    if found["contents"]:
        return Group(card(found, about), *dataset_contents.tables(found["contents"]))
    columns: Columns = {
        "column": "name",
        "role": "role",
        "type": "dtype",
        "missing": "missing",
        "low": "low",
        "high": "high",
        "values": lambda c: plain(c["values"][:12]),
    }
    return Group(
        card(found, about), "", table(found["columns"], columns, empty="no column"), "",
        *dataset_contents.masked(found["masking"]),
        dataset_contents.left_out(found["left_out"], "rows"),
    )  # fmt: skip
