"""The drift decision: false alarms where nothing changes, delays where something does, and cost.

`make bench-monitoring` watches 500 devices for each null, for 3 and 14 days, which takes hours.
SHOAL_BENCH_SHARE=0.1 takes a tenth of the device-days; `make bench`, where it is not set, takes
three device-days a null. What was run stands in each line of the tables, with its seed.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from bench import recordings
from bench.drift_libraries import library_alarms
from bench.drift_peers import PEERS, Threshold
from bench.drift_rule import decisions, flat, product, short
from bench.error_rates import PACES, Delay, Null, Pace, delays, null
from bench.null_processes import DEVICES as SUBJECTS
from bench.null_processes import FEATURES, KINDS
from bench.peer import servers
from bench.report import Found, Row
from bench.sketch_peers import KLL, sketch_against

#: Devices of a null, of a delay, and of a peer's null; window_s -> days, and the least of them.
DEVICES, CHANGED, COMPARED = 500, 8, 10
DAYS, LEAST = {60.0: 3.0, 900.0: 14.0}, {60.0: 1.5, 900.0: 4.0}
#: Windows before a change, more than a day of them, and after it.
BEFORE, WITHIN = {60.0: 1_800, 900.0: 400}, {60.0: 64, 900.0: 48}
#: The budget that is meant, and one at which a tenth of the devices shows whether it is kept.
BUDGETS = (1.0, 1_000.0)
SEED = 20_261


class PeerNull(msgspec.Struct, frozen=True, kw_only=True):
    """Findings of another tool where nothing changed; the names are those of Null."""

    peer: str
    name: str
    n: int
    window_s: float
    feature_days: float
    findings: int
    findings_per_day: float


class Sizes(NamedTuple):
    """How much is run. days, before, within: by length of a window in seconds."""

    kinds: tuple[str, ...]
    paces: tuple[Pace, ...]
    devices: int
    changed: int
    compared: int
    budgets: tuple[float, ...]
    days: dict[float, float]
    before: dict[float, int]
    within: dict[float, int]


QUICK = Sizes(
    ("iid", "diurnal 1 sd"), PACES[1:], 1, 1, 1, (1.0,), {900.0: 2.0}, {900.0: 120}, {900.0: 8}
)  # fmt: skip


def run(*, quick: bool) -> Found:
    """Nulls, delays, peers' nulls, recordings, and the cost of a decision."""
    sizes = QUICK if quick else _sizes(float(os.environ.get("SHOAL_BENCH_SHARE", "0.002")))
    tables: dict[str, list[Any]] = {
        "nulls": list(_nulls(sizes)),
        "delays": list(_delays(sizes)),
        "peers": list(_peers(sizes)),
        "recordings": [],
    }
    rows = decisions(quick=quick)
    notes: dict[str, str] = {}
    if not quick:
        tables["recordings"], notes = recordings.recorded(product, flat, short)
        rows += _kll(notes)
        tables["peers"] += _libraries(notes)
    return Found(rows=rows, notes=notes, tables=msgspec.to_builtins(tables))


def _sizes(share: float) -> Sizes:
    devices = max(2, round(DEVICES * share))
    days = {s: max(LEAST[s], min(d, d * share * DEVICES / devices)) for s, d in DAYS.items()}
    changed, compared = (max(1, round(n * min(1.0, 10 * share))) for n in (CHANGED, COMPARED))
    budgets = BUDGETS if share >= 0.1 else BUDGETS[:1]
    return Sizes(tuple(KINDS), PACES, devices, changed, compared, budgets, days, BEFORE, WITHIN)


def _nulls(sizes: Sizes) -> Iterator[Null]:
    """Every kind at every pace at a budget of one finding a day, and of a thousand."""
    for kind in sizes.kinds:
        for pace in sizes.paces:
            for budget in sizes.budgets:
                yield null(
                    kind,
                    pace,
                    product,
                    devices=sizes.devices,
                    days=sizes.days[pace.window_s],
                    seed=SEED,
                    budget=budget,
                )


def _delays(sizes: Sizes) -> Iterator[Delay]:
    """Every change of every kind at every pace."""
    for kind in sizes.kinds:
        for pace in sizes.paces:
            yield from delays(
                kind,
                pace,
                product,
                devices=sizes.changed,
                before=sizes.before[pace.window_s],
                within=sizes.within[pace.window_s],
                seed=SEED,
            )


def _peers(sizes: Sizes) -> Iterator[PeerNull]:
    """What others find in the same rows of fewer devices in a day or two."""
    for name, alarmed in PEERS.items():
        for kind in sizes.kinds:
            for pace in sizes.paces:
                found = null(
                    kind,
                    pace,
                    functools.partial(Threshold.of, alarmed),
                    devices=sizes.compared,
                    days=sizes.days[pace.window_s] / 3,
                    seed=SEED,
                    budget=1.0,
                )
                yield PeerNull(
                    peer=name,
                    name=kind,
                    n=pace.rows,
                    window_s=pace.window_s,
                    feature_days=found.feature_days,
                    findings=found.findings,
                    findings_per_day=found.findings_per_day,
                )


def _libraries(notes: dict[str, str]) -> list[PeerNull]:
    try:
        return [
            PeerNull(
                peer=peer,
                name=kind,
                n=n,
                window_s=window_s,
                feature_days=days,
                findings=findings,
                findings_per_day=findings * SUBJECTS * FEATURES / days,
            )
            for peer, kind, n, window_s, findings, days in library_alarms(SEED)
        ]
    except servers.MissingError as error:
        notes["libraries that look for drift were left out"] = str(error)
        return []


def _kll(notes: dict[str, str]) -> list[Row]:
    try:
        return sketch_against(KLL, 1_000, 9)
    except servers.MissingError as error:
        notes["Apache DataSketches was left out"] = str(error)
        return []
