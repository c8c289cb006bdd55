"""Uploads become versions of datasets: tables, images, sounds, tensors."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from shoal.controller.data import datasets, decoding, masking_policy, packs, uploads
from shoal.controller.data.item_labels import NONE, SOURCES, Roles
from shoal.controller.data.items import Items
from shoal.controller.data.masking import KeyOf, Masker
from shoal.controller.data.masking_policy import MaskingPolicy
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
    mask          masking policy of a table, TOML; "" for the one of the version before it, if any
    mask_as       "name@version" or "name": the policy of that version
    no_mask       mask nothing, whatever was done to the version before it
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
    mask: str = ""
    mask_as: str = ""
    no_mask: bool = False


def add_upload(
    ctx: Context, pack_items: PackItems, keys: KeyOf, *, actor: str, upload: Upload
) -> DatasetVersion:
    """Register an upload as the next version of its dataset, or find the same one.

    keys   keys of masking policies, by name

    DatasetError, with a hint, for a file that cannot be a dataset, or of which it is not clear
    what it holds; SettingError for a kind or source of labels that there is not.
    """
    _check(upload)
    policy = _policy_of(ctx, upload)
    if upload.kind == TABLE or not (upload.kind or uploads.is_items(upload.path)):
        if upload.labels_from:
            raise DatasetError(
                f"{upload.filename} is a table: its label is a column", "say --label COLUMN"
            )
        return datasets.add_dataset(
            ctx, actor=actor, path=upload.path, filename=upload.filename, name=upload.name,
            label=upload.label, site=upload.site, split=upload.split, drop=upload.drop,
            parents=upload.parents, unlabelled=upload.unlabelled, csv=upload.csv,
            masker=Masker(policy, keys) if policy else None,
        )  # fmt: skip
    if policy is not None:
        raise DatasetError(
            f"{upload.filename or 'the upload'} is no table, and has a masking policy",
            "policies are for tables; add it under another name, or with --no-mask",
        )
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


def policy_of(ctx: Context, ref: str) -> MaskingPolicy | None:
    """The masking policy of a version, None for none; AbsentError as get_dataset."""
    masking = datasets.get_dataset(ctx, ref).masking
    return masking_policy.parse(masking.policy) if masking else None


def _policy_of(ctx: Context, upload: Upload) -> MaskingPolicy | None:
    """What an upload is masked by; of a dataset whose newest version was masked, that policy."""
    given = [upload.mask.strip() != "", upload.mask_as != "", upload.no_mask]
    if sum(given) > 1:
        raise SettingError("several masking policies", "give one of --mask, --mask-as, --no-mask")
    if upload.no_mask:
        return None
    if upload.mask.strip():
        return masking_policy.parse(upload.mask)
    if upload.mask_as:
        if (found := policy_of(ctx, upload.mask_as)) is None:
            raise SettingError(
                f"dataset {upload.mask_as} was not masked", "write a policy: --mask FILE"
            )
        return found
    newest, _ = datasets.page(ctx, name=upload.name, sort="-created", limit=1)
    return policy_of(ctx, newest[0].ref) if newest else None


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
