"""Source `replay`: rows of a CSV or Parquet file, at a rate or at their recorded times."""

import random
import threading
from pathlib import Path

from shoal.agent.feeds.frames import FeedHealth, Frame
from shoal.agent.feeds.io.interface import Context, Emit, FeedSettings, Tally, Touched
from shoal.agent.host.faults import Fault
from shoal.agent.serving.io.row_table import Table, read_table, stamp
from shoal.errors import SettingError, ShoalError

#: Seconds until an unusable file is tried again.
RETRY_S = 2.0


class ReplaySettings(FeedSettings, frozen=True, kw_only=True):
    """A CSV or Parquet file, repeated, and read again when it changes.

    path     of the file (.csv, .csv.gz, .parquet), relative to the agent's folder
    label    column with the true class or value, for the accuracy; "" for none
    rate_hz  requests a second; 0 for as fast as possible
    batch    rows in a request
    seed     of the shuffling
    time     column with the time (Unix seconds or ISO 8601): rows are emitted in order with their
             recorded pauses, and rate_hz, batch and seed are ignored
    speed    of the time: 60 for a minute in a second
    once     whether to end after one pass
    asset    name of what was measured
    """

    path: str
    label: str = ""
    rate_hz: float = 10.0
    batch: int = 1
    seed: int = 0
    time: str = ""
    speed: float = 1.0
    once: bool = False
    asset: str = ""

    def touches(self) -> Touched:
        """Its file, read."""
        return Touched(reads=(self.path,))


class Replay:
    """Emits the rows of a file, pass after pass."""

    Settings = ReplaySettings

    def __init__(self, settings: ReplaySettings, context: Context, emit: Emit) -> None:
        _check(settings, context.name)
        self._settings, self._context, self._emit = settings, context, emit
        self._path = context.folder / settings.path
        self._random = random.Random(settings.seed)
        self._tally = Tally(context)
        self._done = False

    def health(self) -> FeedHealth:
        """State and counters; up while the file can be read."""
        return self._tally.health()

    def run(self, stopping: threading.Event) -> None:
        """Replay until `stopping` is set, or for one pass; errors are reported, then retried."""
        while not stopping.is_set() and not self._done:
            try:
                self._replay(stopping)
            except ShoalError as error:
                self._tally.went_down(str(error))
                self._context.fault(Fault("source-unreadable", str(error)))
                stopping.wait(RETRY_S)

    def _replay(self, stopping: threading.Event) -> None:
        """Replay the file, pass after pass, until it changes."""
        known = stamp(self._path)
        table = read_table(self._path, self._settings.label, self._settings.time)
        self._tally.came_up()
        one_pass = self._timed if table.times else self._shuffled
        passes = 0
        while not stopping.is_set() and stamp(self._path) == known:
            if not one_pass(table, known, stopping, passes):
                return
            passes += 1
            if self._settings.once:
                self._done = True
                return

    def _shuffled(
        self, table: Table, known: tuple[int, int], stopping: threading.Event, _: int
    ) -> bool:
        """One pass in random order at `rate_hz`; False when it was interrupted."""
        clock, batch = self._context.monotonic, self._settings.batch
        pause = 1.0 / self._settings.rate_hz if self._settings.rate_hz > 0 else 0.0
        order, due = list(range(len(table.values))), clock()
        self._random.shuffle(order)
        for first in range(0, len(order), batch):
            due = max(due + pause, clock() - 1.0)
            if stopping.wait(max(0.0, due - clock())):
                return False
            if first % 1_000 < batch and stamp(self._path) != known:
                return False
            self._emit_rows(table, order[first : first + batch], self._context.wall())
        return True

    def _timed(
        self, table: Table, known: tuple[int, int], stopping: threading.Event, passes: int
    ) -> bool:
        """One pass with the recorded pauses; times continue from the last pass."""
        times = table.times or []
        span = times[-1] - times[0]
        step = span / (len(times) - 1) if len(times) > 1 and span else 1.0
        offset, clock = passes * (span + step), self._context.monotonic
        begun = clock()
        for row, time_s in enumerate(times):
            due = begun + (time_s - times[0]) / self._settings.speed
            if stopping.wait(max(0.0, due - clock())):
                return False
            if row % 1_000 == 0 and stamp(self._path) != known:
                return False
            self._emit_rows(table, [row], time_s + offset)
        return not stopping.wait(step / self._settings.speed)

    def _emit_rows(self, table: Table, rows: list[int], time_s: float) -> None:
        labels = [table.labels[i] for i in rows] if table.labels is not None else None
        frame = Frame(
            time_s, table.columns, table.values[rows], asset=self._settings.asset, labels=labels
        )
        self._tally.gave(frame)
        self._emit(frame)


def _check(settings: ReplaySettings, name: str) -> None:
    where = f"agent.toml: sources.{name}"
    if not settings.path or not Path(settings.path).suffix:
        raise SettingError(f"{where}.path is {settings.path!r}", "name a .csv or .parquet file")
    for field, value, least in (
        ("rate_hz", settings.rate_hz, 0.0),
        ("batch", settings.batch, 1),
        ("speed", settings.speed, 1e-9),
    ):
        if value < least:
            raise SettingError(f"{where}.{field} is too small")
