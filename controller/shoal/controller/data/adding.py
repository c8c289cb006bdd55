"""Uploads become versions of datasets: tables, images, sounds, tensors."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from shoal.controller.data import datasets, decoding, packs, uploads
from shoal.controller.data.item_labels import NONE, SOURCES, Roles
from shoal.controller.data.items import Items
from shoal.controller.data.open_items import open_items
from shoal.controller.data.records import TABLE, CsvFormat, DatasetVersion, Packed
from shoal.controller.host.context import Context
from shoal.errors import AbsentError, DatasetError, SettingError

#: Bytes of the stored form of items.
LIMIT = 9 << 30
#: Pixels of the longer side of a thumbnail.
THUMBNAIL = 160
#: Where labels of images and sounds can be said to be.
LABEL_SOURCES = tuple(source for source in SOURCES if source != NONE)
KINDS = (TABLE, "images", "audio", "tensors")
#: Writes the stored form of a file: path, target, name in messages, kind, roles, arrays to drop.
PackItems = Callable[[Path, Path, str, str, Roles, Sequence[str]], Packed]


class Upload(NamedTuple):
    """A file, and what a person says about it.

    filename      the client's name of it, for messages
    kind          of KINDS, "" to find out
    label, site, split   columns of a table or of labels.csv, or arrays; "" for the usual names
    drop          columns or arrays that are left out
    labels_from   of items: "folders", "csv", "coco", "yolo"; "" to find out
    unlabelled    it has no labels
    csv           how a CSV file is read, as of csv_detection.wanted; None to find out
    """

    path: Path
    filename: str
    name: str
    kind: str = ""
    label: str = ""
    site: str = ""
    split: str = ""
    drop: Sequence[str] = ()
    parents: Sequence[str] = ()
    labels_from: str = ""
    unlabelled: bool = False
    csv: CsvFormat | None = None


def add_upload(
    ctx: Context, pack_items: PackItems, *, actor: str, upload: Upload
) -> DatasetVersion:
    """Register an upload as the next version of its dataset, or find the same one.

    DatasetError, with a hint, for a file that cannot be a dataset, or of which it is not clear
    what it holds; SettingError for a kind or source of labels that there is not.
    """
    _check(upload)
    if upload.kind == TABLE or not (upload.kind or uploads.is_items(upload.path)):
        if upload.labels_from:
            raise DatasetError(
                f"{upload.filename} is a table: its label is a column", "say --label COLUMN"
            )
        return datasets.add_dataset(
            ctx, actor=actor, path=upload.path, filename=upload.filename, name=upload.name,
            label=upload.label, site=upload.site, split=upload.split, drop=upload.drop,
            parents=upload.parents, unlabelled=upload.unlabelled, csv=upload.csv,
        )  # fmt: skip
    return _add_items(ctx, pack_items, actor, upload)


def items_of(ctx: Context, version: DatasetVersion) -> Items:
    """The items of a version; DatasetError for a table, AbsentError when its file is gone."""
    if version.kind == TABLE:
        raise DatasetError(f"{version.ref} is a table, it has no items", "name another dataset")
    return open_items(ctx.blobs.path(version.sha256), version.ref)


def thumbnail(ctx: Context, ref: str, index: int) -> bytes:
    """A small WebP of an image of a dataset.

    DatasetError for another kind or a damaged image, AbsentError for an index beyond the last one.
    """
    version = datasets.get_dataset(ctx, ref)
    if version.kind != "images":
        raise DatasetError(f"{version.ref} is a dataset of {version.kind}: it has no thumbnails")
    items = packs.open_pack(ctx.blobs.path(version.sha256), version.ref)
    if not 0 <= index < len(items):
        raise AbsentError("image", f"{index} of {version.ref}", f"there are {len(items)}")
    return decoding.thumbnail(items.bytes_of(index), THUMBNAIL)


class Picture(NamedTuple):
    """An image of a dataset. label: its class or number, or how many boxes it has."""

    number: int
    name: str
    label: str


def pictures(ctx: Context, version: DatasetVersion, first: int, most: int) -> list[Picture]:
    """Images of a version from number `first`, `most` at most."""
    items = packs.open_pack(ctx.blobs.path(version.sha256), version.ref)
    labels = items.labels() if items.label_kind in ("classes", "numbers") else None
    found = []
    for i in range(first, min(first + most, len(items))):
        label = "" if labels is None else str(labels[i])
        if items.label_kind == "boxes":
            label = f"{items.index.box_counts[i]} boxes"
        found.append(Picture(i, items.index.names[i], label))
    return found


def _check(upload: Upload) -> None:
    datasets.check_name(upload.name)
    if upload.kind and upload.kind not in KINDS:
        raise SettingError(f"kind {upload.kind!r:.50}", f"there are: {', '.join(KINDS)}")
    if upload.labels_from and upload.labels_from not in SOURCES:
        raise SettingError(
            f"labels from {upload.labels_from!r:.50}", f"there are: {', '.join(SOURCES)}"
        )
    if upload.unlabelled and (upload.label or upload.labels_from not in ("", NONE)):
        raise SettingError("labels of an unlabelled dataset", "give one of the two")


def _add_items(ctx: Context, pack_items: PackItems, actor: str, upload: Upload) -> DatasetVersion:
    parents = [datasets.get_dataset(ctx, parent).ref for parent in upload.parents]
    source = NONE if upload.unlabelled else upload.labels_from
    roles = Roles(source=source, label=upload.label, site=upload.site, split=upload.split)
    name = upload.filename or "the upload"
    folder = ctx.folder / "uploads"  # which is emptied at a start
    folder.mkdir(mode=0o700, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        target = Path(file.name)
        packed = pack_items(upload.path, target, name, upload.kind, roles, upload.drop)
        blob = ctx.blobs.put_file(target, LIMIT)
    values = {
        "kind": packed.kind, "rows": packed.count, "columns": [], "label": packed.label,
        "site": packed.site, "split": packed.split, "sites": packed.sites, "how": "uploaded",
        "contents": msgspec.to_builtins(packed.contents),
    }  # fmt: skip
    return datasets.register(
        ctx, actor=actor, name=upload.name, blob=blob, parents=parents, values=values,
        same=("kind",),
    )  # fmt: skip
