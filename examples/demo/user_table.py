"""Scenario of a user's own table: `shoal demo --data FILE --label COLUMN ...`."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from demo import table as tables
from demo.partition import dirichlet_split, hold_out
from demo.scenario import Scenario, Station, stations
from demo.table import Table
from shoal.errors import DatasetError

_STREAMED = 0.5
_MOST_CLASSES = 30
#: Share of rows from after the change, at each of its steps.
_CHANGE_SHARES = (0.4, 1.0)
_WEAR = (0.35, 0.7, 1.0)
_LABELLED_AT = (0.85, 0.9, 0.95, 1.0)
_SITE = "site"
#: Cells beside numbers that a feature may have: nothing, as pandas reads CSV, and yes or no.
_NOT_NUMBERS = frozenset(
    {"", "na", "n/a", "nan", "null", "none", "<na>", "#n/a", "-nan", "true", "false"}
)


class Choice(NamedTuple):
    """Options for the table.

    train_sites   train on these only; the drift is at the others. () trains on all
    """

    path: Path
    label: str
    site: str = ""
    split: str = ""
    drop: tuple[str, ...] = ()
    train_sites: tuple[str, ...] = ()


def user_table(choice: Choice, seed: int = 7) -> Scenario:
    """Scenario of a user's table.

    With train sites: the other sites see such data as the train sites' first (the machines are
    new), then their own (conditions change). Without: the sensors of one site wear.

    Raises DatasetError naming the column or value that does not fit.
    """
    random = np.random.default_rng(seed)
    whole = _with_sites(_checked(tables.read(choice.path), choice), choice, random)
    sites = _three_sites(whole, choice)
    _check_numbers(whole, {choice.label, choice.site or _SITE, choice.split})
    slugs = tuple(_slug(site) for site in sites)
    fleet = stations(sites, (slugs[0], slugs[1], slugs[2]))
    back = _hold_out(whole, choice, random)
    learn = whole.take([i for i in range(len(whole.rows)) if i not in back])
    stream = whole.take(sorted(back))
    build = _moving_sites if choice.train_sites else _worn_site
    registered, streams, change_steps, relabelled, drifting, change = build(
        choice, fleet, sites, learn, stream, random
    )
    name = re.sub(r"[^a-z0-9]+", "-", choice.label.lower()).strip("-")[:40] or "label"
    return Scenario(
        title=choice.path.name,
        model=name,
        dataset=f"{name}-data",
        label=choice.label,
        site=choice.site or _SITE,
        split=choice.split,
        estimator="mlp",
        stations=fleet,
        registered=registered,
        streams=streams,
        change=change,
        change_steps=change_steps,
        relabelled=relabelled,
        drifting=drifting,
    )


_ScenarioData = tuple[Table, dict[str, Table], list[dict[str, Table]], Table, frozenset[str], str]


def _moving_sites(
    choice: Choice,
    fleet: list[Station],
    sites: tuple[str, str, str],
    learn: Table,
    stream: Table,
    random: np.random.Generator,
) -> _ScenarioData:
    """Train on the train sites; at the others, the stream changes to their own rows."""
    home = learn.where(choice.site, lambda s: s in choice.train_sites)
    start = stream.where(choice.site, lambda s: s in choice.train_sites)
    streams = _share(start, choice.label, fleet, random)
    drifting = frozenset(sites) - set(choice.train_sites)
    change_steps: list[dict[str, Table]] = [{} for _ in _CHANGE_SHARES]
    for site in sorted(drifting):
        own = stream.where(choice.site, lambda s, site=site: s == site)  # type: ignore[misc]
        here = [station for station in fleet if station.site == site]
        for name, table in _share(own, choice.label, here, random).items():
            for step, share in zip(change_steps, _CHANGE_SHARES, strict=True):
                step[name] = _mix(streams[name], table, share, random)
    kept = set(sites) | set(choice.train_sites)
    relabelled = home.and_(
        learn.where(choice.site, lambda s: s in kept and s not in choice.train_sites)
    )
    where = " and ".join(sorted(drifting))
    change = f"conditions change at {choice.site} {where}: their own rows come in"
    return home, streams, change_steps, relabelled, drifting, change


def _worn_site(
    choice: Choice,
    fleet: list[Station],
    sites: tuple[str, str, str],
    learn: Table,
    stream: Table,
    random: np.random.Generator,
) -> _ScenarioData:
    """Train on all sites; the sensors of the third site degrade."""
    column = choice.site or _SITE
    streams: dict[str, Table] = {}
    for site in sites:
        here = [station for station in fleet if station.site == site]
        own = stream.where(column, lambda s, site=site: s == site)  # type: ignore[misc]
        streams |= _share(own, choice.label, here, random)
    roles = {choice.label, column, choice.split}
    last = sites[-1]
    worn = [station.name for station in fleet if station.site == last]
    middle = _medians(learn, roles)
    change_steps = [{name: _wear(streams[name], middle, w) for name in worn} for w in _WEAR]
    fresh = learn.where(column, lambda s: s == last)
    relabelled = learn
    for severity in _LABELLED_AT:
        relabelled = relabelled.and_(_wear(fresh, middle, severity))
    change = f"the sensors of {column} {last} degrade: an offset, and less sensitivity"
    return learn, streams, change_steps, relabelled, frozenset([last]), change


def _checked(whole: Table, choice: Choice) -> Table:
    """The table without dropped columns; DatasetError when the demo cannot use it."""
    classes = Counter(whole.column(choice.label))
    if not 2 <= len(classes) <= _MOST_CLASSES:
        raise DatasetError(
            f"label {choice.label!r} has {len(classes)} different values",
            f"the demo's progress needs classes: 2 to {_MOST_CLASSES} of them",
        )
    for name in (choice.site, choice.split, *choice.drop):
        if name:
            whole.column(name)
    return whole.only([name for name in whole.columns if name not in choice.drop])


def _check_numbers(whole: Table, roles: set[str]) -> None:
    """Raise DatasetError for columns with text, before anything is started."""
    words: dict[str, str] = {}
    for name in whole.columns:
        if name not in roles:
            odd = next((cell for cell in whole.column(name) if not _is_valid_cell(cell)), None)
            words |= {} if odd is None else {name: odd}
    if words:
        shown = ", ".join(f"{name!r} ({cell!r:.30})" for name, cell in list(words.items())[:4])
        more = f" and {len(words) - 4} more" if len(words) > 4 else ""
        raise DatasetError(
            f"not numbers: {shown}{more}", f"leave them out: --drop {','.join(words)}"
        )


def _is_valid_cell(cell: str) -> bool:
    """Whether a table's cell is a number, yes or no, or missing."""
    return cell.strip().lower() in _NOT_NUMBERS or _is_number(cell)


def _with_sites(whole: Table, choice: Choice, random: np.random.Generator) -> Table:
    """The table with a site column: its own, or three made up."""
    if choice.site:
        return whole
    names = ("north", "south", "east")
    drawn = random.integers(0, 3, len(whole.rows))
    rows = [(*row, names[at]) for row, at in zip(whole.rows, drawn, strict=True)]
    return Table((*whole.columns, _SITE), rows)


def _three_sites(whole: Table, choice: Choice) -> tuple[str, str, str]:
    """Three site names: the train sites, then those with most rows."""
    column = choice.site or _SITE
    counts = Counter(whole.column(column))
    for site in choice.train_sites:
        if site not in counts:
            raise DatasetError(f"no row of {column} {site!r}", f"there are: {', '.join(counts)}")
    others = [site for site, _ in counts.most_common() if site not in choice.train_sites]
    found = [*choice.train_sites, *others][:3]
    if len(found) < 3 or not set(found) - set(choice.train_sites):
        raise DatasetError(
            f"{column} has {len(counts)} values", "three sites are needed; or leave --site out"
        )
    return found[0], found[1], found[2]


def _hold_out(whole: Table, choice: Choice, random: np.random.Generator) -> set[int]:
    """Rows to stream: by whole groups where --split names a column."""
    sites = whole.column(choice.site or _SITE)
    labels = whole.column(choice.label)
    keys = [f"{site}|{label}" for site, label in zip(sites, labels, strict=True)]
    groups = whole.column(choice.split) if choice.split else [str(i) for i in range(len(sites))]
    return hold_out(keys, groups, _STREAMED, random)


def _share(
    rows: Table, label: str, fleet: Sequence[Station], random: np.random.Generator
) -> dict[str, Table]:
    shares = dirichlet_split(rows.column(label), len(fleet), random)
    return {station.name: rows.take(share) for station, share in zip(fleet, shares, strict=True)}


def _mix(before: Table, after: Table, share: float, random: np.random.Generator) -> Table:
    """`share` of the rows from `after`, the rest from `before`."""
    if share >= 1:
        return after
    count = min(len(before.rows), int(len(after.rows) * (1 - share) / share) + 1)
    return after.and_(before.take(sorted(random.permutation(len(before.rows))[:count].tolist())))


def _medians(learn: Table, roles: set[str]) -> dict[str, tuple[float, float]]:
    """Median and standard deviation of each numeric feature."""
    found = {}
    for name in learn.columns:
        cells = [cell for cell in learn.column(name) if cell]
        if name not in roles and cells and all(_is_number(cell) for cell in cells[:200]):
            values = np.array([float(cell) if _is_number(cell) else np.nan for cell in cells])
            found[name] = float(np.nanmedian(values)), float(np.nanstd(values))
    return found


def _wear(rows: Table, middle: dict[str, tuple[float, float]], severity: float) -> Table:
    """Simulate a degraded sensor: an offset, and less sensitivity.

    The offset is large (three standard deviations): close by, old and new readings
    of different classes would be the same, and no model could separate them.
    """

    def worn(name: str, cell: str) -> str:
        if name not in middle or not _is_number(cell):
            return cell
        median, spread = middle[name]
        signal = (float(cell) - median) * (1 - 0.2 * severity)
        return f"{median + signal + 3 * severity * spread:.6g}"

    made = [
        tuple(worn(name, cell) for name, cell in zip(rows.columns, row, strict=True))
        for row in rows.rows
    ]
    return Table(rows.columns, made)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _slug(site: str) -> str:
    """A site's name as part of a device name.

    >>> _slug("Halle 3/B"), _slug("100")
    ('halle-3-b', 'site-100')
    """
    text = re.sub(r"[^a-z0-9]+", "-", site.lower()).strip("-")[:40]
    return text if text[:1].isalpha() else f"site-{text}".strip("-")
