"""Lineage of things among 10 000 releases, and pages of 100 000 runs: CPU of one question.

Beside it what any answer costs at least: one row of the same database, read by its key.
"""

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select

from bench.measuring import compare, cpu_seconds, interleave
from bench.report import Aim, Found, Row
from controllers import make_context
from shoal.controller.host.context import Context
from shoal.controller.lineage import lineage
from shoal.controller.runs import listing
from shoal.controller.store.rollout_tables import rollout
from shoal.controller.store.run_tables import run_value
from shoal.controller.store.tables import alert, dataset, device, model, operation, release

MODELS, VERSIONS, CHUNK = 100, 10, 5_000
#: A lineage is one question of a person: at most 100 ms.
LINEAGE = Aim(at_most=100.0)


def run(*, quick: bool) -> Found:
    """Lineage of a device, release, dataset and run; pages of runs."""
    releases, runs, repetitions = (500, 1_000, 2) if quick else (10_000, 100_000, 9)
    with _controller(releases, runs) as ctx:
        things = ("device:dev-77", "release:m5@3", "dataset:d5@1", "run:op-305")
        asked = {thing: (lambda thing=thing: lineage.lineage_of(ctx, thing)) for thing in things}
        rows = [_row(ctx, f"lineage of {t}", ask, repetitions, LINEAGE) for t, ask in asked.items()]
        for what, query in _PAGES.items():
            ask = lambda query=query: listing.page(ctx, **query)  # noqa: E731
            rows.append(_row(ctx, f"runs, {what}", ask, repetitions, None))
    return Found(rows=rows, notes={"releases": f"{releases}", "runs": f"{runs}"})


_PAGES: Mapping[str, dict[str, str]] = {
    "the newest": {},
    "of a model, the newest": {"model": "m3"},
    "sorted by a metric": {"sort": "accuracy"},
    "of a model, sorted": {"model": "m3", "sort": "accuracy"},
    "by a condition": {"q": "accuracy > 0.99"},
}


def _row(
    ctx: Context, what: str, ask: Callable[[], object], repetitions: int, aim: Aim | None
) -> Row:
    def one_row() -> None:
        with ctx.store.read() as db:
            db.execute(select(release.c.state).where(release.c.model == "m5")).first()

    found = interleave(
        repetitions,
        {"ours": lambda: 1e3 * cpu_seconds(ask), "raw": lambda: 1e3 * cpu_seconds(one_row)},
    )
    against = "one row by its key"
    return compare(what, "ms", found["ours"], found["raw"], against=against, aim=aim)


@contextmanager
def _controller(releases: int, runs: int) -> Iterator[Context]:
    with tempfile.TemporaryDirectory() as name:
        ctx = make_context(Path(name))
        _add(
            ctx, model, ({"name": f"m{i}", "created_at": 1.0, "dataset": ""} for i in range(MODELS))
        )
        _add(ctx, dataset, _datasets())
        _add(ctx, operation, (_operation(i) for i in range(runs)))
        rng = random.Random(0)
        fixed = {"kind": "metric", "name": "accuracy", "value": ""}
        _add(
            ctx,
            run_value,
            ({"run": f"op-{i}", "number": rng.random()} | fixed for i in range(runs)),
        )
        _add(ctx, release, (_release(i) for i in range(releases)))
        ended = {"plan": {}, "stages": [], "state": "FINISHED"}
        _add(ctx, rollout, ({"id": f"ro-{i}", "release": _ref(i)} | ended for i in range(releases)))
        closed = {"kind": "drift", "state": "closed", "features": []}
        alerts = ({"id": i + 1, "release": _ref(i)} | closed for i in range(releases // 3 + 1))
        _add(ctx, alert, alerts)
        plain = {"site": "north", "labels": {}, "variants": {}, "facts": {}, "state": "active"}
        _add(
            ctx,
            device,
            (
                {"name": f"dev-{i}", "releases": {f"m{i % MODELS}": _ref(i)}} | plain
                for i in range(releases)
            ),
        )
        yield ctx
        ctx.store.close()


def _add(ctx: Context, table: Any, rows: Iterator[dict[str, Any]]) -> None:
    given = list(rows)
    for start in range(0, len(given), CHUNK):
        with ctx.store.write() as db:
            db.execute(insert(table), given[start : start + CHUNK])


def _ref(i: int) -> str:
    return f"m{i % MODELS}@{i // MODELS + 1}"


def _data(i: int) -> str:
    return f"d{i % MODELS}@{i // MODELS % VERSIONS + 1}"


def _trigger(i: int) -> str:
    return "manual" if i % 3 else f"alert:{i // 3 + 1}"


def _datasets() -> Iterator[dict[str, Any]]:
    for i in range(MODELS):
        for version in range(1, VERSIONS + 1):
            parents = [f"d{i}@{version - 1}"] if version > 1 else []
            yield {
                "name": f"d{i}", "version": version, "sha256": "0" * 64, "size": 1, "rows": 5,
                "columns": [], "sites": [], "parents": parents, "created_at": 1.0,
            }  # fmt: skip


def _operation(i: int) -> dict[str, Any]:
    return {
        "id": f"op-{i}", "kind": "train", "state": "succeeded", "subject": f"m{i % MODELS}",
        "created_at": float(i), "result": {},
        "params": {"dataset": _data(i), "trigger": _trigger(i)},
    }  # fmt: skip


def _release(i: int) -> dict[str, Any]:
    verdict = {"profile": "rpi4", "variant": "fp32", "passed": True, "why": "x" * 40}
    name, _, version = _ref(i).partition("@")
    return {
        "model": name, "version": int(version), "state": "released", "dataset": _data(i),
        "operation": f"op-{i}", "trigger": _trigger(i), "manifest": b"x" * 3_000,
        "references": b"x" * 3_000, "report": {"why_refused": "", "verdicts": [verdict] * 40},
    }  # fmt: skip
