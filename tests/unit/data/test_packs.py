"""Images and sounds as people have them become items; what cannot is left out by name."""

import io
import json
import struct
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from item_files import picture, pictures, tarred, tone, zipped
from shoal.controller.data import archives
from shoal.controller.data.io import pack_build
from shoal.controller.data.io.pack_build import build_pack
from shoal.controller.data.item_labels import Roles
from shoal.controller.data.open_items import open_items
from shoal.controller.data.packs import PackedItems
from shoal.controller.data.records import Packed
from shoal.errors import DatasetError

FIRST = "parts/good/001.png"


def add(
    folder: Path, files: dict[str, bytes], kind: str = "", **roles: str
) -> tuple[Packed, PackedItems]:
    return read(zipped(folder / "files.zip", files), kind, **roles)


def read(path: Path, kind: str = "", **roles: str) -> tuple[Packed, PackedItems]:
    target = path.with_suffix(".items")
    packed = build_pack(path, target, path.name, kind, Roles(**roles))
    items = open_items(target, "parts@1")
    assert isinstance(items, PackedItems)
    return packed, items


def reasons(packed: Packed) -> dict[str, int]:
    return {one.reason: one.count for one in packed.contents.left_out}


def csv(*lines: str) -> bytes:
    return "\n".join(lines).encode()


# ------------------------------------------------------------------------------------- images


def test_images_in_folders_are_classes_named_by_the_folders(tmp_path: Path) -> None:
    packed, items = add(tmp_path, pictures())
    assert (packed.kind, packed.count, packed.label) == ("images", 12, "folders")
    assert packed.contents.classes == {"bad": 4, "good": 8}
    assert (packed.contents.inputs[0].low, packed.contents.formats) == ([16, 24, 3], {"PNG": 12})
    at = items.index.names.index(FIRST)
    expected = np.asarray(Image.open(io.BytesIO(pictures()[FIRST])))
    assert np.array_equal(items.read(at)["image"], expected)
    assert items.labels()[at] == "good"


def test_a_pack_is_a_zip_with_the_files_as_they_were(tmp_path: Path) -> None:
    add(tmp_path, pictures())
    with zipfile.ZipFile(tmp_path / "files.items") as archive:
        assert archive.testzip() is None
        assert archive.read(FIRST) == pictures()[FIRST]


def test_the_same_files_are_the_same_bytes_from_a_zip_and_a_tar(tmp_path: Path) -> None:
    files = dict(sorted(pictures().items()))
    read(zipped(tmp_path / "a.zip", files))
    read(tarred(tmp_path / "b.tar.gz", files))
    assert (tmp_path / "a.items").read_bytes() == (tmp_path / "b.tar.items").read_bytes()


def test_bad_files_are_left_out_by_name_and_the_rest_is_taken(tmp_path: Path) -> None:
    others = {
        "parts/readme.md": b"about",
        "parts/good/torn.png": picture(1)[:-40],
        "parts/good/torn.jpg": picture(1, (200, 200), "JPEG")[:2000],
        "parts/good/none.png": b"no image at all",
        "parts/.DS_Store": b"x",
        "../outside.png": picture(2),
        "/root.png": picture(3),
        "parts/good/again.png": pictures()[FIRST],
    }
    packed, _ = add(tmp_path, pictures() | others)
    assert packed.count == 13
    assert reasons(packed) == {
        "damaged image": 2, "not an image that can be read": 1, "not an image": 1,
        "system file": 1, "path leaves the archive": 2,
    }  # fmt: skip
    assert packed.contents.left_out[0].names == ["../outside.png", "/root.png"]
    assert packed.contents.notes == ["1 images have the same bytes as one before; they are used"]


def test_what_the_process_did_before_takes_nothing_from_the_time_to_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_build, "DECODING_S", time.process_time())
    torn = {"parts/good/torn.png": picture(1)[:-40]}
    packed, _ = add(tmp_path, pictures() | torn)
    assert reasons(packed) == {"damaged image": 1}


def test_when_decoding_takes_too_long_headers_are_read_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_build, "DECODING_S", 0.0)
    torn = {"parts/good/torn.png": picture(1)[:-40]}
    packed, _ = add(tmp_path, pictures() | torn)
    assert packed.count == 13
    assert packed.contents.notes == [
        "of 13 images only the header was read: decoding took too long"
    ]


@pytest.mark.parametrize(
    ("mode", "form", "channels"),
    [("1", "PNG", 1), ("L", "JPEG", 1), ("P", "GIF", 3), ("RGB", "BMP", 3), ("RGBA", "PNG", 4),
     ("LA", "PNG", 4), ("CMYK", "JPEG", 3), ("RGB", "WEBP", 3), ("I;16", "TIFF", 1)],
)  # fmt: skip
def test_every_kind_of_pixel_is_bytes_of_one_three_or_four_channels(
    mode: str, form: str, channels: int, tmp_path: Path
) -> None:
    if mode == "I;16":
        file = io.BytesIO()
        deep = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24) * 100
        Image.fromarray(deep).save(file, form)
        image = file.getvalue()
    else:
        image = picture(form=form, mode=mode)
    packed, items = add(tmp_path, {f"a.{form.lower()}": image}, source="none")
    pixels = items.read(0)["image"]
    assert (pixels.shape, pixels.dtype) == ((16, 24, channels), np.uint8)
    assert packed.contents.inputs[0].high == list(pixels.shape)


def test_an_image_that_was_taken_sideways_is_upright(tmp_path: Path) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(picture())).save(file, "JPEG", exif=exif)
    packed, items = add(tmp_path, {"a.jpg": file.getvalue()}, source="none")
    assert items.read(0)["image"].shape == (24, 16, 3)
    assert packed.contents.inputs[0].low == [24, 16, 3]


# ------------------------------------------------------------------------------------- labels


def test_labels_sites_and_groups_are_read_from_a_csv_file(tmp_path: Path) -> None:
    rows = [f"{i:03}.png;{'ok' if i % 2 else 'scratch'};{i % 3};press {i % 4}" for i in range(12)]
    labels = csv("file;label;site;split", *rows, "lost.png;ok;1;press 1")
    files = {f"{i:03}.png": picture(i) for i in range(13)}
    packed, items = add(tmp_path, files | {"labels.csv": labels})
    assert (packed.count, packed.label) == (12, "labels.csv: label")
    assert packed.contents.classes == {"ok": 6, "scratch": 6}
    assert packed.sites == {"0": 4, "1": 4, "2": 4}
    assert reasons(packed) == {"labelled, not in the archive": 1, "no label": 1}
    train, held = items.split(seed=0, holdout=0.25)
    groups = items.groups()
    assert groups is not None
    assert set(groups[train]).isdisjoint(groups[held])


def test_a_column_of_fractions_is_labels_that_are_numbers(tmp_path: Path) -> None:
    labels = csv("path,wear", *(f"{i:03}.png,{i / 10}" for i in range(5)))
    files = {f"imgs/{i:03}.png": picture(i) for i in range(5)} | {"truth.csv": labels}
    _, items = add(tmp_path, files, label="wear")
    assert items.label_kind == "numbers"
    assert items.labels().tolist() == [0.0, 0.1, 0.2, 0.3, 0.4]


def coco(**more: Any) -> bytes:
    document = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "bolt"}, {"id": 5, "name": "nut"}],
        "annotations": [
            {"image_id": 7, "category_id": 5, "bbox": [2, 3, 10, 4], "iscrowd": 0},
            {"image_id": 7, "category_id": 1, "bbox": [20, 10, 100, 100]},
            {"image_id": 7, "category_id": 1, "bbox": [30, 3, 5, 5]},
        ],
    }
    return json.dumps(document | more).encode()


def test_boxes_are_read_from_coco_and_cut_at_the_edge_of_the_image(tmp_path: Path) -> None:
    files = {"images/a.png": picture(), "images/b.png": picture(1), "c.png": picture(2)}
    packed, items = add(tmp_path, files | {"annotations/train.json": coco()})
    assert (packed.count, packed.label) == (2, "COCO: annotations/train.json")
    boxes = items.boxes(0)
    assert boxes.xyxy.tolist() == [[2, 3, 12, 7], [20, 10, 24, 16]]
    assert boxes.classes == ["nut", "bolt"]
    assert len(items.boxes(1).classes) == 0
    assert packed.contents.classes == {"bolt": 1, "nut": 1}
    assert reasons(packed) == {"box without an area in the image": 1, "no label": 1}
    with pytest.raises(DatasetError, match="has boxes for labels"):
        items.labels()


def test_boxes_are_read_from_yolo_with_the_parts_that_its_folders_name(tmp_path: Path) -> None:
    files = {
        "data.yaml": b"nc: 2\nnames: ['bolt', 'nut']\n",
        "images/train/a.png": picture(), "labels/train/a.txt": b"1 0.5 0.5 0.5 0.25\nno box\n",
        "images/val/b.png": picture(1), "labels/val/b.txt": b"",
    }  # fmt: skip
    packed, items = add(tmp_path, files)
    assert items.boxes(0).xyxy.tolist() == [[6, 6, 18, 10]]
    assert items.boxes(0).classes == ["nut"]
    assert packed.contents.parts == {"train": 1, "val": 1}
    assert [part.tolist() for part in items.split(0, 0.5)] == [[0], [1]]
    assert reasons(packed) == {"line that is no box": 1}


def test_parts_by_folder_are_kept_and_are_no_classes(tmp_path: Path) -> None:
    files = {
        f"{'test' if i > 8 else 'train'}/{'a' if i % 2 else 'b'}/{i}.png": picture(i)
        for i in range(12)
    }
    packed, items = add(tmp_path, files)
    assert packed.contents.classes == {"a": 6, "b": 6}
    assert packed.contents.parts == {"test": 3, "train": 9}
    assert len(items.split(0, 0.5)[1]) == 3


UNCLEAR = {
    "nothing says what they are": ({"a.png": picture(), "b.png": picture(1)}, "say --unlabelled"),
    "two kinds of labels": (
        {"a.png": picture(), "l.csv": csv("file,label", "a.png,x"), "c.json": coco()},
        r"--labels-from coco\|csv",
    ),
    "a CSV without a column of labels": (
        {"a.png": picture(), "l.csv": csv("file,wear", "a.png,x")},
        "there are: file, wear; name it with --label",
    ),
    "two labels of one": (
        {"a.png": picture(), "l.csv": csv("file,label", "a.png,x", "a.png,y")},
        "has two labels of 'a.png'",
    ),
    "labels of other files": (
        {"a.png": picture(), "l.csv": csv("file,label", "z.png,x")},
        "none of the 1 items has a label",
    ),
    "JSON that is not COCO": ({"a.png": picture(), "c.json": b'{"images": 3}'}, "is not COCO"),
    "no images": ({"a.md": b"text"}, "has no images that can be read"),
    "images and sounds": ({"a.png": picture(), "a.wav": tone()}, "say --kind images"),
}


@pytest.mark.parametrize(("files", "words"), UNCLEAR.values(), ids=UNCLEAR.keys())
def test_what_is_not_clear_is_asked(files: dict[str, bytes], words: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=words):
        add(tmp_path, files)


# ------------------------------------------------------------------------------------- sounds


@pytest.mark.parametrize("kind", ["int16", "int32", "float32", "uint8"])
def test_sounds_of_every_width_are_floats_with_their_rate(kind: str, tmp_path: Path) -> None:
    wave = tone(kind="int16" if kind == "uint8" else kind, rate=8_000)
    if kind == "uint8":
        file = io.BytesIO()
        whole = np.sin(np.arange(800) * 0.05) * 63.5 + 128
        wavfile.write(file, 8_000, whole.round().astype(np.uint8))
        wave = file.getvalue()
    packed, items = add(tmp_path, {"a.wav": wave}, source="none")
    item = items.read(0)
    assert (item["audio"].dtype, item["audio"].shape) == (np.float32, (800,))
    assert np.abs(item["audio"] - np.sin(np.arange(800) * 0.05) * 0.5).max() < 0.01
    assert (item["rate"].dtype, int(item["rate"])) == (np.int64, 8_000)
    assert packed.contents.rates == {"8000": 1}


def test_sounds_in_folders_are_classes_and_what_is_no_wav_is_named(tmp_path: Path) -> None:
    files = {f"{'hum' if i % 2 else 'click'}/{i}.wav": tone(i, 400 + i) for i in range(6)}
    others = {"hum/a.mp3": b"ID3", "hum/torn.wav": tone()[:30]}
    packed, items = add(tmp_path, files | others)
    assert (packed.kind, packed.contents.classes) == ("audio", {"click": 3, "hum": 3})
    assert reasons(packed) == {
        "mp3, convert it to WAV": 1, "not a WAV file that can be read": 1,
    }  # fmt: skip
    assert (packed.contents.inputs[0].low, packed.contents.inputs[0].high) == ([400], [405])
    assert Counter(items.labels().tolist()) == {"click": 3, "hum": 3}


# ------------------------------------------------------------------------------------- hostile


def vast(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def test_an_image_of_vast_size_is_left_out_before_it_is_decoded(tmp_path: Path) -> None:
    files = pictures() | {"parts/good/bomb.png": vast(60_000, 60_000)}
    packed, _ = add(tmp_path, files | {"parts/good/large.png": vast(9_000, 9_000)})
    assert packed.count == 12
    assert reasons(packed) == {"too many pixels": 1, "more than 50 million pixels": 1}


def test_links_and_devices_are_left_out_and_never_followed(tmp_path: Path) -> None:
    path = tarred(tmp_path / "a.tar", pictures(), "w")
    with tarfile.open(path, "a") as archive:
        for name, kind in (("parts/good/l.png", tarfile.SYMTYPE), ("d.png", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    packed, _ = read(path)
    assert (packed.count, reasons(packed)) == (12, {"link or device": 2})


def test_a_torn_archive_gives_what_is_whole_and_says_so(tmp_path: Path) -> None:
    path = tarred(tmp_path / "a.tar.gz", pictures(60))
    path.write_bytes(path.read_bytes()[:-9_000])
    packed, _ = read(path)
    assert 40 < packed.count < 60
    assert reasons(packed) == {"damaged in the archive": 1}


@pytest.mark.parametrize(("name", "value"), [("MOST_MEMBERS", 10), ("LIMIT", 10_000)])
@pytest.mark.parametrize("made", [zipped, tarred])
def test_an_archive_beyond_the_limits_is_refused_by_name(
    made: Any, name: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, name, value)
    with pytest.raises(DatasetError, match=r"a\.bin (has more than|unpacks to more)"):
        read(made(tmp_path / "a.bin", pictures()))


def test_a_member_that_is_too_large_or_encrypted_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 10_000)
    path = zipped(tmp_path / "a.zip", {"a.png": bytes(20_000), "b.png": picture(), "c.png": b"1"})
    data = bytearray(path.read_bytes())
    data[data.rfind(b"PK\x01\x02") + 8] |= 1  # c.png: encrypted, in the directory
    data[data.rfind(b"PK\x03\x04") + 6] |= 1
    path.write_bytes(data)
    packed, _ = read(path, source="none")
    assert packed.count == 1
    assert reasons(packed) == {"larger than 0 MiB": 1, "encrypted": 1}
