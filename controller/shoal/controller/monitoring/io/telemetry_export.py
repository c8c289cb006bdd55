"""Telemetry as Parquet: a folder that DuckDB, pandas, Spark and Polars read as tables.

    windows/day=2026-12-01/windows.parquet     a row for each window, by day of arrival (UTC)
    features/day=2026-12-01/features.parquet   a row for each feature of each window
    sums/hours.parquet, sums/days.parquet      counts, errors and latency by hour and day
    references.parquet                         bins and training counts of each feature

A file says how far it goes, and is written again only if windows have arrived since: a later export
adds the days since the last one. A file is there as a whole or not at all.
"""

import datetime
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shoal.controller.host.context import Context
from shoal.controller.host.windows import StoredWindow
from shoal.controller.monitoring import histograms, window_validation
from shoal.controller.store import window_sums
from shoal.durable import sync, translated
from shoal.errors import AbsentError, SettingError
from shoal.sketch import Reference, References
from shoal.sketch_batches import decode

if TYPE_CHECKING:
    import pyarrow as pa

#: Windows that are in memory at once; rows of sums in one piece.
BATCH, PIECE = 2_000, 50_000
_LAST = b"last_window"
_PLAIN = ("id", "device", "boot", "seq", "site", "model", "release", "reference")
_COUNTS = ("rows", "errors", "slow", "labelled", "correct", "merged")
_HEALTH = ("rss_mb", "cpu_pct", "temp_c", "disk_free_mb", "memory_free_mb")


class Exported(NamedTuple):
    """days that were written; windows and rows of features in them; windows whose release was
    deleted, and which have no features therefore."""

    days: int
    windows: int
    features: int
    unknown: int


def export(
    ctx: Context, folder: Path, *, since: str = "", until: str = "", features: bool = True
) -> Exported:
    """Write the days from `since` to before `until` (dates; "" for all), by day of arrival.

    Raises SettingError without pyarrow or for an invalid date, StorageError.
    """
    _dates(since, until)
    _require_pyarrow()
    done, every = Exported(0, 0, 0, 0), ctx.store.windows.spans()
    references = _References(ctx)
    with translated(folder):
        days = sorted({name[:10] for name, _, _ in every})
        for day in days:
            if not (since <= day and (not until or day < until)):
                continue
            spans = [(first, last) for name, first, last in every if name[:10] == day]
            kinds = {"windows": _window_schema(), "features": _feature_schema()}
            wanted = kinds if features else ("windows",)
            files = [(_path(folder, kind, day), kinds[kind]) for kind in wanted]
            if any(_reaches(path, schema) != spans[-1][1] for path, schema in files):
                more = _export_day(ctx, folder, day, spans, references if features else None)
                done = Exported(*(a + b for a, b in zip(done, more, strict=True)))
        _export_sums(ctx, folder)
        if features:
            references.write(folder / "references.parquet")
    return done


class _References:
    """References by release; None for a release that was deleted."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._known: dict[str, References | None] = {}

    def of(self, release: str) -> References | None:
        if release not in self._known:
            with self._ctx.store.read() as db:
                try:
                    self._known[release] = window_validation.references_of(db, release)
                except AbsentError:
                    self._known[release] = None
        return self._known[release]

    def write(self, path: Path) -> None:
        """A row for each feature of each release that windows were written of."""
        import pyarrow as pa

        rows: dict[str, list[Any]] = {
            name: [] for name in ("release", "feature", "output", "edges", "counts", "missing")
        }
        for release, both in sorted(self._known.items()):
            if both is None:
                continue
            inputs = len(both.inputs.features)
            found = [*both.inputs.features, *both.outputs.features]
            for i, (name, one) in enumerate(zip(histograms.names_of(both), found, strict=True)):
                values = (release, name, i >= inputs, one.edges, one.counts[:-1], one.counts[-1])
                for column, value in zip(rows, values, strict=True):
                    rows[column].append(value)
        types = [pa.string(), pa.string(), pa.bool_(), pa.list_(pa.float64())]
        types += [pa.list_(pa.int64()), pa.int64()]
        schema = pa.schema(list(zip(rows, types, strict=True)))
        with _writing(path, schema) as write:
            write(pa.table(rows, schema))


def _export_day(
    ctx: Context,
    folder: Path,
    day: str,
    spans: Sequence[tuple[int, int]],
    references: _References | None,
) -> Exported:
    counted, last = [0, 0, 0], spans[-1][1]
    with (
        _writing(_path(folder, "windows", day), _window_schema(), last) as write,
        _writing(_path(folder, "features", day), _feature_schema(), last, bool(references)) as add,
    ):
        for batch in _batches(ctx, spans):
            write(_window_table(batch))
            counted[0] += len(batch)
            for release in sorted({one.release for one in batch}) if references else ():
                some = [one for one in batch if one.release == release]
                known = references.of(release) if references else None
                counted[2] += 0 if known else len(some)
                for table in _feature_tables(known, some) if known else ():
                    add(table)
                    counted[1] += len(table)
    return Exported(1, *counted)


def _batches(ctx: Context, spans: Sequence[tuple[int, int]]) -> Iterator[list[StoredWindow]]:
    for first, last in spans:
        position = first - 1
        while position < last:
            found = ctx.store.windows.after(position, min(BATCH, last - position))
            batch = [one for one in found if one.id <= last]
            if not batch:
                break  # its file is lost
            yield batch
            position = batch[-1].id


def _window_table(windows: Sequence[StoredWindow]) -> "pa.Table":
    import pyarrow as pa

    columns: dict[str, Any] = {
        name: [getattr(one, name) for one in windows] for name in (*_PLAIN, *_COUNTS, "window_s")
    }
    columns |= {
        name: _times(getattr(one, name) for one in windows) for name in ("start_at", "received_at")
    }
    columns["latency"] = [one.latency for one in windows]
    for name in _HEALTH:
        columns[name] = [float(one.health.get(name, -1)) for one in windows]
    columns["outbox"] = [int(one.health.get("outbox", -1)) for one in windows]
    for name, default in (("throttled", False), ("clock_synced", True)):
        columns[name] = [bool(one.health.get(name, default)) for one in windows]
    schema = _window_schema()
    return pa.table({name: columns[name] for name in schema.names}, schema)


def _feature_tables(
    references: References, windows: Sequence[StoredWindow]
) -> Iterator["pa.Table"]:
    """Inputs, then outputs; windows without sketches have none."""
    names = histograms.names_of(references)
    inputs = len(references.inputs.features)
    yield from _side(references.inputs, names[:inputs], windows, output=False)
    yield from _side(references.outputs, names[inputs:], windows, output=True)


def _side(
    reference: Reference, names: Sequence[str], windows: Sequence[StoredWindow], *, output: bool
) -> Iterator["pa.Table"]:
    import pyarrow as pa

    batch = decode(reference, [one.outputs if output else one.inputs for one in windows])
    known = [one for one, read in zip(windows, batch.read, strict=True) if read]
    if not known or not names:
        return
    ids, starts = pa.array([one.id for one in known]), pa.array(_times(w.start_at for w in known))
    devices, sites = pa.array([w.device for w in known]), pa.array([w.site for w in known])
    for i, name in enumerate(names):
        width = len(reference.features[i].edges) + 1
        n, moments = batch.n[:, i], batch.moments[:, i].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            deviation = np.sqrt(moments[:, 1] / np.maximum(n - 1, 1))
        offsets = np.arange(len(known) + 1, dtype=np.int32) * width
        values = [moments[:, 0], deviation, moments[:, 2], moments[:, 3]]
        yield pa.table(
            [
                ids, devices, sites, pa.array([known[0].release] * len(known)),
                starts.cast(_time_type()), pa.array([name] * len(known)),
                pa.array([output] * len(known)), pa.array(n), pa.array(batch.missing[:, i]),
                *(pa.array(value, mask=n == 0) for value in values),
                pa.ListArray.from_arrays(offsets, batch.counts[:, i, :width].ravel()),
            ],
            schema=_feature_schema(),
        )  # fmt: skip


def _export_sums(ctx: Context, folder: Path) -> None:
    import pyarrow as pa

    names = ("model", "scope", "subject", "release", "windows", *_COUNTS[:-1])
    texts = dict.fromkeys(names[:4], pa.string())
    numbers = dict.fromkeys(names[4:], pa.int64())
    times = dict.fromkeys(("start_at", "since", "until"), _time_type())
    schema = pa.schema(list((texts | times | numbers | {"latency": pa.list_(pa.int64())}).items()))
    for span, name in ((window_sums.HOUR, "hours"), (window_sums.DAY, "days")):
        with _writing(folder / "sums" / f"{name}.parquet", schema) as write:
            for rows in window_sums.pieces(ctx, span, PIECE):
                columns = {one: [getattr(row, one) for row in rows] for one in (*names, "latency")}
                columns["start_at"] = _times(row.at for row in rows)
                columns["since"] = _times(row.since for row in rows)
                columns["until"] = _times(row.until for row in rows)
                write(pa.table({one: columns[one] for one in schema.names}, schema))


def _window_schema() -> "pa.Schema":
    import pyarrow as pa

    types: dict[str, Any] = {
        "id": pa.int64(), "device": pa.string(), "boot": pa.string(), "seq": pa.int64(),
        "site": pa.string(), "model": pa.string(), "release": pa.string(),
        "reference": pa.string(), "start_at": _time_type(), "window_s": pa.float64(),
        "received_at": _time_type(), **dict.fromkeys(_COUNTS, pa.int64()),
        "latency": pa.list_(pa.int64()), **dict.fromkeys(_HEALTH, pa.float64()),
        "outbox": pa.int64(), "throttled": pa.bool_(), "clock_synced": pa.bool_(),
    }  # fmt: skip
    return pa.schema(list(types.items()))


def _feature_schema() -> "pa.Schema":
    import pyarrow as pa

    types: dict[str, Any] = {
        "window": pa.int64(), "device": pa.string(), "site": pa.string(), "release": pa.string(),
        "start_at": _time_type(), "feature": pa.string(), "output": pa.bool_(), "n": pa.int64(),
        "missing": pa.int64(), "mean": pa.float64(), "sd": pa.float64(), "min": pa.float64(),
        "max": pa.float64(), "counts": pa.list_(pa.int64()),
    }  # fmt: skip
    return pa.schema(list(types.items()))


def _time_type() -> "pa.DataType":
    import pyarrow as pa

    return pa.timestamp("us", tz="UTC")


def _times(seconds: Iterable[float]) -> list[int]:
    return [round(at * 1e6) for at in seconds]


@contextmanager
def _writing(path: Path, schema: "pa.Schema", last: int = 0, wanted: bool = True) -> Iterator[Any]:
    """A function that adds a table to the file, which replaces `path` at the end.

    last   id of the last window in it
    """
    if not wanted:
        yield lambda table: None
        return
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    noted = schema.with_metadata({_LAST: str(last)})
    with pq.ParquetWriter(draft, noted, compression="zstd") as writer:
        yield lambda table: writer.write_table(table.replace_schema_metadata(noted.metadata))
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def _reaches(path: Path, schema: "pa.Schema") -> int:
    """Id of the last window in a file; -1 if there is none that can be read, or it has other
    columns: an older Shoal wrote it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_schema(path)
        return int((found.metadata or {}).get(_LAST, -1)) if found.names == schema.names else -1
    except (OSError, ValueError, pa.ArrowException):
        return -1


def _path(folder: Path, kind: str, day: str) -> Path:
    return folder / kind / f"day={day}" / f"{kind}.parquet"


def _dates(*days: str) -> None:
    for day in filter(None, days):
        try:
            if datetime.date.fromisoformat(day).isoformat() != day:
                raise ValueError(day)
        except ValueError as error:
            raise SettingError(f"no date: {day!r:.40}", "write it as 2026-12-01") from error


def _require_pyarrow() -> None:
    try:
        import pyarrow as pa  # noqa: F401
    except ImportError as error:
        raise SettingError("Parquet needs pyarrow", "pip install pyarrow, then again") from error
