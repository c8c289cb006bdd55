"""For how many rows a device's word counts: twice what its inventory told of, which it rounds down.

A device can lie in its inventory as well; the strategy's `most_examples` bounds that.
"""

import math
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, select

from shoal.controller.store.tables import device
from shoal.federated.messages import Slice

#: Rows that every device may claim: inventories are told seldom, and rows come in between.
FEW = 64
#: Where an inventory tells nothing: rows that a device keeps unless its owner says otherwise.
UNTOLD = 20_000


def known(db: Connection, model: str, devices: Iterable[str]) -> dict[str, int]:
    """device -> rows that it may claim of a model, where its inventory tells of them."""
    query = select(device.c.name, device.c.facts).where(device.c.name.in_(list(devices)))
    found = {row.name: _told(row.facts, model) for row in db.execute(query)}
    return {name: max(FEW, 2 * told) for name, told in found.items() if told is not None}


def capped(one: Slice, most: int) -> Slice:
    """As if of `most` rows, alike on average, when it claims more.

    >>> capped(Slice(rows=1000, loss=500.0, correct=800), 100)
    Slice(rows=100, loss=50.0, correct=80)
    """
    if one.rows <= most:
        return one
    share = most / one.rows
    correct = one.correct if one.correct < 0 else int(one.correct * share)
    return Slice(rows=most, loss=one.loss * share, correct=correct)


def _told(facts: dict[str, Any], model: str) -> int | None:
    """What a device says may be anything."""
    learning = facts.get("learning")
    rows = learning.get("rows") if isinstance(learning, dict) else None
    told = rows.get(model) if isinstance(rows, dict) else None
    sound = isinstance(told, int | float) and math.isfinite(told) and told >= 0
    return int(told) if sound and told is not None else None
