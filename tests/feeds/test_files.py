"""The images source and the files sink."""

import csv
import datetime
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices import MODEL
from feed_doubles import Recorder, prediction, running
from shoal.agent.feeds.frames import Quality
from shoal.agent.feeds.io.files import COLUMNS
from shoal.errors import SettingError
from shoal.pipeline import Image as Signed
from waiting import eventually

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def camera(recorder: Recorder) -> Path:
    folder = recorder.folder / "camera"
    folder.mkdir()
    return folder


def shoot(folder: Path, name: str, colour: tuple[int, int, int] = (255, 0, 10)) -> Path:
    path = folder / name
    part = path.with_name(f".{name}.new")
    kind = "JPEG" if path.suffix == ".jpg" else None
    Image.new("RGB", (8, 6), colour).save(part, format=kind or path.suffix[1:].upper())
    return part.rename(path)


def images(recorder: Recorder, **more: Any) -> Any:
    wanted = {"path": "camera", "width": 4, "height": 3, "every_s": 0.02, "settle_s": 0.0,
              "retry_s": 0.1, "pattern": "*.*"}  # fmt: skip
    return recorder.source("images", **(wanted | more))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp"])
def test_an_image_is_a_tensor_of_pixels_in_the_models_size_and_order(
    recorder: Recorder, camera: Path, name: str
) -> None:
    feed = images(recorder, asset="line-1")
    with running(feed):
        eventually(lambda: feed.health().up)
        path = shoot(camera, name)
        eventually(lambda: recorder.frames)
    (frame,) = recorder.frames
    assert (frame.names, frame.rows.shape, frame.asset) == ((), (1, 36), "line-1")
    assert frame.time_s == path.stat().st_mtime_ns / 1e9
    planes = frame.rows.reshape(3, 3, 4).mean((1, 2))
    np.testing.assert_allclose(planes, [255, 0, 10], atol=3)


def test_channels_may_come_last_and_grey_has_one(recorder: Recorder, camera: Path) -> None:
    shoot(camera, "a.png")
    with running(images(recorder, layout="hwc", existing=True)):
        eventually(lambda: recorder.frames)
    assert recorder.frames[0].rows.reshape(3, 4, 3)[0, 0].tolist() == [255, 0, 10]
    grey = Recorder(recorder.folder)
    with running(images(grey, mode="L", existing=True)):
        eventually(lambda: grey.frames)
    assert grey.frames[0].rows.shape == (1, 12)


def test_each_file_is_read_once_and_again_when_it_changes(recorder: Recorder, camera: Path) -> None:
    shoot(camera, "old.png")
    feed = images(recorder)
    with running(feed):
        eventually(lambda: feed.health().up)
        shoot(camera, "a.png")
        shoot(camera, "b.png")
        eventually(lambda: len(recorder.frames) == 2)
        path = shoot(camera, "a.png", (1, 2, 3))
        os.utime(path, (2_000_000_000, 2_000_000_000))
        eventually(lambda: len(recorder.frames) == 3)
    assert recorder.frames[2].rows.reshape(3, 12)[:, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("after", "left"), [("delete", []), ("move", ["done"])])
def test_a_file_is_kept_moved_or_deleted_after_reading(
    recorder: Recorder, camera: Path, after: str, left: list[str]
) -> None:
    shoot(camera, "a.png")
    with running(images(recorder, after=after)):
        eventually(lambda: recorder.frames and sorted(p.name for p in camera.iterdir()) == left)
    if left:
        assert [p.name for p in (camera / "done").iterdir()] == ["a.png"]


def test_an_unreadable_image_is_a_bad_frame_and_a_half_written_one_is_tried_again(
    recorder: Recorder, camera: Path
) -> None:
    whole = shoot(recorder.folder, "whole.png").read_bytes()
    feed = images(recorder, existing=True, settle_s=3600.0)
    half = camera / "half.png"
    half.write_bytes(whole[:30])
    broken = camera / "broken.png"
    broken.write_bytes(b"no image")
    os.utime(broken, (1_000_000_000, 1_000_000_000))
    with running(feed):
        eventually(lambda: recorder.frames)
        assert recorder.frames[0].quality is Quality.BAD
        half.write_bytes(whole)
        eventually(lambda: len(recorder.frames) == 2)
    assert recorder.frames[1].quality is Quality.GOOD
    assert recorder.reported("line: broken.png")
    assert feed.health().bad == 1


def test_a_name_that_begins_with_a_dot_is_ignored(recorder: Recorder, camera: Path) -> None:
    (camera / ".a.png.new").write_bytes(b"half")
    shoot(camera, "b.png")
    with running(images(recorder, existing=True)):
        eventually(lambda: recorder.frames)
    assert [frame.quality for frame in recorder.frames] == [Quality.GOOD]


def test_a_missing_folder_is_tried_again_until_it_is_back(recorder: Recorder, camera: Path) -> None:
    feed = images(recorder)
    with running(feed):
        eventually(lambda: feed.health().up)
        camera.rename(recorder.folder / "unmounted")
        eventually(lambda: not feed.health().up)
        assert recorder.reported("is no folder; is the share mounted?")
        (recorder.folder / "unmounted").rename(camera)
        eventually(lambda: feed.health().up)
        shoot(camera, "a.png")
        eventually(lambda: recorder.frames)


def test_images_have_the_size_in_the_signed_release(recorder: Recorder, camera: Path) -> None:
    recorder.image = Signed(width=2, height=5, mode="L")
    feed = images(recorder, width=0, height=0, existing=True)
    shoot(camera, "a.png")
    with running(feed):
        eventually(lambda: recorder.frames)
        recorder.image = Signed(width=4, height=3, layout="hwc")  # the next release
        shoot(camera, "b.png")
        eventually(lambda: len(recorder.frames) == 2)
    assert [frame.rows.shape for frame in recorder.frames] == [(1, 10), (1, 36)]
    assert recorder.faults == []


def test_image_settings_in_agent_toml_are_used_for_a_release_without_them(
    recorder: Recorder, camera: Path
) -> None:
    shoot(camera, "a.png")
    with running(images(recorder, existing=True)):
        eventually(lambda: recorder.frames)
        recorder.image = Signed(width=2, height=5)
        shoot(camera, "b.png")
        eventually(lambda: len(recorder.frames) == 2)
    assert [frame.rows.shape for frame in recorder.frames] == [(1, 36), (1, 30)]
    reports = [fault for fault in recorder.faults if fault.cause == "unsigned-image"]
    assert [fault.severity for fault in reports] == ["info", "info"]
    assert "4x3 RGB chw, which is not signed" in reports[0].detail
    assert "the signed release 2x5 RGB chw, which is used" in reports[1].detail


def test_images_wait_until_their_size_is_known(recorder: Recorder, camera: Path) -> None:
    shoot(camera, "a.png")
    feed = images(recorder, width=0, height=0, existing=True)
    with running(feed):
        eventually(lambda: recorder.reported("the size of the images is unknown"))
        assert not feed.health().up
        recorder.image = Signed(width=2, height=2)
        eventually(lambda: recorder.frames)
    assert recorder.frames[0].rows.shape == (1, 12)


def test_a_width_without_a_height_is_refused(recorder: Recorder) -> None:
    with pytest.raises(SettingError, match=r"sources\.line.*width"):
        images(recorder, width=0)


# ------------------------------------------------------------------------------------- sink


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def sink(recorder: Recorder, **more: Any) -> Any:
    wanted = {"path": "predictions", "every_s": 0.02, "retry_s": 0.05}
    return recorder.sink("files", **(wanted | more))


def test_predictions_are_lines_of_the_days_file_with_one_header(recorder: Recorder) -> None:
    path = recorder.folder / "predictions" / "line-1970-01-01.csv"
    for number in range(2):  # the agent starts twice
        feed = sink(recorder)
        with running(feed):
            feed.write(prediction(1_000.5, asset='p, "3"'))
            eventually(lambda n=number: path.exists() and len(rows_of(path)) == n + 1)
    first, _ = rows_of(path)
    assert tuple(first) == COLUMNS
    assert (first["time_s"], first["asset"], first["label"]) == ("1000.5", 'p, "3"', "good")
    assert json.loads(first["scores"]) == {"good": 0.7, "bad": 0.2, "odd": 0.1}


def test_queued_predictions_are_written_at_the_end(recorder: Recorder) -> None:
    feed = sink(recorder, every_s=3600.0)
    with running(feed):
        for number in range(5):
            feed.write(prediction(float(number)))
    assert len(rows_of(recorder.folder / "predictions" / "line-1970-01-01.csv")) == 5


def test_a_line_truncated_by_a_power_cut_is_removed_and_the_rest_stays(recorder: Recorder) -> None:
    with running(feed := sink(recorder)):
        feed.write(prediction(1.0))
    path = recorder.folder / "predictions" / "line-1970-01-01.csv"
    with path.open("ab") as file:
        file.write(b"2.0,pump-3,lot-co")
    with running(feed := sink(recorder)):
        feed.write(prediction(3.0))
    assert [row["time_s"] for row in rows_of(path)] == ["1.0", "3.0"]


def test_predictions_are_queued_while_the_disk_refuses(recorder: Recorder) -> None:
    (recorder.folder / "predictions").write_text("in the way")
    feed = sink(recorder, keep=10)
    with running(feed):
        for number in range(12):
            feed.write(prediction(float(number)))
        eventually(lambda: recorder.faults)
        assert (feed.health().up, feed.health().waiting) == (False, 10)
        (recorder.folder / "predictions").unlink()
        eventually(lambda: feed.health().up and not feed.health().waiting)
    rows = rows_of(recorder.folder / "predictions" / "line-1970-01-01.csv")
    assert [row["time_s"] for row in rows] == [f"{n}.0" for n in range(2, 12)]
    assert feed.health().dropped == 2


def test_beyond_the_total_size_the_oldest_files_are_deleted(recorder: Recorder) -> None:
    feed = sink(recorder, limit_mb=0.01)
    day = 86_400.0
    with running(feed):
        for number in range(6):
            for _ in range(40):
                feed.write(prediction(number * day))
            eventually(lambda: not feed.health().waiting)
    names = sorted(p.name for p in (recorder.folder / "predictions").iterdir())
    newest = datetime.datetime.fromtimestamp(5 * day, datetime.UTC)
    assert names[-1] == f"line-{newest:%Y-%m-%d}.csv"
    assert len(names) < 6


def test_parquet_files_have_the_same_rows_and_are_complete(recorder: Recorder) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    feed = sink(recorder, format="parquet")
    with running(feed):
        for number in range(5):
            feed.write(prediction(float(number)))
        eventually(lambda: not feed.health().waiting)
    files = sorted((recorder.folder / "predictions").iterdir())
    assert {path.suffix for path in files} == {".parquet"}
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert [row["time_s"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[0]["release"] == f"{MODEL}@1"
