"""Labels of images and sounds in an archive: by folder, a CSV file, COCO or YOLO.

Sources: COCO's object detection format, cocodataset.org/#format-data; YOLO's text files,
docs.ultralytics.com/datasets/detect.
"""

import csv
import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, NamedTuple

import msgspec
import numpy as np

from shoal.controller.data.archives import Skipped
from shoal.controller.data.items import Boxes, LabelKind
from shoal.controller.data.splits import HELD, TRAIN
from shoal.errors import DatasetError

FOLDERS, CSV, COCO, YOLO, NONE = SOURCES = "folders", "csv", "coco", "yolo", "none"
#: Suffixes of files that may hold labels.
SUFFIXES = frozenset({".csv", ".tsv", ".json", ".txt", ".names", ".yaml", ".yml"})
_FILE_COLUMNS = ("file", "filename", "file_name", "path", "filepath", "image", "audio", "name")
_LABEL_COLUMNS = ("label", "class", "category", "target")
_CLASS_FILES = frozenset({"classes.txt", "obj.names", "labels.txt", "data.yaml", "data.yml"})
_NO_LABEL, _NO_IMAGE = "no label", "labelled, not in the archive"
_CSV_FIELD = 1 << 16
Size = tuple[int, int]


class Roles(NamedTuple):
    """What a person says. source: one of SOURCES, "" to find out; columns of a CSV file."""

    source: str = ""
    label: str = ""
    site: str = ""
    split: str = ""


class Labels(NamedTuple):
    """By path of an item; a path that is missing has none.

    said    where they are from, in words
    """

    kind: LabelKind
    said: str
    values: Mapping[str, str] = {}
    boxes: Mapping[str, Boxes] = {}
    sites: Mapping[str, str] = {}
    groups: Mapping[str, str] = {}


def find_labels(
    sizes: Mapping[str, Size], docs: Mapping[str, bytes], roles: Roles, skipped: Skipped
) -> Labels:
    """Labels of the items, by their paths.

    sizes   items by path, with (height, width) of an image
    docs    other files that may hold labels, by path

    DatasetError where nothing says what an item is, or several do and `roles` does not choose.
    """
    coco = {path: data for path, data in docs.items() if path.lower().endswith(".json")}
    tables = {path: d for path, d in docs.items() if path.lower().endswith((".csv", ".tsv"))}
    texts = {path: data for path, data in docs.items() if _is_yolo(path)}
    stems = {_stem(path) for path in sizes}
    yolo = any(_stem(_beside(path)) in stems for path in texts)
    found = [
        name for name, there in ((COCO, bool(coco)), (CSV, bool(tables)), (YOLO, yolo)) if there
    ]
    source = roles.source or _only(found, docs)
    if source == COCO:
        return _of_coco(sizes, coco, skipped)
    if source == CSV:
        return _of_csv(sizes, tables, roles, skipped)
    if source == YOLO:
        return _of_yolo(sizes, docs, texts, skipped)
    return _by_folder(sizes, unlabelled=source == NONE)


def part_of(path: str) -> str:
    """The first folder named train, test or alike on the way to a file; "" without one."""
    folders = PurePosixPath(path).parts[:-1]
    return next((one for one in folders if one.lower() in TRAIN | HELD), "")


def _only(found: Sequence[str], docs: Mapping[str, bytes]) -> str:
    if len(found) > 1:
        raise DatasetError(
            f"labels may be from {' or '.join(found)}: {', '.join(list(docs)[:5])}",
            f"choose one: --labels-from {'|'.join([*found, FOLDERS, NONE])}",
        )
    return found[0] if found else FOLDERS


# --- folders --------------------------------------------------------------------------------------


def _by_folder(sizes: Mapping[str, Size], *, unlabelled: bool) -> Labels:
    """The name of the last folder that is no part; all parts count if each item is in one."""
    parts = {path: part_of(path) for path in sizes}
    groups = parts if all(parts.values()) and len(set(parts.values())) > 1 else {}
    if unlabelled:
        return Labels("", "", groups=groups)
    folders = {
        path: [one for one in PurePosixPath(path).parts[:-1] if one != groups.get(path)]
        for path in sizes
    }
    values = {path: names[-1] if names else "" for path, names in folders.items()}
    distinct = Counter(values.values())
    if len(distinct) < 2 or "" in distinct:
        where = ", ".join(f"{name or 'no folder'}: {n}" for name, n in distinct.most_common(5))
        raise DatasetError(
            f"nothing says what each of the {len(sizes)} items is ({where})",
            "put them in a folder for each class, add labels.csv with the columns file,label, "
            "COCO or YOLO labels; or say --unlabelled",
        )
    return Labels("classes", "folders", values, groups=groups)


# --- CSV ------------------------------------------------------------------------------------------


def _of_csv(
    sizes: Mapping[str, Size], tables: Mapping[str, bytes], roles: Roles, skipped: Skipped
) -> Labels:
    if len(tables) != 1:
        raise DatasetError(
            f"labels are in one CSV file, there are {len(tables)}: {', '.join(list(tables)[:5])}",
            "leave the others out",
        )
    ((name, data),) = tables.items()
    rows, header = _rows(name, data)
    file_at = _column(name, header, "", _FILE_COLUMNS, "the file")
    label_at = _column(name, header, roles.label, _LABEL_COLUMNS, "--label")
    site_at = _column(name, header, roles.site, ("site",), "--site", needed=bool(roles.site))
    split_at = _column(name, header, roles.split, ("split",), "--split", needed=bool(roles.split))
    find = _Finder(sizes, PurePosixPath(name).parent)
    values, sites, groups = dict[str, str](), dict[str, str](), dict[str, str]()
    for row in rows:
        row += [""] * (len(header) - len(row))
        path = find(row[file_at].strip())
        if path is None:
            skipped.add(_NO_IMAGE, row[file_at])
            continue
        if path in values and values[path] != row[label_at].strip():
            raise DatasetError(
                f"{name} has two labels of {path!r:.100}: {values[path]!r:.50} and "
                f"{row[label_at]!r:.50}",
                "keep one row for each file",
            )
        if row[label_at].strip():
            values[path] = row[label_at].strip()
        if site_at >= 0:
            sites[path] = row[site_at].strip()
        if split_at >= 0:
            groups[path] = row[split_at].strip()
    for path in sizes:
        if path not in values:
            skipped.add(_NO_LABEL, path)
    kind: LabelKind = "numbers" if _are_fractions(values.values()) else "classes"
    return Labels(kind, f"{name}: {header[label_at]}", values, sites=sites, groups=groups)


def _rows(name: str, data: bytes) -> tuple[list[list[str]], list[str]]:
    try:
        text = data.decode("utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = max(",;\t|", key=first.count)
        csv.field_size_limit(_CSV_FIELD)
        header, *rows = (row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise DatasetError(
            f"{name} cannot be read: {error!s:.100}", "write UTF-8 CSV with a header line"
        ) from error
    return rows, [one.strip() for one in header]


def _column(
    name: str,
    header: Sequence[str],
    given: str,
    usual: Sequence[str],
    what: str,
    *,
    needed: bool = True,
) -> int:
    """Index of a column: the given one, or the first with a usual name; -1 if none is needed."""
    lower = [one.lower() for one in header]
    if given and given in header:
        return header.index(given)
    if not given:
        for one in usual:
            if one in lower:
                return lower.index(one)
    if not needed:
        return -1
    wanted = f"column {given!r}" if given else f"column named {', '.join(usual)}"
    raise DatasetError(
        f"{name} has no {wanted} for {what}; there are: {', '.join(header[:20])}",
        "rename it" if what == "the file" else f"name it with {what}",
    )


def _are_fractions(values: Iterable[str]) -> bool:
    """Whether all values are numbers, and one is no whole number."""
    fraction = False
    for value in values:
        try:
            number = float(value)
        except ValueError:
            return False
        if not math.isfinite(number):
            return False
        fraction |= not number.is_integer()
    return fraction


class _Finder:
    """Finds the item that a label file names: by its path there, in the archive, or its name."""

    def __init__(self, sizes: Mapping[str, Size], folder: PurePosixPath) -> None:
        self._paths, self._folder = sizes, folder
        names = Counter(PurePosixPath(path).name for path in sizes)
        self._unique = {
            PurePosixPath(path).name: path for path in sizes if names[PurePosixPath(path).name] == 1
        }
        stems = Counter(_stem(path) for path in sizes)
        self._stems = {_stem(path): path for path in sizes if stems[_stem(path)] == 1}

    def __call__(self, name: str) -> str | None:
        name = str(PurePosixPath(name.replace("\\", "/"))) if name else ""
        for path in (str(self._folder / name), name):
            if path in self._paths:
                return path
        base = PurePosixPath(name).name
        return self._unique.get(base) or self._stems.get(str(self._folder / name))


# --- COCO -----------------------------------------------------------------------------------------


class _CocoImage(msgspec.Struct):
    id: int | str
    file_name: str


class _CocoCategory(msgspec.Struct):
    id: int
    name: str


class _CocoAnnotation(msgspec.Struct):
    image_id: int | str
    category_id: int
    bbox: Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]


class _Coco(msgspec.Struct):
    images: list[_CocoImage]
    annotations: list[_CocoAnnotation]
    categories: list[_CocoCategory]


def _of_coco(sizes: Mapping[str, Size], docs: Mapping[str, bytes], skipped: Skipped) -> Labels:
    boxes, groups = dict[str, Boxes](), dict[str, str]()
    for name, data in docs.items():
        try:
            read = msgspec.json.decode(data, type=_Coco)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise DatasetError(
                f"{name} is not COCO: {error!s:.100}",
                "it has images (id, file_name), annotations (image_id, category_id, bbox) and "
                "categories (id, name)",
            ) from error
        find = _Finder(sizes, PurePosixPath(name).parent)
        names = {one.id: one.name for one in read.categories}
        paths = dict[int | str, str]()
        for image in read.images:
            path = find(image.file_name)
            if path is None:
                skipped.add(_NO_IMAGE, image.file_name)
            else:
                paths[image.id] = path
        drawn = defaultdict[str, list[tuple[list[float], str]]](list)
        for one in read.annotations:
            if one.image_id not in paths:
                continue
            x, y, w, h = one.bbox
            label = names.get(one.category_id, str(one.category_id))
            drawn[paths[one.image_id]].append(([x, y, x + w, y + h], label))
        for path in paths.values():
            boxes[path] = _boxes(path, drawn[path], sizes[path], skipped)
            groups[path] = part_of(path) or (PurePosixPath(name).stem if len(docs) > 1 else "")
    for path in sizes:
        if path not in boxes:
            skipped.add(_NO_LABEL, path)
    said = f"COCO: {', '.join(list(docs)[:5])}"
    return Labels("boxes", said, boxes=boxes, groups=groups if all(groups.values()) else {})


def _boxes(
    path: str, drawn: Sequence[tuple[list[float], str]], size: Size, skipped: Skipped
) -> Boxes:
    """Boxes within an image of (height, width); those without an area are left out."""
    height, width = size
    kept, names = [], []
    for corners, name in drawn:
        left, top = max(corners[0], 0.0), max(corners[1], 0.0)
        right, bottom = min(corners[2], float(width)), min(corners[3], float(height))
        if not (right > left and bottom > top):
            skipped.add("box without an area in the image", path)
            continue
        kept.append([left, top, right, bottom])
        names.append(name)
    return Boxes(np.array(kept, np.float32).reshape(-1, 4), names)


# --- YOLO -----------------------------------------------------------------------------------------


def _is_yolo(path: str) -> bool:
    return path.lower().endswith(".txt") and PurePosixPath(path).name.lower() not in _CLASS_FILES


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _beside(path: str) -> str:
    """The path of a label file as if it was in the folder of its image: labels/ -> images/."""
    parts = [("images" if one == "labels" else one) for one in PurePosixPath(path).parts]
    return str(PurePosixPath(*parts))


def _of_yolo(
    sizes: Mapping[str, Size],
    docs: Mapping[str, bytes],
    texts: Mapping[str, bytes],
    skipped: Skipped,
) -> Labels:
    names = _class_names(docs)
    by_stem = {_stem(_beside(path)): path for path in texts}
    by_stem |= {_stem(path): path for path in texts}
    boxes, groups = dict[str, Boxes](), dict[str, str]()
    for path, size in sizes.items():
        text = by_stem.get(_stem(path))
        if text is None:
            skipped.add(_NO_LABEL, path)
            continue
        boxes[path] = _boxes(path, _lines(text, texts[text], names, size, skipped), size, skipped)
        groups[path] = part_of(path)
    said = f"YOLO, classes {'by number' if not names else 'named'}"
    return Labels("boxes", said, boxes=boxes, groups=groups if all(groups.values()) else {})


def _lines(
    name: str, data: bytes, names: Sequence[str], size: Size, skipped: Skipped
) -> list[tuple[list[float], str]]:
    height, width = size
    drawn = []
    for line in data.decode("utf-8", "replace").splitlines():
        if not line.strip():
            continue
        try:
            number, x, y, w, h = line.split()[:5]
            index = int(number)
            middle = float(x) * width, float(y) * height
            half = float(w) * width / 2, float(h) * height / 2
        except ValueError:
            skipped.add("line that is no box", name)
            continue
        label = names[index] if 0 <= index < len(names) else str(index)
        corners = [middle[0] - half[0], middle[1] - half[1],
                   middle[0] + half[0], middle[1] + half[1]]  # fmt: skip
        drawn.append((corners, label))
    return drawn


def _class_names(docs: Mapping[str, bytes]) -> list[str]:
    """Names by number: lines of classes.txt, or `names` of data.yaml; empty without either."""
    for path, data in sorted(docs.items()):
        name = PurePosixPath(path).name.lower()
        if name not in _CLASS_FILES:
            continue
        text = data.decode("utf-8", "replace")
        if not name.endswith((".yaml", ".yml")):
            return [line.strip() for line in text.splitlines() if line.strip()]
        if found := _yaml_names(text):
            return found
    return []


def _yaml_names(text: str) -> list[str]:
    """`names` of data.yaml in the three forms that are written: a list in brackets, lines that
    begin with a dash, lines that begin with a number.

    >>> _yaml_names("nc: 2\\nnames: ['cat', dog]"), _yaml_names("names:\\n  0: cat\\n  1: dog")
    (['cat', 'dog'], ['cat', 'dog'])
    """
    if inline := re.search(r"^names:\s*\[([^\]]*)\]", text, re.MULTILINE):
        return [one.strip().strip("'\"") for one in inline[1].split(",") if one.strip()]
    block = re.search(r"^names:[ \t]*\n((?:[ \t]*(?:-|\d+:)[ \t]*.*\n?)+)", text, re.MULTILINE)
    lines = block[1].splitlines() if block else []
    return [re.sub(r"^[ \t]*(?:-|\d+:)[ \t]*", "", line).strip().strip("'\"") for line in lines]
