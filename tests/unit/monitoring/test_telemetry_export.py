"""Telemetry as Parquet: what is in the files, and what a second export adds."""

from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from controllers import make_context
from shoal.controller.host.context import Context
from shoal.controller.host.windows import NewWindow
from shoal.controller.monitoring.io import telemetry_export
from shoal.controller.monitoring.io.telemetry_export import Exported, export
from shoal.controller.store.io.database import Store
from shoal.controller.store.tables import model, release
from shoal.errors import SettingError
from shoal.sketch import References, Sketch, reference_of
from stored_windows import keep, new_window

DAY = 86_400.0
NOON = 20_000 * DAY + 43_200.0
RNG = np.random.default_rng(4)
REFERENCES = References(
    inputs=reference_of({name: RNG.normal(size=400) for name in ("heat", "load")}),
    outputs=reference_of({"score": RNG.random(400)}),
)


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    made = make_context(tmp_path)

    with made.store.write() as db:
        db.execute(model.insert().values(name="m", created_at=1.0))
        db.execute(
            release.insert().values(
                model="m",
                version=1,
                report={},
                manifest=b"",
                references=msgspec.json.encode(REFERENCES),
            )
        )
    return made


def window(day: int, seq: int, **change: object) -> NewWindow:
    inputs, outputs = Sketch(REFERENCES.inputs), Sketch(REFERENCES.outputs)
    inputs.update(np.array([[1.0, np.nan], [3.0, 0.5]], np.float32))
    outputs.update(np.array([[0.25], [0.75]], np.float32))
    at = NOON + day * DAY
    made = new_window("cam-1", seq, received_at=at, start_at=at - 60.5, rows=2)
    return made._replace(inputs=inputs.to_bytes(), outputs=outputs.to_bytes(), **change)


def put(ctx: Context, *windows: NewWindow) -> None:
    assert isinstance(ctx.store, Store)
    keep(ctx.store, *windows)


def read(folder: Path, kind: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(folder / kind).to_pylist()
    return found


def test_a_window_is_a_row_and_each_of_its_features_too(ctx: Context, tmp_path: Path) -> None:
    put(ctx, window(0, 1), new_window("cam-2", 1, received_at=NOON, release="m@9", health={}))
    done = export(ctx, tmp_path / "out")
    assert done == Exported(days=1, windows=2, features=3, unknown=1)
    first, second = read(tmp_path / "out", "windows")
    assert (first["day"], first["device"], first["rows"]) == ("2024-10-04", "cam-1", 2)
    assert first["start_at"].timestamp() == NOON - 60.5  # type: ignore[attr-defined]
    assert (first["latency"], first["cpu_pct"], second["cpu_pct"]) == ([0, 10], 4.0, -1.0)
    assert (first["memory_free_mb"], first["outbox"]) == (-1.0, -1)
    heat, load, score = read(tmp_path / "out", "features")
    assert (heat["feature"], heat["n"], heat["mean"], heat["missing"]) == ("heat", 2, 2.0, 0)
    assert heat["sd"] == pytest.approx(2**0.5)
    assert (load["n"], load["missing"], load["min"], load["max"]) == (1, 1, 0.5, 0.5)
    assert (score["feature"], score["output"], score["mean"]) == ("score", True, 0.5)
    known = {row["feature"]: row for row in read(tmp_path / "out", "references.parquet")}
    for row in (heat, load, score):
        edges = known[row["feature"]]["edges"]
        assert len(row["counts"]) == len(edges) + 1  # type: ignore[arg-type]
        assert sum(row["counts"]) == row["n"]  # type: ignore[arg-type]
    [hour] = [
        row for row in read(tmp_path / "out", "sums/hours.parquet") if row["subject"] == "cam-1"
    ]
    assert (hour["windows"], hour["rows"], hour["latency"]) == (1, 2, [0, 10])


def test_a_second_export_writes_only_the_days_in_which_windows_have_arrived(
    ctx: Context, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    put(ctx, window(0, 1), window(0, 2))
    put(ctx, window(1, 3))
    assert export(ctx, out).days == 2
    assert export(ctx, out).days == 0
    put(ctx, window(1, 4))
    put(ctx, window(2, 5))
    assert export(ctx, out) == Exported(days=2, windows=3, features=9, unknown=0)
    assert [row["seq"] for row in read(out, "windows")] == [1, 2, 3, 4, 5]
    (out / "windows" / "day=2024-10-04" / "windows.parquet").write_bytes(b"damaged")
    assert export(ctx, out, until="2024-10-05").days == 1
    assert len(read(out, "windows")) == 5


def test_days_are_chosen_and_large_ones_are_read_in_pieces(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry_export, "BATCH", 3)
    monkeypatch.setattr(telemetry_export, "PIECE", 2)
    for day in range(3):
        put(ctx, *(window(day, 10 * day + i) for i in range(1, 8)))
    done = export(ctx, tmp_path / "out", since="2024-10-05", until="2024-10-06", features=False)
    assert done == Exported(days=1, windows=7, features=0, unknown=0)
    assert [row["seq"] for row in read(tmp_path / "out", "windows")] == list(range(11, 18))
    assert not (tmp_path / "out" / "features").exists()
    assert len(read(tmp_path / "out", "sums/days.parquet")) == 3 * 3
    with pytest.raises(SettingError, match="no date: '5 October'"):
        export(ctx, tmp_path / "out", since="5 October")


def test_memory_and_outbox_are_columns_and_a_file_without_them_is_written_again(
    ctx: Context, tmp_path: Path
) -> None:
    put(ctx, new_window("cam-1", 1, received_at=NOON, health={"memory_free_mb": 80.5, "outbox": 7}))
    export(ctx, tmp_path, features=False)
    [path] = tmp_path.glob("windows/*/*.parquet")
    table = pq.read_table(path, partitioning=None)
    assert table.select(["memory_free_mb", "outbox"]).to_pylist() == [
        {"memory_free_mb": 80.5, "outbox": 7}
    ]
    assert export(ctx, tmp_path, features=False).days == 0
    pq.write_table(table.drop_columns(["outbox"]), path)  # as an older Shoal left it
    assert export(ctx, tmp_path, features=False).days == 1
    assert "outbox" in pq.read_schema(path).names
