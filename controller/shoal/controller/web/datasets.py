"""Dataset screens: all versions; one version with its columns or contents, and thumbnails."""

from flask import request
from werkzeug.wrappers import Response

from shoal.controller.data import adding, datasets
from shoal.controller.store.records import Page
from shoal.controller.web.screen import blueprint, context, show
from shoal.errors import InputError

#: Thumbnails on a page.
SHOWN = 24


@blueprint.get("/datasets")
def dataset_list() -> str:
    """All dataset versions."""
    return show("datasets.html", datasets=datasets.list_datasets(context()))


@blueprint.get("/datasets/<ref>")
def dataset_one(ref: str) -> str:
    """One version. Of images a page of thumbnails, from number `cursor`."""
    ctx = context()
    found = datasets.get_dataset(ctx, ref)
    pictures, page = [], Page()
    if found.kind == "images":
        first = _number(request.args.get("cursor", "0"))
        pictures = adding.pictures(ctx, found, first, SHOWN)
        more = first + len(pictures)
        page = Page(next=str(more) if more < found.rows else "", total=found.rows)
    return show("dataset.html", dataset=found, pictures=pictures, page=page)


@blueprint.get("/datasets/<ref>/thumbnails/<int:index>")
def dataset_thumbnail(ref: str, index: int) -> Response:
    """A small image of a dataset of images."""
    return Response(adding.thumbnail(context(), ref, index), mimetype="image/webp")


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise InputError(f"cursor {text!r:.20} is no number", "go to the first page")
    return int(text)
