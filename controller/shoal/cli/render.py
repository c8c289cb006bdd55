"""Terminal rendering: tables, cards, states, times, sizes. Colour only repeats a state."""

import datetime
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

JsonObject = Mapping[str, Any]
Cell = str | Callable[[JsonObject], str]
Columns = Mapping[str, Cell]

_COLOUR = {
    "green": "SUCCEEDED SUCCESSFUL FINISHED ALREADY_INSTALLED DONE succeeded released online "
    "closed ok ready REMOVED",
    "red": "FAILED REJECTED TIMED_OUT CANNOT failed refused open critical offline",
    "yellow": "PAUSED INCONCLUSIVE ROLLING_BACK ROLLED_BACK STOPPED CANCELED SKIPPED stopped "
    "candidate acknowledged warning decommissioned",
    "cyan": "RUNNING DOWNLOADING PROBING OBSERVING RECRUITING TRAINING UNMASKING AGGREGATING "
    "EVALUATING running queued preparing",
}
_STYLE = {word: colour for colour, words in _COLOUR.items() for word in words.split()}


def table(items: Iterable[JsonObject], columns: Columns, *, empty: str) -> Any:
    """Items as a table: heading -> field or function of the row; `empty` when there are none."""
    rows = list(items)
    if not rows:
        return empty
    made = Table(box=None, header_style="bold", pad_edge=False)
    for i, heading in enumerate(columns):  # the first column identifies the row
        made.add_column(heading, overflow="fold", no_wrap=i == 0)
    for row in rows:
        made.add_row(*(cell(row, column) for column in columns.values()))
    return made


def card(thing: JsonObject, fields: Columns) -> Table:
    """One object as a line per field; empty values are omitted."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for heading, column in fields.items():
        if value := cell(thing, column):
            made.add_row(heading, value)
    return made


def cell(thing: JsonObject, column: Cell) -> str:
    """One cell as text. Strings from the fleet are escaped: they are data, not markup."""
    return column(thing) if callable(column) else plain(thing.get(column, ""))


def plain(value: Any) -> str:
    """Any JSON value on one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(str(k))}={plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return escape("" if value is None else str(value))


def state(field: str = "state") -> Callable[[JsonObject], str]:
    """Column of coloured states."""

    def draw(thing: JsonObject) -> str:
        word = str(thing.get(field, ""))
        colour = _STYLE.get(word)
        return f"[{colour}]{escape(word)}[/{colour}]" if colour else escape(word)

    return draw


def when(field: str, now: Callable[[], float]) -> Callable[[JsonObject], str]:
    """Column of times relative to now; "never" for 0."""
    return lambda thing: ago(float(thing.get(field) or 0), now())


def ago(at: float, now: float) -> str:
    """
    >>> ago(0, 100), ago(40, 100), ago(100 + 7200, 100)
    ('never', '60 s ago', 'in 2 h')
    """
    if not at:
        return "never"
    seconds = abs(now - at)
    text = duration(seconds)
    return f"{text} ago" if at <= now else f"in {text}"


def duration(seconds: float) -> str:
    """
    >>> duration(3), duration(150), duration(86400 * 3)
    ('3 s', '2 min', '3 d')
    """
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds / 86400)} d"


def instant(at: float) -> str:
    """Local date and time to the second; empty for 0."""
    if not at:
        return ""
    local = datetime.datetime.fromtimestamp(at, datetime.UTC).astimezone()
    return local.strftime("%Y-%m-%d %H:%M:%S")


def size(count: float) -> str:
    """
    >>> size(512), size(20_480)
    ('512 B', '20.0 KiB')
    """
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{int(count)} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
