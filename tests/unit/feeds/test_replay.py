"""The replay source and its tables: a recorded file to frames, or an error."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from devices import MODEL, engine
from feed_doubles import Recorder, feeds_of, running, serving_of
from shoal.agent.feeds.flow import truth
from shoal.agent.feeds.io.runner import image_of
from shoal.agent.serving.io.row_table import read_table
from shoal.errors import DatasetError, SettingError
from shoal.pipeline import Image, Pipeline
from waiting import eventually

TEXT = "blur,note,contrast,grade\n1,a,2,good\n3,b,,bad\n5,c,6,unheard\n"


def write(folder: Path, text: str = TEXT, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return path


def parquet(folder: Path, **columns: list[object]) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = folder / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


# ------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_a_table_has_numbers_labels_and_nan_for_anything_else(tmp_path: Path, name: str) -> None:
    table = read_table(write(tmp_path, name=name), "grade")
    assert table.columns == ("blur", "note", "contrast", "grade")
    np.testing.assert_array_equal(table.values[:, [0, 2]], [[1, 2], [3, np.nan], [5, 6]])
    np.testing.assert_array_equal(truth(engine(1), table.labels, [0, 1, 2]), [0, 1, -1])


def test_a_parquet_file_is_the_same_table(tmp_path: Path) -> None:
    path = parquet(
        tmp_path, blur=[1, 3, 5], contrast=[2.0, None, 6.0], grade=["good", "bad", "unheard"],
        at=["1970-01-01T00:00:00", "1970-01-01T00:00:01", "1970-01-01T00:00:02"],
    )  # fmt: skip
    table = read_table(path, "grade", "at")
    np.testing.assert_array_equal(table.values[:, [0, 1]], [[1, 2], [3, np.nan], [5, 6]])
    assert (table.labels, table.times) == (["good", "bad", "unheard"], [0.0, 1.0, 2.0])


def test_without_a_label_column_there_are_no_labels(tmp_path: Path) -> None:
    assert truth(engine(1), read_table(write(tmp_path)).labels, [0]) is None


def test_a_class_is_the_same_however_its_number_is_written() -> None:
    digits = engine(1, labels=["1", "3"])
    np.testing.assert_array_equal(truth(digits, ["3", "3.0", " 3", "03"], range(4)), [1, 1, 1, 1])


def test_labels_of_a_regression_are_values() -> None:
    rul = engine(1, task="regression", labels=[])
    np.testing.assert_array_equal(truth(rul, ["3.5"], [0]), [3.5])


WRONG = {
    "": "is empty",
    "a,grade\n": "no rows",
    "a,grade\n1\n": ":2 has 1 fields",
    "a,b\n1,2\n": "no label column 'grade'",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_file_is_refused_with_its_line_and_a_hint(text: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=WRONG[text]):
        read_table(write(tmp_path, text), "grade")


@pytest.mark.parametrize(
    ("text", "why"),
    [("t,x\nyesterday,1\n", ":2: 'yesterday' is no time"), ("t,x\n2,1\n1,1\n", "not in order"),
     ("x\n1\n", "no time column 't'")],
)  # fmt: skip
def test_an_invalid_time_is_refused(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=why):
        read_table(write(tmp_path, text), "", "t")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(DatasetError, match="UTF-8"):
        read_table(path)
    for name in ("rows.csv.gz", "rows.parquet"):
        (tmp_path / name).write_bytes(b"neither gzip nor parquet")
        with pytest.raises(DatasetError):
            read_table(tmp_path / name)
    with pytest.raises(DatasetError, match="path right"):
        read_table(tmp_path / "nowhere.csv")


# ------------------------------------------------------------------------------------- replay


def test_a_replay_feeds_rows_and_labels_and_reads_a_changed_file_again(recorder: Recorder) -> None:
    serving = serving_of(engine(1))
    path = write(recorder.folder, "blur,contrast,grade\n1,2,good\n")
    table = {"kind": "replay", "path": "rows.csv", "label": "grade", "rate_hz": 500.0}
    feeds = feeds_of(recorder, {MODEL: serving}, {"file": table})
    feeds.start()
    try:
        eventually(lambda: serving.vitals.rows > 5)
        path.write_text("blur,contrast,grade\n,,good\n,,good\n")
        eventually(lambda: recorder.reported("'contrast' is missing"))
        path.write_text("other,grade\n1,good\n")
        eventually(lambda: recorder.reported("no value named contrast, blur"))
        path.unlink()
        eventually(lambda: not feeds.health()[0].up, "the file's absence is seen")
        assert "path right" in feeds.health()[0].error
    finally:
        feeds.stop()


def test_a_recording_is_replayed_in_order_with_its_pauses_scaled_by_speed(
    recorder: Recorder,
) -> None:
    write(recorder.folder, "at,x\n100,1\n101,2\n103,3\n")
    replay = recorder.source("replay", path="rows.csv", time="at", speed=50.0, asset="pump-3")
    with running(replay):
        eventually(lambda: len(recorder.frames) >= 6)
    first = recorder.frames[:6]
    assert [frame.rows[0, 1] for frame in first] == [1, 2, 3, 1, 2, 3]
    assert [frame.time_s for frame in first] == [100, 101, 103, 104.5, 105.5, 107.5]
    assert first[0].asset == "pump-3"


def test_a_replay_may_end_after_one_pass(recorder: Recorder) -> None:
    write(recorder.folder)
    replay = recorder.source("replay", path="rows.csv", rate_hz=0.0, batch=2, once=True)
    with running(replay) as thread:
        thread.join(20)
        assert not thread.is_alive()
    assert [len(frame.rows) for frame in recorder.frames] == [2, 1]


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"path": ""}, "sources.line.path"), ({"path": "x.csv", "batch": 0}, "batch is too small"),
     ({"path": "x.csv", "speed": 0.0}, "speed is too small"),
     ({"path": "x.csv", "rate": 1}, "sources.line.*unknown field 'rate'; there are: "),
     ({"path": 7}, "sources.line.path: Expected `str`")],
)  # fmt: skip
def test_a_wrong_setting_is_refused_by_name(
    settings: dict[str, object], why: str, recorder: Recorder
) -> None:
    with pytest.raises(SettingError, match=why):
        recorder.source("replay", **settings)


@pytest.mark.parametrize(
    ("images", "model", "size"),
    [
        ({"a": None, "b": None}, "", None),
        ({"a": (4, 3), "b": None}, "", (4, 3)),
        ({"a": (4, 3), "b": (4, 3)}, "", (4, 3)),
        ({"a": (4, 3), "b": (8, 8)}, "b", (8, 8)),
        ({"a": (4, 3), "b": (8, 8)}, "", SettingError),
        ({}, "", None),
    ],
)
def test_a_source_makes_images_as_the_signed_releases_declare(images, model, size) -> None:
    def served(wanted):
        image = Image(width=wanted[0], height=wanted[1]) if wanted else None
        return serving_of(engine(1, pipeline=Pipeline(image=image)))

    by_name = {name: served(wanted) for name, wanted in images.items()}
    if size is SettingError:
        with pytest.raises(SettingError, match="name one: model"):
            image_of(by_name, model)
        return
    found = image_of(by_name, model)
    assert (found and (found.width, found.height)) == size
