"""A model in service: requests while releases swap, errors, counters, recent rows."""

import contextlib
import threading

import numpy as np
import pytest

from devices import MODEL, engine, softmax
from shoal.agent.serving.served_model import RECENT, ServedModel
from shoal.errors import AbsentError, InputError, ModelError
from shoal.wire import Health


@pytest.fixture
def serving() -> ServedModel:
    return ServedModel(
        MODEL, clock=lambda: 1000.0, timer=lambda: 0.0, lock=contextlib.nullcontext()
    )


ROW = np.array([[0.5, -0.5]], np.float32)


def test_nothing_serves_before_the_first_release(serving: ServedModel) -> None:
    with pytest.raises(AbsentError, match="roll one out"):
        serving.infer(ROW)
    assert serving.collect(Health()) is None
    assert serving.recent() is None


def test_a_swap_serves_the_new_release_and_closes_the_window(serving: ServedModel) -> None:
    serving.swap(engine(1), Health())
    serving.infer(ROW)
    closed = serving.swap(engine(2), Health())
    assert closed is not None
    assert (closed.release, closed.rows) == ("lot-codes@1", 1)
    np.testing.assert_allclose(serving.infer(ROW), softmax(ROW, 2), rtol=1e-5)
    assert (serving.before.requests, serving.vitals.requests) == (1, 1)
    assert serving.warm is not None
    serving.retire()
    assert serving.warm is None


BAD_ROWS = {
    "too wide": (np.zeros((1, 3), np.float32), "contrast, blur"),
    "flat": (np.zeros(2, np.float32), "rows, 2"),
    "NaN": (np.array([[0, np.nan]], np.float32), "'blur' is missing"),
    "infinite": (np.array([[0, 0], [np.inf, 0]], np.float32), "'contrast' is missing"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_rows_that_do_not_fit_are_refused_by_name_and_counted(
    kind: str, serving: ServedModel
) -> None:
    rows, message = BAD_ROWS[kind]
    serving.swap(engine(1), Health())
    with pytest.raises(InputError, match=message):
        serving.infer(rows)
    assert (serving.vitals.requests, serving.vitals.errors) == (1, 1)


def test_large_finite_numbers_are_not_missing_values(serving: ServedModel) -> None:
    serving.swap(engine(1), Health())
    with np.errstate(over="ignore", invalid="ignore"):
        serving.infer(np.full((1, 2), 3e38, np.float32))


def test_a_failing_model_raises_and_is_counted(serving: ServedModel) -> None:
    broken = engine(1)
    broken.session.fails = True  # type: ignore[attr-defined]
    serving.swap(broken, Health())
    with pytest.raises(ModelError):
        serving.infer(ROW)
    assert serving.vitals.errors == 1


def test_vitals_count_across_windows_and_reset_at_a_swap(serving: ServedModel) -> None:
    serving.swap(engine(1), Health())
    for _ in range(3):
        serving.infer(ROW)
        serving.collect(Health())
    assert serving.vitals.requests == 3
    serving.swap(engine(2), Health())
    assert serving.vitals.requests == 0


def test_the_last_rows_are_kept_for_the_shadow_probe(serving: ServedModel) -> None:
    serving.swap(engine(1), Health())
    for i in range(RECENT + 3):
        serving.infer(np.array([[i, 0]], np.float32))
    recent = serving.recent()
    assert recent is not None
    assert sorted(recent[:, 0].tolist()) == [float(i) for i in range(3, RECENT + 3)]
    serving.swap(engine(2), Health())
    assert serving.recent() is not None


def test_rows_of_another_width_are_discarded(serving: ServedModel) -> None:
    serving.swap(engine(1), Health())
    serving.infer(ROW)
    wide = engine(2).manifest.features[:1]
    serving.swap(engine(2, features=wide), Health())
    assert serving.recent() is None


def test_no_request_is_dropped_while_releases_swap() -> None:
    serving = ServedModel(MODEL, clock=lambda: 1000.0, timer=lambda: 0.0, lock=threading.Lock())
    engines = [engine(1), engine(2)]
    serving.swap(engines[0], Health())
    wanted = [softmax(ROW, v).astype(np.float32) for v in (1, 2)]
    failures, ended = [], threading.Event()

    def infer() -> None:
        while not ended.is_set():
            outputs = serving.infer(ROW)
            if not any(np.allclose(outputs, want) for want in wanted):
                failures.append(outputs)

    threads = [threading.Thread(target=infer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(300):
        serving.swap(engines[i % 2], Health())
    ended.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert serving.vitals.errors == serving.before.errors == 0


class HangingSession:
    """A session that takes 20 s; records the serving's `longest_s` while it runs."""

    def __init__(self, serving: ServedModel, clock: list[float]) -> None:
        self.serving, self.clock, self.seen = serving, clock, list[float]()

    def run(self, rows: np.ndarray) -> np.ndarray:
        self.clock[0] += 20.0
        self.seen.append(self.serving.vitals.longest_s)
        raise ModelError("gave up", "try another model")


def test_an_unfinished_request_shows_in_the_vitals_while_it_runs() -> None:
    clock = [0.0]
    serving = ServedModel(
        MODEL, clock=lambda: 1.0, timer=lambda: clock[0], lock=contextlib.nullcontext()
    )
    loaded = engine(1)
    session = loaded.session = HangingSession(serving, clock)
    serving.swap(loaded, Health())
    assert serving.vitals.longest_s == 0.0
    with pytest.raises(ModelError):
        serving.infer(ROW)
    serving.infer_batch(loaded, [ROW, ROW])
    assert session.seen == [20.0] * 4
    assert serving.vitals.longest_s == 0.0


def test_unfinished_requests_of_the_old_release_do_not_count_for_the_new_one() -> None:
    clock = [0.0]
    serving = ServedModel(
        MODEL, clock=lambda: 1.0, timer=lambda: clock[0], lock=contextlib.nullcontext()
    )
    loaded, seen = engine(1), []

    class Swapped:
        def run(self, rows: np.ndarray) -> np.ndarray:
            serving.swap(engine(2), Health())
            clock[0] += 20.0
            seen.append(serving.vitals.longest_s)
            return softmax(rows, 1).astype(np.float32)

    loaded.session = Swapped()
    serving.swap(loaded, Health())
    serving.infer(ROW)
    assert seen == [0.0]
