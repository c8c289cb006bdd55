"""Dataset screens: all versions, one with contents and thumbnails, and the form for a new one."""

from pathlib import Path

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from shoal.controller.data import adding, comparison, csv_detection, datasets
from shoal.controller.data.adding import Upload
from shoal.controller.data.records import TABLE
from shoal.controller.store.records import Page
from shoal.controller.web.screen import (
    actor,
    asked,
    blueprint,
    context,
    masking_keys,
    pack_items,
    show,
)
from shoal.errors import InputError

#: Thumbnails on a page.
SHOWN = 24
#: Versions of its dataset on the page of one.
VERSIONS = 10
_TEXTS = ("name", "kind", "label", "site", "split", "labels_from", "mask", "mask_as")


@blueprint.get("/datasets")
def dataset_list() -> str:
    """A page of dataset versions, newest first."""
    given = asked("kind", "q", sort="-created")
    found, page = datasets.page(context(), **given)
    return show("datasets.html", datasets=found, page=page, given=given, kinds=adding.KINDS)


@blueprint.get("/datasets/add")
def dataset_new() -> str:
    """The form for a dataset."""
    return show("dataset_new.html", kinds=adding.KINDS, sources=adding.LABEL_SOURCES)


@blueprint.post("/datasets/add")
def dataset_add() -> Response:
    """Register the file that the form holds."""
    who = actor("operator")
    request.max_content_length = adding.LIMIT
    form, file = request.form, request.files.get("file")
    if file is None or not file.filename:  # a browser sends an empty file where none was chosen
        raise InputError("no file was chosen", "choose one; a folder as a .zip")
    file.stream.flush()
    csv = csv_detection.wanted(
        form.get("separator", ""), form.get("decimal", ""), form.get("encoding", "").strip(),
        _number(form.get("skip", "").strip() or "0", "lines before the header"),
    )  # fmt: skip
    upload = Upload(
        path=Path(file.stream.name),
        filename=file.filename,
        drop=[part.strip() for part in form.get("drop", "").split(",") if part.strip()],
        unlabelled=form.get("unlabelled") == "true",
        no_mask=form.get("no_mask") == "true",
        csv=csv,
        **{name: form.get(name, "").strip() for name in _TEXTS},
    )
    made = adding.add_upload(context(), pack_items(), masking_keys(), actor=who.name, upload=upload)
    return redirect(url_for("web.dataset_one", ref=made.ref), 303)


@blueprint.get("/datasets/<ref>")
def dataset_one(ref: str) -> str:
    """One version. Of images a page of thumbnails, from number `cursor`."""
    ctx = context()
    found = datasets.get_dataset(ctx, ref)
    pictures, page = [], Page()
    report = datasets.get_report(ctx, found.ref) if found.kind == TABLE else None
    if found.kind == "images":
        first = _number(request.args.get("cursor", "0"), "cursor")
        pictures = adding.pictures(ctx, found, first, SHOWN)
        more = first + len(pictures)
        page = Page(next=str(more) if more < found.rows else "", total=found.rows)
    return show(
        "dataset.html", dataset=found, pictures=pictures, page=page, report=report,
        versions=datasets.page(ctx, name=found.name, limit=VERSIONS)[0],
    )  # fmt: skip


@blueprint.get("/datasets/<ref>/diff")
def dataset_diff(ref: str) -> str:
    """What changed from the version `before`, or the one before it."""
    found = comparison.compare(context(), ref, request.args.get("before", ""))
    return show("dataset_diff.html", diff=found)


@blueprint.get("/datasets/<ref>/thumbnails/<int:index>")
def dataset_thumbnail(ref: str, index: int) -> Response:
    """A small image of a dataset of images."""
    return Response(adding.thumbnail(context(), ref, index), mimetype="image/webp")


def _number(text: str, what: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise InputError(f"{what} {text!r:.20} is no number", "leave it out")
    return int(text)
