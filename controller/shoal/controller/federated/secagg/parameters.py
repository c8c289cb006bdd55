"""How many neighbours and shares secure aggregation needs, from who may be corrupt and who is lost.

Bell et al. 2020, section 3, with exact tails of the hypergeometric distribution. Of n devices a
fraction is corrupt (with the controller) and another is lost while the round runs; then

    privacy        no honest device has so many corrupt neighbours that its secrets open  2**-40
    connected      the honest survivors' graph hangs together: only the whole sum shows   2**-40
    correctness    every device keeps `threshold` living neighbours: the sum can be had   2**-20

each as a union bound over devices. Against a controller that only listens, secrets open with
`threshold` corrupt neighbours. Against one that lies about who lives, an honest device opens one
share of the two, so both secrets open once honest + 2·corrupt >= 2·threshold: that is, with
2·threshold - degree corrupt neighbours. `choose` takes the second, unless told otherwise.
"""

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

from shoal.errors import SettingError

PRIVACY_BITS, CORRECTNESS_BITS = 40, 20
_NEVER = -math.inf


class Graph(NamedTuple):
    """What a round's terms say, and how safe that is, as powers of two.

    privacy, connected, failure   log2 of the probability that the round is bad in that way
    """

    degree: int
    threshold: int
    privacy: float
    connected: float
    failure: float

    def safe(self) -> bool:
        hidden = max(self.privacy, self.connected) <= -PRIVACY_BITS
        return hidden and self.failure <= -CORRECTNESS_BITS


def choose(devices: int, corrupt: float, lost: float, *, lying: bool = True) -> Graph:
    """The smallest degree that is safe; SettingError, with the bound, when none is.

    corrupt   fraction of the devices that work with whoever runs the controller
    lost      fraction that may drop out after it shared its keys
    lying     whether the controller may say different things to different devices
    """
    if devices < 3 or not 0 <= corrupt < 1 or not 0 <= lost < 1 or corrupt + lost >= 1:
        raise SettingError(
            f"{devices} devices, {corrupt:.0%} corrupt, {lost:.0%} lost",
            "three devices or more, and somebody honest has to be left",
        )
    best: Graph | None = None
    for degree in [*range(4, devices - 1, 2), devices - 1]:
        for threshold in range(degree // 2 + 1, degree + 1):
            found = assess(devices, degree, threshold, corrupt, lost, lying=lying)
            if max(found.privacy, found.connected) > -PRIVACY_BITS:
                continue
            if found.safe():
                return found
            best = found if best is None or found.failure < best.failure else best
            break  # a higher threshold only fails more often
    raise SettingError(
        f"{devices} devices, {corrupt:.0%} corrupt, {lost:.0%} lost: no graph is safe "
        f"({_shortfall(best)}; "
        f"private to 2^-{PRIVACY_BITS} and failing below 2^-{CORRECTNESS_BITS} is asked for)",
        "let more devices take part, or assume fewer corrupt or lost ones",
    )


def _shortfall(best: Graph | None) -> str:
    """In words; the bound is a sum over devices, and above 1 it bounds nothing."""
    if best is None:
        return "nowhere private"
    if best.failure >= 0:
        return "a round may fail every time"
    return f"a round fails with a probability of up to 2^{best.failure:.1f}"


def assess(
    devices: int, degree: int, threshold: int, corrupt: float, lost: float, *, lying: bool = True
) -> Graph:
    """How safe one choice is."""
    bad, gone = (math.ceil(part * devices - 1e-9) for part in (corrupt, lost))
    opens = 2 * threshold - degree if lying else threshold
    everybody = degree >= devices - 1
    union = math.log2(devices)
    return Graph(
        degree=degree,
        threshold=threshold,
        privacy=union + _at_least(opens, devices - 1, bad, degree),
        connected=_NEVER if everybody or bad + gone == 0
        else union + degree / 2 * math.log2((bad + gone) / devices),
        failure=union + _at_least(degree - threshold + 1, devices - 1, gone, degree),
    )  # fmt: skip


def _at_least(count: int, population: int, marked: int, drawn: int) -> float:
    """log2 of the probability that `count` or more of `drawn` are marked; exact."""
    if count <= 0:
        return 0.0
    tails = _tails(population, marked, drawn)
    ways = tails[count] if count < len(tails) else 0
    return math.log2(ways) - math.log2(tails[0]) if ways else _NEVER


@lru_cache(maxsize=512)
def _tails(population: int, marked: int, drawn: int) -> tuple[int, ...]:
    """Ways to draw, with 0 or more, 1 or more, ... marked ones among them."""
    rest = population - marked
    least, most = max(0, drawn - rest), min(marked, drawn)
    ways = math.comb(marked, least) * math.comb(rest, drawn - least)
    each = [0] * least
    for i in range(least, most + 1):
        each.append(ways)
        # To the next without a factorial: the division leaves no rest.
        ways = ways * (marked - i) * (drawn - i) // ((i + 1) * (rest - drawn + i + 1))
    return tuple(itertools.accumulate(reversed(each)))[::-1]
