"""Builds the stored form of images and sounds from an uploaded archive."""

import hashlib
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import NamedTuple

import numpy as np

from shoal.controller.data import archives, decoding, item_labels, splits
from shoal.controller.data.archives import Skipped
from shoal.controller.data.frames import MAX_COLUMNS, in_order
from shoal.controller.data.item_labels import Labels, Roles
from shoal.controller.data.items import AUDIO, IMAGE, RATE, Boxes
from shoal.controller.data.packs import Index, PackWriter
from shoal.controller.data.records import Contents, InputSummary, Packed
from shoal.errors import DatasetError

#: CPU seconds in which images are decoded to find damage; of the rest the headers are read.
DECODING_S = 240.0
#: CPU seconds that one file may take.
ONE_FILE_S = 10.0
#: Bytes of files that may hold labels.
DOCS_LIMIT = 128 << 20
#: Classes whose counts are kept.
MOST_CLASSES = 1_000
#: Names of files by which an archive is taken for one of images or of sounds.
_LOOKED_AT = 2_000
IMAGES, SOUNDS = "images", "audio"


class _Item(NamedTuple):
    """shape (height, width, channels) or (samples[, channels]); rate: 0 for images."""

    start: int
    size: int
    shape: tuple[int, ...]
    rate: int
    format: str


class _Read(NamedTuple):
    items: dict[str, _Item]
    docs: dict[str, bytes]
    repeated: int
    undecoded: int


def build_pack(path: Path, target: Path, source: str, kind: str, roles: Roles) -> Packed:
    """Write the images or sounds of the archive at `path` to `target`.

    source   what messages call the archive
    kind     "images" or "audio"; "" for whichever the archive holds

    DatasetError when it holds neither, or its labels are missing or ambiguous.
    """
    skipped = Skipped()
    kind = kind or _kind(path, source)
    with PackWriter(target) as writer:
        read = _copy(path, source, kind, writer, skipped)
        if not read.items:
            raise _nothing(source, kind, skipped)
        sizes = {name: one.shape[:2] if kind == IMAGES else (0, 0)
                 for name, one in sorted(read.items.items())}  # fmt: skip
        labels = item_labels.find_labels(sizes, read.docs, roles, skipped)  # type: ignore[arg-type]
        names = [name for name in sizes if _is_labelled(labels, name)]
        if not names:
            raise DatasetError(
                f"{source}: none of the {len(sizes)} items has a label ({labels.said})",
                "the first column names the files as in the archive; or say --unlabelled",
            )
        index = _index(kind, names, read.items, labels)
        writer.finish(index)
    return _packed(kind, names, read, labels, index, skipped)


def _kind(path: Path, source: str) -> str:
    """What most of the files are by their suffixes; asked for when there are many of both."""
    counts = Counter[str]()
    for name in islice(archives.names_in(path, source), _LOOKED_AT):
        suffix = PurePosixPath(name).suffix.lower()
        counts[IMAGES] += suffix in decoding.IMAGE_SUFFIXES
        counts[SOUNDS] += suffix in decoding.AUDIO_SUFFIXES | decoding.OTHER_AUDIO
    if min(counts[IMAGES], counts[SOUNDS]) * 10 > max(counts.values()):
        raise DatasetError(
            f"{source} has {counts[IMAGES]} images and {counts[SOUNDS]} sounds",
            "say --kind images, or --kind audio",
        )
    return SOUNDS if counts[SOUNDS] > counts[IMAGES] else IMAGES


def _nothing(source: str, kind: str, skipped: Skipped) -> DatasetError:
    out = "; ".join(f"{one.count} {one.reason}: {', '.join(one.names[:3])}"
                    for one in skipped.list()[:5])  # fmt: skip
    wanted = "images (PNG, JPEG, BMP, GIF, WebP, TIFF)" if kind == IMAGES else "WAV files"
    return DatasetError(
        f"{source} has no {'images' if kind == IMAGES else 'sounds'} that can be read"
        + (f" ({out})" if out else ""),
        f"give a folder or archive of {wanted}, or a table or .npz as a file of its own",
    )


# --- files ----------------------------------------------------------------------------------------


def _copy(path: Path, source: str, kind: str, writer: PackWriter, skipped: Skipped) -> _Read:
    items, docs = dict[str, _Item](), dict[str, bytes]()
    seen, repeated, undecoded = set[bytes](), 0, 0
    until = time.process_time() + DECODING_S
    for member in archives.read_members(path, source, skipped):
        suffix = PurePosixPath(member.path).suffix.lower()
        if suffix in item_labels.SUFFIXES:
            docs[member.path] = member.data
            if sum(map(len, docs.values())) > DOCS_LIMIT:
                raise DatasetError(
                    f"{source} has more than {DOCS_LIMIT >> 20} MiB of CSV, JSON and text",
                    "leave out what is no label, such as the outlines of COCO",
                )
            continue
        if why := _no_item(kind, suffix):
            skipped.add(why, member.path)
            continue
        decode = time.process_time() < until
        try:
            with _limited(ONE_FILE_S):
                facts = _facts(kind, member.data, decode)
        except DatasetError as error:
            skipped.add(error.message, member.path)
            continue
        undecoded += not decode
        digest = hashlib.blake2b(member.data, digest_size=12).digest()
        repeated += digest in seen
        seen.add(digest)
        items[member.path] = facts._replace(
            start=writer.add(member.path, member.data), size=len(member.data)
        )
    return _Read(items, docs, repeated, undecoded)


def _no_item(kind: str, suffix: str) -> str:
    """Why a file of this suffix is left out; "" for one that is looked into."""
    if kind == IMAGES:
        return "" if suffix in decoding.IMAGE_SUFFIXES else "not an image"
    if suffix in decoding.OTHER_AUDIO:
        return f"{suffix[1:]}, convert it to WAV"
    return "" if suffix in decoding.AUDIO_SUFFIXES else "not a sound"


def _facts(kind: str, data: bytes, decode: bool) -> _Item:
    if kind == IMAGES:
        image = decoding.image_facts(data, decode)
        return _Item(0, 0, image.shape, 0, image.format)
    sound = decoding.sound_facts(data)
    return _Item(0, 0, sound.shape, sound.rate, "WAV")


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """DatasetError in a block that takes more CPU time."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise DatasetError(f"takes more than {seconds:.0f} s to decode")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


# --- index ----------------------------------------------------------------------------------------


def _is_labelled(labels: Labels, name: str) -> bool:
    return not labels.kind or name in labels.values or name in labels.boxes


def _index(kind: str, names: Sequence[str], items: Mapping[str, _Item], labels: Labels) -> Index:
    sites, site = _numbered(names, labels.sites)
    groups, group = _numbered(names, labels.groups)
    if len(sites) > MAX_COLUMNS:
        raise DatasetError(f"the site column has {len(sites)} values", "is it really a site?")
    boxes = [labels.boxes[name] for name in names] if labels.kind == "boxes" else []
    classes = _classes(labels, names, boxes)
    number = {name: i for i, name in enumerate(classes)}
    values = [labels.values[name] for name in names] if labels.values else []
    corners = np.concatenate([one.xyxy for one in boxes]) if boxes else np.zeros((0, 4))
    return Index(
        kind="images" if kind == IMAGES else "audio",
        names=list(names),
        starts=[items[name].start for name in names],
        sizes=[items[name].size for name in names],
        label_kind=labels.kind,
        classes=classes,
        labels=[number[value] for value in values] if labels.kind == "classes" else [],
        numbers=[float(value) for value in values] if labels.kind == "numbers" else [],
        box_counts=[len(one.classes) for one in boxes],
        box_classes=[number[name] for one in boxes for name in one.classes],
        corners=corners.astype("<f4").tobytes() if boxes else b"",
        sites=sites, site=site, groups=groups, group=group,
    )  # fmt: skip


def _numbered(names: Sequence[str], of: Mapping[str, str]) -> tuple[list[str], list[int]]:
    """Distinct values of the named, in order, and the number of each one's value."""
    if not of:
        return [], []
    values = [of.get(name, "") for name in names]
    distinct = in_order(values)
    number = {value: i for i, value in enumerate(distinct)}
    return distinct, [number[value] for value in values]


def _classes(labels: Labels, names: Sequence[str], boxes: Sequence[Boxes]) -> list[str]:
    if labels.kind == "numbers":
        return []
    if labels.kind == "boxes":
        return in_order(name for one in boxes for name in one.classes)
    return in_order({labels.values[name] for name in names}) if labels.kind else []


# --- what is reported -----------------------------------------------------------------------------


def _packed(
    kind: str, names: Sequence[str], read: _Read, labels: Labels, index: Index, skipped: Skipped
) -> Packed:
    groups = [index.groups[one] for one in index.group]
    parts = dict(Counter(groups)) if groups and _are_parts(index.groups) else {}
    return Packed(
        kind=kind,
        count=len(names),
        label=labels.said,
        site="site" if index.site else "",
        split="split" if groups else "",
        sites={index.sites[i]: n for i, n in sorted(Counter(index.site).items())},
        contents=Contents(
            inputs=_inputs(kind, [read.items[name] for name in names]),
            label_kind=index.label_kind,
            classes=_counts(index),
            low=min(index.numbers, default=None),
            high=max(index.numbers, default=None),
            formats=dict(Counter(read.items[name].format for name in names)),
            rates={str(rate): n for rate, n in sorted(
                Counter(read.items[name].rate for name in names).items()) if rate},
            parts=parts,
            groups=len(index.groups),
            left_out=skipped.list(),
            notes=list(_notes(kind, read, index, parts)),
        ),
    )  # fmt: skip


def _are_parts(groups: Sequence[str]) -> bool:
    return splits.parts_of(np.array(groups)) is not None


def _counts(index: Index) -> dict[str, int]:
    counts = Counter(index.box_classes if index.label_kind == "boxes" else index.labels)
    return {index.classes[i]: n for i, n in sorted(counts.items())[:MOST_CLASSES]}


def _inputs(kind: str, items: Sequence[_Item]) -> list[InputSummary]:
    by_rank: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for one in items:
        by_rank[len(one.shape)].append(one.shape)
    if kind == IMAGES:
        return [_summary(IMAGE, "UINT8", by_rank[3])]
    both = [shape if len(shape) == 2 else (*shape, 1) for shape in (one.shape for one in items)]
    shapes = both if by_rank[2] else by_rank[1]
    rates = InputSummary(name=RATE, datatype="INT64", low=[], high=[])
    return [_summary(AUDIO, "FP32", shapes), rates]


def _summary(name: str, datatype: str, shapes: Sequence[tuple[int, ...]]) -> InputSummary:
    sizes = np.array(shapes)
    return InputSummary(
        name=name, datatype=datatype, low=sizes.min(0).tolist(), high=sizes.max(0).tolist()
    )


def _notes(kind: str, read: _Read, index: Index, parts: Mapping[str, int]) -> Iterator[str]:
    what = "images" if kind == IMAGES else "sounds"
    if read.repeated:
        yield f"{read.repeated} {what} have the same bytes as one before; they are used"
    if read.undecoded:
        yield f"of {read.undecoded} {what} only the header was read: decoding took too long"
    if parts:
        held = ", ".join(f"{name} {count}" for name, count in parts.items())
        yield f"parts named by you ({held}): all but train is held back"
    if index.label_kind == "classes" and all(name.isdigit() for name in index.classes):
        yield f"labels are whole numbers, taken for {len(index.classes)} classes"
    if index.label_kind == "boxes" and (empty := index.box_counts.count(0)):
        yield f"{empty} images have no box: nothing is in them"
