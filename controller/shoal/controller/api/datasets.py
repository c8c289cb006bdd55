"""Routes for datasets: tables, images, audio and tensors."""

from typing import Literal

import msgspec

from shoal.controller.api.routing import (
    Call,
    Limit,
    Listing,
    RequestModel,
    Uploads,
    listed,
    route,
)
from shoal.controller.data import adding, comparison, csv_detection, datasets
from shoal.controller.data.adding import Upload
from shoal.controller.data.records import CleaningReport, DatasetDiff, DatasetVersion

TAG = "models"
#: Bytes of an upload: a hundred thousand photographs.
LIMIT = 8 << 30


class DatasetQuery(RequestModel, frozen=True, kw_only=True):
    """Filters of datasets; empty ones match all.

    q      part of "name@version", of the label or of who added it
    sort   created, name, rows or size; "-" before it: falling
    """

    name: str = ""
    kind: Literal["", "table", "images", "audio", "tensors"] = ""
    q: str = ""
    sort: str = "-created"
    cursor: str = ""
    limit: Limit = 50


class NewDataset(RequestModel, frozen=True, kw_only=True):
    """What the file holds. drop, parents: separated by commas.

    kind         "" to find out by its content
    label, site, split   columns of a table or of labels.csv, or arrays of a .npz
    drop         columns or arrays that are left out
    labels_from  where labels of images and sounds are from; "" to find out
    unlabelled   it has no labels
    separator    of a CSV file: one character, or "tab"; "" to find out, as decimal and encoding
    decimal      decimal mark, "." or ","
    encoding     such as "utf-8", "utf-16", "cp1252" or "latin-1"
    skip         lines before the header
    mask         masking policy of a table, a TOML document; "" for that of the version before it
    mask_as      "name@version" or "name": mask as that version was
    no_mask      mask nothing, whatever was done to the version before it
    """

    name: str
    kind: Literal["", "table", "images", "audio", "tensors"] = ""
    label: str = ""
    site: str = ""
    split: str = ""
    drop: str = ""
    parents: str = ""
    labels_from: Literal["", "folders", "csv", "coco", "yolo"] = ""
    unlabelled: bool = False
    separator: str = ""
    decimal: str = ""
    encoding: str = ""
    skip: int = 0
    mask: str = ""
    mask_as: str = ""
    no_mask: bool = False


@route("GET", "/api/v1/datasets", role="viewer", tag=TAG)
def list_datasets(call: Call, query: DatasetQuery) -> Listing[DatasetVersion]:
    """Versions of datasets, newest first."""
    return Listing(*datasets.page(call.ctx, **msgspec.structs.asdict(query)))


@route("POST", "/api/v1/datasets", role="operator", tag=TAG, status=201, limit=LIMIT,
       files={"file": "a table (CSV, also .gz; Parquet), an archive (.zip, .tar, .tar.gz) of "
                      "images or sounds, or arrays (.npz, .npy; Parquet with lists)"})  # fmt: skip
def add_dataset(call: Call, form: NewDataset, files: Uploads) -> DatasetVersion:
    """Register a file as the next version of a dataset; the same file is the same version."""
    upload = Upload(
        path=files["file"].path, filename=files["file"].filename, name=form.name, kind=form.kind,
        label=form.label, site=form.site, split=form.split, drop=listed(form.drop),
        parents=listed(form.parents), labels_from=form.labels_from, unlabelled=form.unlabelled,
        csv=csv_detection.wanted(form.separator, form.decimal, form.encoding, form.skip),
        mask=form.mask, mask_as=form.mask_as, no_mask=form.no_mask,
    )  # fmt: skip
    services = call.services
    return adding.add_upload(
        call.ctx, services.pack_items, services.masking_keys, actor=call.by, upload=upload
    )


@route("GET", "/api/v1/datasets/<ref>", role="viewer", tag=TAG)
def get_dataset(call: Call, ref: str) -> DatasetVersion:
    """One version, "name@2", or the newest of "name"."""
    return datasets.get_dataset(call.ctx, ref)


@route("GET", "/api/v1/datasets/<ref>/report", role="viewer", tag=TAG)
def get_report(call: Call, ref: str) -> CleaningReport:
    """What was looked for in a table, and found: counts, columns, example rows."""
    return datasets.get_report(call.ctx, ref)


class DiffQuery(RequestModel, frozen=True, kw_only=True):
    """before: "name@version"; "" for the version before it."""

    before: str = ""


@route("GET", "/api/v1/datasets/<ref>/diff", role="viewer", tag=TAG)
def get_diff(call: Call, query: DiffQuery, ref: str) -> DatasetDiff:
    """What changed from another version to this one: columns, rows, distributions."""
    return comparison.compare(call.ctx, ref, query.before)


@route("GET", "/api/v1/datasets/<ref>/thumbnails/<int:index>", role="viewer", tag=TAG,
       media="image/webp")  # fmt: skip
def get_thumbnail(call: Call, ref: str, index: int) -> bytes:
    """A small image of a dataset of images, by its number from 0; made when it is asked for."""
    return adding.thumbnail(call.ctx, ref, index)
