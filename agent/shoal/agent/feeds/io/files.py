"""Sink `files`: predictions to CSV or Parquet files of a folder, up to a total size."""

import collections
import csv
import datetime
import io
import json
import threading
from typing import Annotated, Any, Literal

import msgspec

from shoal.agent.feeds.frames import Prediction
from shoal.agent.feeds.io.connection import QueuedSink
from shoal.agent.feeds.io.interface import Context, ServerSettings, Touched
from shoal.agent.host.optional_libraries import needs

COLUMNS = ("time_s", "asset", "model", "release", "quality", "label", "score", "scores")


class FilesSettings(ServerSettings, frozen=True, kw_only=True):
    """Predictions into a folder: a CSV file a day, or a Parquet file every `every_s`.

    path      of the folder, relative to the agent's folder
    format    "csv" or "parquet", which needs shoal[agent-parquet]
    every_s   seconds between two writes
    limit_mb  total size of this sink's files; beyond it the oldest are deleted
    keep      predictions queued while the disk refuses; beyond it the oldest are dropped
    """

    path: str
    format: Literal["csv", "parquet"] = "csv"
    every_s: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    limit_mb: Annotated[float, msgspec.Meta(gt=0)] = 100.0
    keep: Annotated[int, msgspec.Meta(ge=1)] = 100_000

    def touches(self) -> Touched:
        """Its folder, written."""
        return Touched(writes=(self.path,))


class Files(QueuedSink):
    """Queues predictions and writes them every `every_s`, and at the end."""

    Settings = FilesSettings

    def __init__(self, settings: FilesSettings, context: Context) -> None:
        super().__init__(context, settings.retry_s)
        self._settings = settings
        self._folder = context.folder / settings.path
        self._queue = collections.deque[Prediction](maxlen=settings.keep)
        self._pa = needs("pyarrow") if settings.format == "parquet" else None
        self._pq = needs("pyarrow.parquet") if settings.format == "parquet" else None

    def serve(self, stopping: threading.Event) -> None:
        """Write every `every_s`, and the rest at the end; OSError when the disk refuses."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.tally.came_up()
        while not stopping.wait(self._settings.every_s):
            self._store()
        self._store()

    def _store(self) -> None:
        """Write the queue; it is kept when that fails."""
        batch = [self._queue.popleft() for _ in range(len(self._queue))]
        if not batch:
            return
        try:
            if self._settings.format == "csv":
                self._append_csv(batch)
            else:
                self._write_parquet(batch)
        except OSError:
            free = (self._queue.maxlen or 0) - len(self._queue)
            self.tally.dropped += max(0, len(batch) - free)
            self._queue.extendleft(reversed(batch[-free:] if free else []))
            raise
        self._delete_oldest()

    def _append_csv(self, batch: list[Prediction]) -> None:
        """Append to each day's file, after cutting a last line that a power cut truncated."""
        days: dict[str, list[Prediction]] = {}
        for prediction in batch:
            days.setdefault(_day(prediction.time_s), []).append(prediction)
        for day, each in days.items():
            path = self._folder / f"{self.context.name}-{day}.csv"
            lines = io.StringIO()
            writer = csv.writer(lines, lineterminator="\n")
            if not path.exists():
                writer.writerow(COLUMNS)
            writer.writerows(_row(prediction) for prediction in each)
            with path.open("ab+") as file:
                file.truncate(_length_of_lines(file))
                file.write(lines.getvalue().encode())

    def _write_parquet(self, batch: list[Prediction]) -> None:
        """Write one Parquet file, renamed to its name when it is complete."""
        assert self._pa is not None
        assert self._pq is not None
        name = datetime.datetime.fromtimestamp(self.context.wall(), datetime.UTC)
        stem = f"{self.context.name}-{name:%Y-%m-%dT%H%M%S.%f}"
        columns = list(zip(*map(_row, batch), strict=True))
        table = self._pa.table(dict(zip(COLUMNS, columns, strict=True)))
        part = self._folder / f"{stem}.part"
        self._pq.write_table(table, part)
        part.replace(self._folder / f"{stem}.parquet")

    def _delete_oldest(self) -> None:
        files = sorted(self._folder.glob(f"{self.context.name}-*.{self._settings.format}"))
        sizes = {path: path.stat().st_size for path in files}
        while sum(sizes.values()) > self._settings.limit_mb * 2**20 and len(sizes) > 1:
            oldest = next(iter(sizes))
            oldest.unlink(missing_ok=True)
            del sizes[oldest]


def _row(prediction: Prediction) -> tuple[Any, ...]:
    values = prediction.values
    scores = {k.removeprefix("score/"): round(float(v), 6) for k, v in values.items()
              if k.startswith("score/")}  # fmt: skip
    return (
        prediction.time_s, prediction.asset, prediction.model, prediction.release,
        prediction.quality.name.lower(), prediction.label,
        float(values.get("score", values.get("value", 0.0))),
        json.dumps(scores, ensure_ascii=False) if scores else "",
    )  # fmt: skip


def _day(time_s: float) -> str:
    return f"{datetime.datetime.fromtimestamp(time_s, datetime.UTC):%Y-%m-%d}"


def _length_of_lines(file: Any) -> int:
    """Length of a file up to the end of its last complete line."""
    end: int = file.seek(0, io.SEEK_END)
    while end > 0:
        start = max(0, end - 4_096)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return int(start + at + 1)
        end = start
    return 0
