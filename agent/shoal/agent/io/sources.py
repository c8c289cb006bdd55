"""Where rows come from: a replayed CSV file, read again when it changes.

A source runs on a thread of its own and hands rows to a model; it never ends by itself, and what
is wrong with its file is said once and mended by mending the file.
"""

import array
import csv
import gzip
import math
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shoal.agent.faults import Fault
from shoal.agent.serving import Engine, Serving
from shoal.errors import DatasetError, InputError, ShoalError
from shoal.sketch import F32

#: Largest file, in rows; seconds until a source that could not go on tries again.
ROWS, RETRY_S = 1_000_000, 2.0


class Table(NamedTuple):
    """A CSV file in memory: values float32 (n, columns), NaN for missing; labels as text."""

    columns: list[str]
    values: F32
    labels: list[str] | None


class Replay(threading.Thread):
    """Replays a CSV file into the models that serve, for ever.

    label    column with the true class or value, "" for none: answers are judged by it
    rate_hz  requests a second; batch rows each
    seed     shuffles each pass differently, and the same for the same seed
    serving  the models to feed, by name, as they are now
    fault    told when the file or the model does not take it
    """

    def __init__(
        self,
        path: Path,
        *,
        label: str,
        rate_hz: float,
        batch: int,
        seed: int,
        serving: Callable[[], dict[str, Serving]],
        fault: Callable[[Fault], None],
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__(name="replay", daemon=True)
        self._path, self._label, self._batch = path, label, max(1, batch)
        self._pause = 1.0 / rate_hz if rate_hz > 0 else 0.0
        self._random = random.Random(seed)
        self._serving, self._fault, self._monotonic = serving, fault, monotonic
        self._ended = threading.Event()

    def stop(self) -> None:
        """End soon, and wait for it."""
        self._ended.set()
        if self.is_alive():
            self.join(5.0)

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                self._replay()
                continue  # the file changed: on with the new one at once
            except DatasetError as error:
                self._fault(Fault("source-unreadable", str(error)))
            except ShoalError as error:
                self._fault(Fault(error.code, str(error)))
            self._ended.wait(RETRY_S)

    def _replay(self) -> None:
        """Pass after pass over the file, until it changes or cannot be used."""
        stamp = _stamp(self._path)
        table = read_table(self._path, self._label)
        due = self._monotonic()
        while not self._ended.is_set() and _stamp(self._path) == stamp:
            order = list(range(len(table.values)))
            self._random.shuffle(order)
            for first in range(0, len(order), self._batch):
                due = max(due + self._pause, self._monotonic() - 1.0)
                if self._ended.wait(max(0.0, due - self._monotonic())):
                    return
                if first % 1_000 < self._batch and _stamp(self._path) != stamp:
                    return
                self._feed(table, order[first : first + self._batch])

    def _feed(self, table: Table, rows: list[int]) -> None:
        for serving in list(self._serving().values()):
            engine = serving.engine
            if engine is None:
                continue
            try:
                chosen = table.values[np.ix_(rows, columns_of(table, engine))]
                serving.infer(chosen, truth(table, engine, rows))
            except (InputError, DatasetError) as error:
                self._fault(Fault(error.code, str(error)))


def read_table(path: Path, label: str) -> Table:
    """A CSV file, gzip or not; DatasetError names the file, the line and the mend."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", newline="", encoding="utf-8") as file:
            return _table(path, csv.reader(file), label)
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}", "is the path right?") from error
    except (UnicodeDecodeError, csv.Error, EOFError) as error:
        raise DatasetError(f"{path} is no CSV file in UTF-8: {error}") from error


def columns_of(table: Table, engine: Engine) -> list[int]:
    """Where the model's features are in the table; DatasetError names those that are missing."""
    at = {name: i for i, name in enumerate(table.columns)}
    wanted = [f.name for f in engine.manifest.features]
    missing = [name for name in wanted if name not in at]
    if missing:
        raise DatasetError(
            f"the source has no column {', '.join(missing[:5])} for {engine.manifest.release}",
            f"it has: {', '.join(table.columns[:10])}",
        )
    return [at[name] for name in wanted]


def truth(table: Table, engine: Engine, rows: list[int]) -> F32 | None:
    """True class index, or value, of some rows; None where the file has no label.

    A label that the model does not know counts as no class: no answer can be right.
    """
    if table.labels is None:
        return None
    if engine.regression:
        return np.array([_number(table.labels[i]) for i in rows], np.float32)
    known = {_canonical(name): i for i, name in enumerate(engine.manifest.labels)}
    return np.array([known.get(_canonical(table.labels[i]), -1) for i in rows], np.float32)


def _table(path: Path, lines: Iterator[list[str]], label: str) -> Table:
    head = [name.strip() for name in next(lines, [])]
    if not head:
        raise DatasetError(f"{path} is empty")
    if label and label not in head:
        raise DatasetError(
            f"{path} has no label column {label!r}",
            f"it has: {', '.join(head[:10])}; set [source] label in agent.toml",
        )
    column = head.index(label) if label else -1
    values, labels = array.array("f"), []  # not lists: a float in a list is eight times as big
    for number, line in enumerate(lines, 2):
        if len(line) != len(head):
            raise DatasetError(f"{path}:{number} has {len(line)} fields, the header {len(head)}")
        if number > ROWS:
            raise DatasetError(f"{path} has more than {ROWS} rows", "split it")
        values.extend(_number(cell) if i != column else 0.0 for i, cell in enumerate(line))
        if label:
            labels.append(line[column])
    if not values:
        raise DatasetError(f"{path} has a header and no rows")
    table = np.frombuffer(values, np.float32).reshape(-1, len(head))
    return Table(head, table, labels if label else None)


def _number(cell: str) -> float:
    """NaN for what is no number: the column may be one that no model reads."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _canonical(name: str) -> str:
    """ "3", "3.0" and " 3" name the same class."""
    number = _number(name)
    return f"{number:g}" if math.isfinite(number) else name.strip()


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return found.st_mtime_ns, found.st_size
