"""A folder of images in, and files of predictions out."""

import csv
import datetime
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices import MODEL
from feed_doubles import Plant, prediction, running
from shoal.agent.feeds.frames import Quality
from shoal.agent.feeds.io.files import COLUMNS
from shoal.errors import SettingError
from shoal.pipeline import Image as Signed
from waiting import eventually

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def camera(plant: Plant) -> Path:
    folder = plant.folder / "camera"
    folder.mkdir()
    return folder


def shoot(folder: Path, name: str, colour: tuple[int, int, int] = (255, 0, 10)) -> Path:
    path = folder / name
    part = path.with_name(f".{name}.new")
    kind = "JPEG" if path.suffix == ".jpg" else None
    Image.new("RGB", (8, 6), colour).save(part, format=kind or path.suffix[1:].upper())
    return part.rename(path)


def images(plant: Plant, **more: Any) -> Any:
    wanted = {"path": "camera", "width": 4, "height": 3, "every_s": 0.02, "settle_s": 0.0,
              "retry_s": 0.1, "pattern": "*.*"}  # fmt: skip
    return plant.source("images", **(wanted | more))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp"])
def test_an_image_is_a_tensor_of_pixels_in_the_size_and_order_the_model_reads(
    plant: Plant, camera: Path, name: str
) -> None:
    feed = images(plant, asset="line-1")
    with running(feed):
        eventually(lambda: feed.health().up)
        path = shoot(camera, name)
        eventually(lambda: plant.frames)
    (frame,) = plant.frames
    assert (frame.names, frame.rows.shape, frame.asset) == ((), (1, 36), "line-1")
    assert frame.time_s == path.stat().st_mtime_ns / 1e9
    planes = frame.rows.reshape(3, 3, 4).mean((1, 2))
    np.testing.assert_allclose(planes, [255, 0, 10], atol=3)


def test_channels_may_come_last_and_grey_has_one(plant: Plant, camera: Path) -> None:
    shoot(camera, "a.png")
    with running(images(plant, layout="hwc", existing=True)):
        eventually(lambda: plant.frames)
    assert plant.frames[0].rows.reshape(3, 4, 3)[0, 0].tolist() == [255, 0, 10]
    grey = Plant(plant.folder)
    with running(images(grey, mode="L", existing=True)):
        eventually(lambda: grey.frames)
    assert grey.frames[0].rows.shape == (1, 12)


def test_each_file_is_read_once_and_again_when_it_is_written_anew(
    plant: Plant, camera: Path
) -> None:
    shoot(camera, "old.png")
    feed = images(plant)
    with running(feed):
        eventually(lambda: feed.health().up)
        shoot(camera, "a.png")
        shoot(camera, "b.png")
        eventually(lambda: len(plant.frames) == 2)
        path = shoot(camera, "a.png", (1, 2, 3))
        os.utime(path, (2_000_000_000, 2_000_000_000))
        eventually(lambda: len(plant.frames) == 3)
    assert plant.frames[2].rows.reshape(3, 12)[:, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("after", "left"), [("delete", []), ("move", ["done"])])
def test_what_was_read_is_put_away(plant: Plant, camera: Path, after: str, left: list[str]) -> None:
    shoot(camera, "a.png")
    with running(images(plant, after=after)):
        eventually(lambda: plant.frames and sorted(p.name for p in camera.iterdir()) == left)
    if left:
        assert [p.name for p in (camera / "done").iterdir()] == ["a.png"]


def test_what_is_no_image_is_a_bad_frame_and_a_half_written_one_is_waited_for(
    plant: Plant, camera: Path
) -> None:
    whole = shoot(plant.folder, "whole.png").read_bytes()
    feed = images(plant, existing=True, settle_s=3600.0)
    half = camera / "half.png"
    half.write_bytes(whole[:30])
    broken = camera / "broken.png"
    broken.write_bytes(b"no image")
    os.utime(broken, (1_000_000_000, 1_000_000_000))
    with running(feed):
        eventually(lambda: plant.frames)
        assert plant.frames[0].quality is Quality.BAD
        half.write_bytes(whole)
        eventually(lambda: len(plant.frames) == 2)
    assert plant.frames[1].quality is Quality.GOOD
    assert plant.told("line: broken.png")
    assert feed.health().bad == 1


def test_a_name_with_a_dot_in_front_is_a_file_that_is_being_written(
    plant: Plant, camera: Path
) -> None:
    (camera / ".a.png.new").write_bytes(b"half")
    shoot(camera, "b.png")
    with running(images(plant, existing=True)):
        eventually(lambda: plant.frames)
    assert [frame.quality for frame in plant.frames] == [Quality.GOOD]


def test_a_folder_that_goes_away_is_waited_for(plant: Plant, camera: Path) -> None:
    feed = images(plant)
    with running(feed):
        eventually(lambda: feed.health().up)
        camera.rename(plant.folder / "unmounted")
        eventually(lambda: not feed.health().up)
        assert plant.told("is no folder; is the share mounted?")
        (plant.folder / "unmounted").rename(camera)
        eventually(lambda: feed.health().up)
        shoot(camera, "a.png")
        eventually(lambda: plant.frames)


def test_the_release_that_serves_says_how_large_images_are(plant: Plant, camera: Path) -> None:
    plant.image = Signed(width=2, height=5, mode="L")
    feed = images(plant, width=0, height=0, existing=True)
    shoot(camera, "a.png")
    with running(feed):
        eventually(lambda: plant.frames)
        plant.image = Signed(width=4, height=3, layout="hwc")  # the next release
        shoot(camera, "b.png")
        eventually(lambda: len(plant.frames) == 2)
    assert [frame.rows.shape for frame in plant.frames] == [(1, 10), (1, 36)]
    assert plant.faults == []


def test_what_agent_toml_says_of_images_is_used_where_the_release_says_nothing(
    plant: Plant, camera: Path
) -> None:
    shoot(camera, "a.png")
    with running(images(plant, existing=True)):
        eventually(lambda: plant.frames)
        plant.image = Signed(width=2, height=5)
        shoot(camera, "b.png")
        eventually(lambda: len(plant.frames) == 2)
    assert [frame.rows.shape for frame in plant.frames] == [(1, 36), (1, 30)]
    told = [fault for fault in plant.faults if fault.cause == "unsigned-image"]
    assert [fault.severity for fault in told] == ["info", "info"]
    assert "4x3 RGB chw, and nobody has signed that" in told[0].detail
    assert "the release 2x5 RGB chw, which is signed and holds" in told[1].detail


def test_until_somebody_says_how_large_images_are_they_wait(plant: Plant, camera: Path) -> None:
    shoot(camera, "a.png")
    feed = images(plant, width=0, height=0, existing=True)
    with running(feed):
        eventually(lambda: plant.told("nobody says how large images are"))
        assert not feed.health().up
        plant.image = Signed(width=2, height=2)
        eventually(lambda: plant.frames)
    assert plant.frames[0].rows.shape == (1, 12)


def test_a_folder_of_no_size_is_refused(plant: Plant) -> None:
    with pytest.raises(SettingError, match=r"sources\.line.*width"):
        images(plant, width=0)


# ------------------------------------------------------------------------------------- sink


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def sink(plant: Plant, **more: Any) -> Any:
    wanted = {"path": "said", "every_s": 0.02, "retry_s": 0.05}
    return plant.sink("files", **(wanted | more))


def test_predictions_are_lines_of_the_days_file_with_one_header(plant: Plant) -> None:
    path = plant.folder / "said" / "line-1970-01-01.csv"
    for number in range(2):  # the agent starts twice
        feed = sink(plant)
        with running(feed):
            feed.write(prediction(1_000.5, asset='p, "3"'))
            eventually(lambda n=number: path.exists() and len(rows_of(path)) == n + 1)
    first, _ = rows_of(path)
    assert tuple(first) == COLUMNS
    assert (first["time_s"], first["asset"], first["label"]) == ("1000.5", 'p, "3"', "good")
    assert json.loads(first["scores"]) == {"good": 0.7, "bad": 0.2, "odd": 0.1}


def test_what_waits_at_the_end_is_written_too(plant: Plant) -> None:
    feed = sink(plant, every_s=3600.0)
    with running(feed):
        for number in range(5):
            feed.write(prediction(float(number)))
    assert len(rows_of(plant.folder / "said" / "line-1970-01-01.csv")) == 5


def test_a_line_that_a_power_cut_tore_is_dropped_and_the_rest_stays(plant: Plant) -> None:
    with running(feed := sink(plant)):
        feed.write(prediction(1.0))
    path = plant.folder / "said" / "line-1970-01-01.csv"
    with path.open("ab") as file:
        file.write(b"2.0,pump-3,lot-co")
    with running(feed := sink(plant)):
        feed.write(prediction(3.0))
    assert [row["time_s"] for row in rows_of(path)] == ["1.0", "3.0"]


def test_a_disk_that_refuses_loses_nothing_until_it_takes_again(plant: Plant) -> None:
    (plant.folder / "said").write_text("in the way")
    feed = sink(plant, keep=10)
    with running(feed):
        for number in range(12):
            feed.write(prediction(float(number)))
        eventually(lambda: plant.faults)
        assert (feed.health().up, feed.health().waiting) == (False, 10)
        (plant.folder / "said").unlink()
        eventually(lambda: feed.health().up and not feed.health().waiting)
    rows = rows_of(plant.folder / "said" / "line-1970-01-01.csv")
    assert [row["time_s"] for row in rows] == [f"{n}.0" for n in range(2, 12)]
    assert feed.health().dropped == 2


def test_the_oldest_files_go_when_all_are_too_large(plant: Plant) -> None:
    feed = sink(plant, limit_mb=0.01)
    day = 86_400.0
    with running(feed):
        for number in range(6):
            for _ in range(40):
                feed.write(prediction(number * day))
            eventually(lambda: not feed.health().waiting)
    names = sorted(p.name for p in (plant.folder / "said").iterdir())
    newest = datetime.datetime.fromtimestamp(5 * day, datetime.UTC)
    assert names[-1] == f"line-{newest:%Y-%m-%d}.csv"
    assert len(names) < 6


def test_parquet_files_hold_the_same_and_are_whole(plant: Plant) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    feed = sink(plant, format="parquet")
    with running(feed):
        for number in range(5):
            feed.write(prediction(float(number)))
        eventually(lambda: not feed.health().waiting)
    files = sorted((plant.folder / "said").iterdir())
    assert {path.suffix for path in files} == {".parquet"}
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert [row["time_s"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[0]["release"] == f"{MODEL}@1"
