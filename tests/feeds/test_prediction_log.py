"""The prediction log after kill -9, with damaged files, and on a full disk."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feed_doubles import prediction
from shoal.agent.feeds.frames import Quality
from shoal.agent.feeds.io import prediction_log
from shoal.agent.feeds.io.prediction_log import PredictionLog
from shoal.errors import StorageError


def filled(folder: Path, count: int, limit: int = 1_000) -> PredictionLog:
    log = PredictionLog(folder / "line.kept", limit)
    for number in range(count):
        log.append(prediction(float(number)))
    return log


def times_in(folder: Path, limit: int = 1_000) -> list[float]:
    return [one.time_s for one in PredictionLog(folder / "line.kept", limit).load()]


def segments(folder: Path) -> list[Path]:
    return sorted((folder / "line.kept").glob("*.log"))


def test_the_next_process_reads_every_record_in_order(tmp_path: Path):
    odd = prediction(7.5, quality=Quality.UNCERTAIN, asset="", label="", labels=("value",))
    log = filled(tmp_path, 300)
    log.append(odd._replace(scores=np.array([np.nan], np.float32)))
    *many, last = PredictionLog(tmp_path / "line.kept", 1_000).load()
    assert [one.time_s for one in many] == list(map(float, range(300)))
    assert many[0]._replace(scores=0) == prediction(0.0)._replace(scores=0)
    assert many[0].scores.tolist() == prediction(0.0).scores.tolist()
    assert last._replace(scores=0) == odd._replace(scores=0)
    assert np.isnan(last.scores).all()


def test_numbers_continue_in_the_next_process(tmp_path: Path):
    filled(tmp_path, 10)
    again = PredictionLog(tmp_path / "line.kept", 1_000)
    again.load()
    again.append(prediction(10.0))
    assert again.last == 11
    assert times_in(tmp_path) == list(map(float, range(11)))


def test_published_records_are_deleted_a_segment_at_a_time(tmp_path: Path):
    log = filled(tmp_path, 40, limit=80)
    log.discard(25)
    assert times_in(tmp_path) == list(map(float, range(20, 40)))
    log.discard(40)
    assert segments(tmp_path) == []
    log.append(prediction(40.0))
    assert times_in(tmp_path) == [40.0]


def test_beyond_its_limit_the_oldest_segment_is_deleted(tmp_path: Path):
    filled(tmp_path, 1_000, limit=80)
    times = times_in(tmp_path)
    assert times == list(map(float, range(1_000 - len(times), 1_000)))
    assert 80 <= len(times) <= 90


def test_bytes_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prediction_log, "LIMIT", 20_000)
    monkeypatch.setattr(prediction_log, "SEGMENT", 2_000)
    filled(tmp_path, 1_000)
    assert 10_000 < sum(path.stat().st_size for path in segments(tmp_path)) <= 20_000
    assert times_in(tmp_path)[-1] == 999.0


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 5_000), byte=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_segment_is_read_up_to_the_damage(tmp_path: Path, at: int, byte: int, cut: bool):
    log = filled(tmp_path, 30, limit=80)
    _, second, _ = segments(tmp_path)
    data = bytearray(second.read_bytes())
    at %= len(data)
    data[at] ^= byte
    second.write_bytes(data[:at] if cut else data)
    times = times_in(tmp_path)
    whole = list(map(float, range(30)))
    assert times[:10] == whole[:10]
    assert times[-10:] == whole[-10:]
    middle = times[10:-10]
    assert middle == whole[10 : 10 + len(middle)]
    assert len(middle) == at * 10 // len(data)
    log.discard(30)


def test_a_disk_that_refuses_is_an_error_and_the_next_append_works(tmp_path: Path):
    folder = tmp_path / "line.kept"
    folder.write_text("in the way")
    log = PredictionLog(folder, 10)
    with pytest.raises(StorageError, match="free disk space"):
        log.append(prediction(0.0))
    folder.unlink()
    log.append(prediction(1.0))
    assert times_in(tmp_path) == [1.0]
