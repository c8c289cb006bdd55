"""Personal parameters: the ranges of theta that stay on each device (FedPer).

>>> layout = [Parameter(name="w0", shape=(4, 2), offset=0), Parameter(name="b0", shape=(2,),
...           offset=8), Parameter(name="w1", shape=(2, 3), offset=10)]
>>> ranges_of(layout, {"b0", "w1"})
((8, 16),)
"""

from collections.abc import Iterable, Set

from shoal.controller.training.gradient.graph import FORWARD
from shoal.controller.training.gradient.make import Prepared
from shoal.controller.training.gradient.selection import Choice, last_layer
from shoal.params import Parameter


def personal_of(prepared: Prepared, choose: Choice = last_layer) -> tuple[tuple[int, int], ...]:
    """[start, stop) ranges of theta of the chosen parameters; by default of the last layer."""
    names = {name.removeprefix(FORWARD) for name in choose(prepared.forward)}
    return ranges_of(prepared.parameters, names)


def ranges_of(parameters: Iterable[Parameter], names: Set[str]) -> tuple[tuple[int, int], ...]:
    """Ranges of the parameters with these names; adjacent ones are merged."""
    found: list[tuple[int, int]] = []
    for one in parameters:
        if one.name not in names:
            continue
        start, stop = one.offset, one.offset + one.size
        if found and found[-1][1] == start:
            start = found.pop()[0]
        found.append((start, stop))
    return tuple(found)
