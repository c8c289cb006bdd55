"""What devices measured of a new checkpoint, as one: sums over their rows, and by slice.

A slice is a class ("class:scratched"), a site ("site:north"), or what devices make of the
checkpoint for themselves ("personal"). No row leaves a device, and no row is counted twice.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from shoal.controller.federated.records import Measure
from shoal.federated.speech import Measured, Slice


class Evaluated(NamedTuple):
    """whole: None when nobody measured."""

    whole: Measure | None
    slices: dict[str, Measure]


def merged(said: Mapping[str, Measured], sites: Mapping[str, str]) -> Evaluated:
    """said: device -> what it measured; sites: device -> its site.

    >>> one = Measured(whole=Slice(rows=10, loss=5.0, correct=8))
    >>> merged({"a": one, "b": one}, {"a": "north", "b": "north"}).whole.accuracy
    0.8
    """
    parts: dict[str, list[Slice]] = defaultdict(list)
    for device in sorted(said):
        measured = said[device]
        parts[""].append(measured.whole)
        parts[f"site:{sites.get(device, '')}"].append(measured.whole)
        for name, one in measured.classes.items():
            parts[f"class:{name}"].append(one)
        if measured.personal is not None:
            parts["personal"].append(measured.personal)
    found = {name: measure for name, some in parts.items() if (measure := _sum(some))}
    return Evaluated(found.pop("", None), dict(sorted(found.items())))


def _sum(some: Iterable[Slice]) -> Measure | None:
    """None without rows."""
    kept = [one for one in some if one.rows]
    rows = sum(one.rows for one in kept)
    if not rows:
        return None
    classified = all(one.correct >= 0 for one in kept)
    return Measure(
        rows=rows,
        loss=sum(one.loss for one in kept) / rows,
        accuracy=sum(one.correct for one in kept) / rows if classified else None,
        devices=len(kept),
    )


def decode(data: bytes) -> Measured:
    return msgspec.msgpack.decode(data, type=Measured)
