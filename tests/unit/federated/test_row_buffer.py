"""The device's rows: bounded, durable, read by the trainer alone, and gone once deleted."""

import random
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from shoal.agent.federated.io.row_buffer import Buffer, Limits, read_examples

FEATURES = ("a", "b", "c")
NOW = 1_800_000_000.0


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(folder: Path, clock: Clock, **limits: float) -> Buffer:
    most = Limits(**{"bytes": 2**20, "rows": 1000, "seconds": 0, **limits})  # type: ignore[arg-type]
    return Buffer(folder / "buffer.db", most, clock)


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def test_rows_come_back_as_they_were_with_their_labels(tmp_path: Path, clock: Clock) -> None:
    buffer, x = opened(tmp_path, clock), rows(20)
    buffer.add("m", FEATURES, x, [str(i % 3) for i in range(20)])
    buffer.flush()
    found = read_examples(tmp_path / "buffer.db", "m", FEATURES)
    assert np.array_equal(found.x, x)
    assert found.labels == [str(i % 3) for i in range(20)]


def test_rows_of_another_model_or_of_other_features_are_not_learned_from(
    tmp_path: Path, clock: Clock
) -> None:
    buffer = opened(tmp_path, clock)
    buffer.add("m", FEATURES, rows(3), ["1"] * 3)
    buffer.add("other", FEATURES, rows(5), ["1"] * 5)
    buffer.add("m", ("a", "b", "d"), rows(7), ["1"] * 7)
    buffer.flush()
    assert buffer.count("m", FEATURES) == 3
    assert len(read_examples(tmp_path / "buffer.db", "m", FEATURES).x) == 3


@pytest.mark.parametrize(
    ("limits", "left"),
    [({"rows": 10}, 10), ({"bytes": 132 * 7}, 7), ({"seconds": 60.0}, 5), ({}, 40)],
)
def test_the_oldest_rows_go_when_there_are_too_many_too_much_or_too_old(
    tmp_path: Path, clock: Clock, limits: dict[str, float], left: int
) -> None:
    buffer, x = opened(tmp_path, clock, **limits), rows(40)
    buffer.add("m", FEATURES, x[:35], ["1"] * 35)
    buffer.flush()
    clock.now += 61
    buffer.add("m", FEATURES, x[35:], ["1"] * 5)
    buffer.flush()
    buffer.trim()
    assert np.array_equal(read_examples(tmp_path / "buffer.db", "m", FEATURES).x, x[-left:])


def test_rows_wait_a_little_so_that_a_card_is_not_written_a_row_at_a_time(
    tmp_path: Path, clock: Clock
) -> None:
    buffer = opened(tmp_path, clock)
    buffer.add("m", FEATURES, rows(1), ["1"])
    assert not buffer.due()
    clock.now += 6
    assert buffer.due()
    buffer.flush()
    assert not buffer.due()
    buffer.add("m", FEATURES, rows(256), ["1"] * 256)
    assert buffer.due()


def test_a_label_that_comes_later_finds_its_row_by_id(tmp_path: Path, clock: Clock) -> None:
    buffer = opened(tmp_path, clock)
    buffer.add("m", FEATURES, rows(2), [None, None], ["lot-1", "lot-2"])
    assert buffer.count("m", FEATURES) == 0
    assert buffer.label("lot-2", "7") == 1
    assert buffer.label("lot-9", "7") == 0
    assert buffer.label("", "7") == 0
    assert buffer.count("m", FEATURES) == 1
    (held,) = buffer.held()
    assert (held.labels, held.without) == ({"7": 1}, 1)


def test_a_deleted_row_is_not_on_the_disk_any_more(tmp_path: Path, clock: Clock) -> None:
    buffer, x = opened(tmp_path, clock), rows(1)
    buffer.add("m", FEATURES, x, ["1"])
    buffer.flush()
    assert buffer.clear("m") == 1
    buffer.close()
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert x.tobytes() not in files


def test_two_processes_may_add_at_the_same_time(tmp_path: Path, clock: Clock) -> None:
    one, two = opened(tmp_path, clock), opened(tmp_path, clock)
    for buffer in (one, two, one, two):
        buffer.add("m", FEATURES, rows(3), ["1"] * 3)
        buffer.flush()
    assert one.count("m", FEATURES) == two.count("m", FEATURES) == 12


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bits_cost_the_rows_that_they_hit_and_never_make_a_false_one(
    tmp_path: Path, clock: Clock, seed: int
) -> None:
    buffer, x = opened(tmp_path, clock), rows(400)
    buffer.add("m", FEATURES, x, ["1"] * 400)
    buffer.flush()
    buffer.close()
    path, chance = tmp_path / "buffer.db", random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(4):
        data[chance.randrange(4096, len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    again = opened(tmp_path, clock)
    again.add("m", FEATURES, x[:1], ["1"])
    again.flush()
    found = {row.tobytes() for row in read_examples(path, "m", FEATURES).x}
    assert found
    assert found <= {row.tobytes() for row in x}


def test_a_file_that_is_no_database_is_replaced_and_the_loss_is_reported(
    tmp_path: Path, clock: Clock
) -> None:
    (tmp_path / "buffer.db").write_bytes(b"not a database" * 1000)
    buffer = opened(tmp_path, clock)
    assert buffer.lost
    buffer.add("m", FEATURES, rows(2), ["1"] * 2)
    buffer.flush()
    assert buffer.count("m", FEATURES) == 2


def test_what_a_killed_process_had_flushed_is_there(tmp_path: Path, clock: Clock) -> None:
    buffer = opened(tmp_path, clock)
    buffer.add("m", FEATURES, rows(9), ["1"] * 9)
    buffer.flush()
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for path in tmp_path.glob("buffer.db*"):
        (mirror / path.name).write_bytes(path.read_bytes())
    assert opened(mirror, clock).count("m", FEATURES) == 9
    assert sqlite3.connect(mirror / "buffer.db").execute("SELECT count(*) FROM row").fetchone()
