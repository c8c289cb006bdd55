"""What a device says of itself, bounded before it is stored: at enrolment and in inventories alike.

A device's facts are shown to people, kept as JSON and matched by profiles. So they have a depth, a
number of entries, a length, and no characters that a terminal or a page would obey.
"""

import math
from collections.abc import Mapping
from typing import Any

#: Levels of facts, entries of a level, entries of all, characters of a text and of a name.
_DEPTH, _ENTRIES, _ALL, _TEXT, _NAME = 6, 200, 2_000, 2_000, 80
#: Largest integer that every JSON reader holds.
_INTEGER = 2**53
LABELS, LABEL = 32, 63


def json_facts(value: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a device as JSON can hold them: bounded, and what is no finite number as text.

    >>> json_facts({"p99": float("inf"), "raw": b"x", "ok": [1, None], "big": 2**80})
    {'p99': 'inf', 'raw': "b'x'", 'ok': [1, None], 'big': '1208925819614629174706176'}
    >>> json_facts({"cpu": "Cortex\\x1b[2J"})
    {'cpu': 'Cortex\ufffd[2J'}
    """
    left = [_ALL]
    bounded = _bounded(dict(value), left, 0)
    assert isinstance(bounded, dict)
    return bounded


def line_of(value: str, most: int = _TEXT) -> str:
    """At most `most` characters; those that are not for reading become U+FFFD.

    >>> line_of("line 1", 4), line_of("a\\x00b", 9)
    ('line', 'a\ufffdb')
    """
    cut = value[:most]
    if cut.isprintable():
        return cut
    return "".join(one if one.isprintable() or one == "\n" else "\ufffd" for one in cut)


def label_faults(line: str, labels: Mapping[str, str]) -> str:
    """Why a line and labels cannot be stored as they are; "" when they can.

    >>> label_faults("north", {"hall": "3"}), label_faults("x" * 64, {})
    ('', 'line and labels: up to 32, of 63 readable characters each')
    """
    texts = [line, *labels, *labels.values()]
    if len(labels) <= LABELS and all(len(t) <= LABEL and t.isprintable() for t in texts):
        return ""
    return f"line and labels: up to {LABELS}, of {LABEL} readable characters each"


def labels_of(labels: Mapping[str, str]) -> dict[str, str]:
    """The first labels, cut to what can be stored."""
    return {line_of(k, LABEL): line_of(v, LABEL) for k, v in list(labels.items())[:LABELS]}


def _bounded(value: Any, left: list[int], depth: int) -> Any:
    """left   entries that may still be kept, of all levels"""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= _INTEGER else line_of(f"{value:d}"[:_NAME])
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return line_of(value)
    if depth < _DEPTH and isinstance(value, Mapping):
        items = list(value.items())[: min(_ENTRIES, left[0])]
        left[0] -= len(items)
        return {line_of(str(k), _NAME): _bounded(v, left, depth + 1) for k, v in items}
    if depth < _DEPTH and isinstance(value, (list, tuple)):
        entries = value[: min(_ENTRIES, left[0])]
        left[0] -= len(entries)
        return [_bounded(v, left, depth + 1) for v in entries]
    return line_of(f"{value!r:.80}" if isinstance(value, bytes) else type(value).__name__)
