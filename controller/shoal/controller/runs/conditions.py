"""The language in which runs are searched: a part of MLflow's search syntax.

    metrics.accuracy > 0.96 and params.hidden = '64,32' and tags.team = vision

A name without `metrics.`, `params.` or `tags.` is a metric's. A name with blanks stands between
backticks, a text with blanks between quotes. Only `and`: two searches are an `or`.

Source of the syntax: https://mlflow.org/docs/latest/search-runs.html
"""

import re
from typing import NamedTuple

from shoal.controller.runs.records import METRIC, PARAM, TAG
from shoal.errors import InputError

_KINDS = {"metric": METRIC, "param": PARAM, "tag": TAG}
_SYNTAX = "write it as: metrics.accuracy > 0.9 and params.hidden = '64,32' and tags.team = vision"
_NAME = r"(?:(metric|param|tag)s?\.)?(`[^`]{1,120}`|[\w./:-]{1,120}?)"
_NAMED = re.compile(_NAME + r"\Z", re.ASCII)
_CONDITION = re.compile(
    rf"\s*{_NAME}\s*(>=|<=|!=|=|<|>)\s*('[^']*'|\"[^\"]*\"|[^\s'\"]+)\s*(?:\Z|and\b)",
    re.IGNORECASE,
)
#: Characters of a search, and conditions in it.
_LENGTH, _MOST = 1_000, 10


class Name(NamedTuple):
    """What a run has under a name. kind: METRIC, PARAM or TAG."""

    kind: str
    name: str


class Condition(NamedTuple):
    """A comparison with a number, or with a text where `number` is None (`=` and `!=` only)."""

    of: Name
    operator: str
    number: float | None
    text: str


def parse(text: str) -> list[Condition]:
    """The conditions of a search, all of which must hold; InputError shows the syntax.

    >>> parse("accuracy >= 0.9 and tags.team = 'a b'")[1]
    Condition(of=Name(kind='tag', name='team'), operator='=', number=None, text='a b')
    """
    if len(text) > _LENGTH:
        raise InputError(f"a search of {len(text)} characters", f"use {_LENGTH} at most")
    found: list[Condition] = []
    place = 0
    while place < len(text.rstrip()):
        match = _CONDITION.match(text, place)
        if match is None or len(found) == _MOST:
            raise InputError(f"search {text[place : place + 60].strip()!r}", _SYNTAX)
        found.append(_condition(match))
        place = match.end()
    if re.search(r"\band\s*\Z", text, re.IGNORECASE):
        raise InputError("the search ends with 'and'", _SYNTAX)
    return found


def parse_name(text: str) -> Name:
    """A name as in a search; InputError for what is none.

    >>> parse_name("params.alpha")
    Name(kind='param', name='alpha')
    """
    match = _NAMED.match(text.strip())
    if match is None:
        raise InputError(f"{text[:60]!r} is no name of a metric", "such as metrics.accuracy")
    return _name(match)


def _name(match: re.Match[str]) -> Name:
    return Name(_KINDS[(match[1] or METRIC).lower()], match[2].strip("`"))


def _condition(match: re.Match[str]) -> Condition:
    name, operator, value = _name(match), match[3], match[4]
    quoted = value[0] in "'\""
    text = value[1:-1] if quoted else value
    number = None if quoted else _number(text)
    if number is None and operator not in ("=", "!="):
        raise InputError(f"{name.name} {operator} {value[:60]}", "only numbers have an order")
    return Condition(name, operator, number, text)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
