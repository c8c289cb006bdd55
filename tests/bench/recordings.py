"""The drift decision on recordings of real machines: what is found, how soon, and what is not.

Data: NAB machine temperature (MIT, Numenta), ZeMA hydraulic rig (CC BY 4.0, UCI 447), ultrasonic
flowmeters A-D (CC BY 4.0, UCI 433), C-MAPSS FD001 (NASA, simulated). Not part of the repository:
they are looked for in SHOAL_DATA, else in ../shared/data, and left out where neither is there.
"""

import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.error_rates import MakeRule
from bench.feature_windows import RowCounter, Rule, Watched
from bench.null_processes import DAY
from shoal.sketch import F32, F64, reference_of

FOLDER = Path(__file__).parents[3] / "shared" / "data"


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in a recording.

    rule            which settings: "product", "flat" without a daily cycle, "short"
    what            the change or fault; "as usual" where nothing is to be found
    cases, found       how many there are, in how many a finding begins
    median_windows     from the change, of those found
    findings, days     false alarms of what is as usual, and for how long it was watched
    """

    recording: str
    rule: str = ""
    what: str
    n: int
    window_s: float
    cases: int
    found: int
    median_windows: float | None = None
    findings: int | None = None
    days: float | None = None
    findings_per_day: float | None = None


class AbsentError(Exception):
    """The data are not on this machine."""


def data(name: str) -> Path:
    """A file of the folder of test data; AbsentError."""
    path = Path(os.environ.get("SHOAL_DATA") or FOLDER) / name
    if not path.exists():
        raise AbsentError(f"no {name}: set SHOAL_DATA to the folder of test data")
    return path


class Stand:
    """A rule that watches D devices whose rows (rows, D, F) come window after window."""

    def __init__(
        self, make: MakeRule, training: F64, devices: int, window_s: float, begin: float
    ) -> None:
        names = {f"x{j}": training[:, j] for j in range(training.shape[1])}
        self.counter = RowCounter(reference_of(names), devices)
        watched = Watched(devices, self.counter.training, window_s, devices)
        self.rule: Rule = make(watched, 1.0)
        self.at, self.window_s = begin, window_s

    def window(self, rows: F32, sent: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_]:
        """(D, F + 1): findings that begin with this window."""
        n, devices, _ = rows.shape
        there = np.ones(devices, bool) if sent is None else sent
        windows = self.counter.count(
            np.asarray(rows, np.float32).reshape(n, -1), np.full(devices, n), there
        )
        at, self.at = self.at, self.at + self.window_s
        return self.rule.observe(at, at, windows)


def recorded(
    make: MakeRule, flat: MakeRule, short: MakeRule
) -> tuple[list[Recorded], dict[str, str]]:
    """All recordings, and why some were left out.

    flat    the rule without a daily cycle; short: the same, of recordings that are short
    """
    found: list[Recorded] = []
    notes = {}
    scans: dict[str, tuple[Callable[[MakeRule], Iterator[Recorded]], MakeRule]] = {
        "NAB machine temperature": (temperature, make),
        "hydraulic rig": (hydraulics, make),
        "hydraulic rig, no daily cycle": (hydraulics, flat),
        "flowmeters": (flowmeters, short),
        "C-MAPSS FD001": (engines, short),
    }
    for name, (scan, rule) in scans.items():
        try:
            found += [msgspec.structs.replace(one, rule=rule.__name__) for one in scan(rule)]
        except AbsentError as error:
            notes[f"{name} was left out"] = str(error)
    return found, notes


def temperature(make: MakeRule) -> Iterator[Recorded]:
    """NAB: rows of five minutes, four labelled spans; trained on the first week."""
    table = pd.read_csv(data("dev/nab_machine_temperature.csv.gz"), parse_dates=["timestamp"])
    spans = json.loads(data("dev/nab_windows.json").read_text())["machine_temperature"]
    x = table["value"].to_numpy(float)[:, None]
    start = table["timestamp"].iloc[0].timestamp()
    for rows in (6, 12):
        window_s = 300.0 * rows
        stand = Stand(make, x[:2_000], 1, window_s, start)
        times, hits = [], []
        for i in range(0, len(x) - rows + 1, rows):
            times.append(table["timestamp"].iloc[i])
            hits.append(bool(stand.window(x[i : i + rows, None].astype(np.float32)).any()))
        time, hit = pd.Series(times), np.array(hits)
        inside, delays = np.zeros(len(hit), bool), []
        for begin, end in spans:
            now = ((time >= begin) & (time <= end)).to_numpy()
            inside |= now
            if (now & hit).any():
                delays.append(np.flatnonzero(now & hit)[0] - np.flatnonzero(now)[0] + 1)
        days = float((~inside[stand.rule.first :]).sum() * window_s / DAY)
        yield _found("NAB machine temperature", "labelled anomaly", rows, window_s, 4, delays)
        findings = int((hit & ~inside).sum())
        yield _usual("NAB machine temperature", rows, window_s, findings, days)


def hydraulics(make: MakeRule) -> Iterator[Recorded]:
    """The rig's cycles of a minute at 1 Hz, of two sites in order of time.

    Coolers at 3 % and at 20 % are two sites, each with 200 cycles in a row as usual, on whose first
    96 it is trained. After these, ten cycles of every other state of the rig are replayed, each for
    itself.
    """
    kept = np.load(data("demo/hydraulic_uci447_1hz.npz"), allow_pickle=False)
    sensors = [name for name in kept if name not in ("cycle", "profile", "profile_columns")]
    cycles = np.stack([kept[name] for name in sensors], axis=-1)  # (cycles, 60, sensors)
    states = kept["profile"][:, :4]
    delays: dict[str, list[float]] = {}
    cases: dict[str, int] = {}
    findings, days = 0, 0.0
    for usual in ((3, 100, 0, 130), (20, 100, 0, 90)):
        healthy = cycles[(states == usual).all(1)][:200]
        training = healthy[:96].reshape(-1, len(sensors)).astype(float)
        stand = Stand(make, training, 1, 60.0, 0.0)
        findings += sum(int(stand.window(cycle[:, None]).sum()) for cycle in healthy)
        days += (len(healthy) - stand.rule.first) * 60 / DAY
        for state in np.unique(states, axis=0):
            what = _apart(state, usual)
            if not what or (what == "several" and state[0] != usual[0]):
                continue
            after = copy.deepcopy(stand)
            told = [after.window(one[:, None]).any() for one in cycles[(states == state).all(1)]]
            cases[what] = cases.get(what, 0) + 1
            delays.setdefault(what, []).extend(np.flatnonzero(told[:10])[:1] + 1.0)
    yield _usual("hydraulic rig", 60, 60.0, findings, days)
    for what, found in delays.items():
        yield _found("hydraulic rig", what, 60, 60.0, cases[what], found)


def _apart(state: npt.NDArray, usual: tuple[int, ...]) -> str:
    """What of the rig's state is not as usual: one part, "cooler" before others, or several."""
    parts = ("cooler", "valve", "pump", "accumulator")
    apart = [name for name, a, b in zip(parts, state, usual, strict=True) if a != b]
    if apart == ["cooler", "accumulator"]:
        return "cooler"
    return "several" if len(apart) > 1 else "".join(apart)


def flowmeters(make: MakeRule) -> Iterator[Recorded]:
    """Four meters: a row a window; those of class 1 are as usual, each other class follows them."""
    for meter in "ABCD":
        table = pd.read_csv(data(f"dev/flowmeter_{meter}.csv.gz")).to_numpy(float)
        rows, classes = table[:, :-1].astype(np.float32), table[:, -1].astype(int)
        healthy = rows[classes == 1]
        stand = Stand(make, healthy.astype(float), 1, 60.0, 0.0)
        told = [stand.window(row[None, None]).any() for row in healthy]
        name = f"flowmeter {meter}"
        yield _usual(name, 1, 60.0, int(sum(told)), (len(told) - stand.rule.first) * 60 / DAY)
        for fault in np.unique(classes[classes != 1]):
            after = copy.deepcopy(stand)
            told = [after.window(row[None, None]).any() for row in rows[classes == fault]]
            yield _found(name, f"class {fault}", 1, 60.0, 1, np.flatnonzero(told)[:1] + 1.0)


def engines(make: MakeRule) -> Iterator[Recorded]:
    """C-MAPSS: an engine is a device, a flight a window of one row, its end a failure.

    What begins in the first half of an engine's life counts as false: it wears from the start.
    """
    table = pd.read_csv(data("dev/cmapss_train_FD001.csv.gz"))
    sensors = [name for name in table if name not in ("unit", "cycle")]
    lives = [one[sensors].to_numpy(np.float32) for _, one in table.groupby("unit")]
    last = np.array([len(life) for life in lives])
    first_rows = np.concatenate([life[:30] for life in lives]).astype(float)
    stand = Stand(make, first_rows, len(lives), 3_600.0, 0.0)
    told = np.zeros((last.max(), len(lives)), bool)
    early = 0
    for flight in range(last.max()):
        rows = np.stack([life[min(flight, len(life) - 1)] for life in lives])[None]
        begun = stand.window(rows, flight < last)
        early += int(begun[flight < last / 2].sum())
        told[flight] = begun.any(-1) & (flight >= last / 2)
    left = last[told.any(0)] - told.argmax(0)[told.any(0)]
    days = float((last / 2 - stand.rule.first).clip(0).sum() * 3_600 / DAY)
    yield _usual("C-MAPSS FD001, first half of life", 1, 3_600.0, early, days)
    what = "wear; flights before the end instead of windows"
    yield _found("C-MAPSS FD001", what, 1, 3_600.0, len(lives), left)


def _found(
    recording: str,
    what: str,
    n: int,
    window_s: float,
    cases: int,
    delays: Sequence[float] | npt.NDArray,
) -> Recorded:
    return Recorded(
        recording=recording,
        what=what,
        n=n,
        window_s=window_s,
        cases=cases,
        found=len(delays),
        median_windows=float(np.median(delays)) if len(delays) else None,
    )


def _usual(recording: str, n: int, window_s: float, findings: int, days: float) -> Recorded:
    return Recorded(
        recording=recording,
        what="as usual",
        n=n,
        window_s=window_s,
        cases=0,
        found=0,
        findings=findings,
        days=days,
        findings_per_day=findings / days if days else None,
    )
