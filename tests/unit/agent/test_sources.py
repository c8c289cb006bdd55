"""A CSV file becomes rows as the model wants them, or one sentence on what is wrong with it."""

import contextlib
import gzip
import time
from pathlib import Path

import numpy as np
import pytest

from devices import MODEL, engine
from shoal.agent.faults import Fault
from shoal.agent.io.sources import Replay, columns_of, read_table, truth
from shoal.agent.serving import Serving
from shoal.errors import DatasetError
from shoal.manifest import Feature
from shoal.wire import Health

TEXT = "blur,note,contrast,grade\n1,a,2,good\n3,b,,bad\n5,c,6,unheard\n"


def write(folder: Path, text: str = TEXT, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_columns_are_ordered_as_the_model_names_them(tmp_path: Path, name: str) -> None:
    table = read_table(write(tmp_path, name=name), "grade")
    chosen = table.values[:, columns_of(table, engine(1))]
    np.testing.assert_array_equal(chosen, [[2, 1], [np.nan, 3], [6, 5]])
    np.testing.assert_array_equal(truth(table, engine(1), [0, 1, 2]), [0, 1, -1])


def test_without_a_label_nothing_is_judged(tmp_path: Path) -> None:
    assert truth(read_table(write(tmp_path), ""), engine(1), [0]) is None


def test_a_class_is_the_same_however_its_number_is_written(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "x,y\n1,3\n1,3.0\n1, 3\n1,03\n"), "y")
    digits = engine(1, labels=["1", "3"])
    np.testing.assert_array_equal(truth(table, digits, [0, 1, 2, 3]), [1, 1, 1, 1])


def test_a_regression_is_judged_by_its_value(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "x,y\n1,3.5\n"), "y")
    rul = engine(1, task="regression", labels=[])
    np.testing.assert_array_equal(truth(table, rul, [0]), [3.5])


WRONG = {
    "": "is empty",
    "a,grade\n": "no rows",
    "a,grade\n1\n": ":2 has 1 fields",
    "a,b\n1,2\n": "no label column 'grade'",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_file_is_refused_with_its_line_and_the_mend(text: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=WRONG[text]):
        read_table(write(tmp_path, text), "grade")


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(DatasetError, match="UTF-8"):
        read_table(path, "")
    path.with_suffix(".gz").write_bytes(b"not gzip")
    with pytest.raises(DatasetError):
        read_table(path.with_suffix(".gz"), "")
    with pytest.raises(DatasetError, match="path right"):
        read_table(tmp_path / "nowhere.csv", "")


def test_a_missing_feature_is_named(tmp_path: Path) -> None:
    table = read_table(write(tmp_path), "grade")
    needs = engine(1, features=[Feature(name="torque", low=0, high=1)])
    with pytest.raises(DatasetError, match="no column torque"):
        columns_of(table, needs)


def wait_for(what, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.005)
    assert what()


def test_a_replay_feeds_the_model_judges_it_and_reads_a_changed_file_again(tmp_path: Path) -> None:
    serving = Serving(MODEL, clock=lambda: 1.0, timer=lambda: 0.0, lock=contextlib.nullcontext())
    serving.swap(engine(1), Health())
    path, faults = write(tmp_path, "blur,contrast,grade\n1,2,good\n"), list[Fault]()
    replay = Replay(
        path,
        label="grade",
        rate_hz=500,
        batch=1,
        seed=1,
        serving=lambda: {MODEL: serving},
        fault=faults.append,
        monotonic=time.monotonic,
    )
    replay.start()
    try:
        wait_for(lambda: serving.vitals.rows > 5)
        path.write_text("blur,contrast,grade\n,,good\n,,good\n")
        wait_for(lambda: "bad-input" in [f.cause for f in faults])
        path.write_text("other,grade\n1,good\n")
        wait_for(lambda: "bad-dataset" in [f.cause for f in faults])
    finally:
        replay.stop()
    assert not replay.is_alive()
