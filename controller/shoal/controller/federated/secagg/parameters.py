"""Parameters of secure aggregation: neighbours and threshold for given corruption and dropout.

Bell et al. 2020, section 3, with exact tails of the hypergeometric distribution. Of n devices a
fraction is corrupt (colludes with the controller) and another drops out during the round; then

    privacy        no honest device has enough corrupt neighbours to open its secrets     2**-40
    connected      the honest survivors' graph is connected: only the whole sum shows     2**-40
    correctness    every device keeps `threshold` surviving neighbours: the sum opens     2**-20

are the allowed failure probabilities, each as a union bound over devices. A semi-honest controller
opens a secret with `threshold` corrupt neighbours. A malicious one claims different survivors to
different devices; an honest device then opens one share of the two, so both secrets open once
honest + 2·corrupt >= 2·threshold: with 2·threshold - degree corrupt neighbours. `choose` assumes a
malicious controller by default.
"""

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

from shoal.errors import SettingError

PRIVACY_BITS, CORRECTNESS_BITS = 40, 20
_NEVER = -math.inf


class Graph(NamedTuple):
    """Neighbours and threshold of a round, and their failure probabilities.

    privacy, connected, failure   log2 of the probability of each failure
    """

    degree: int
    threshold: int
    privacy: float
    connected: float
    failure: float

    def safe(self) -> bool:
        hidden = max(self.privacy, self.connected) <= -PRIVACY_BITS
        return hidden and self.failure <= -CORRECTNESS_BITS


def choose(devices: int, corrupt: float, lost: float, *, malicious: bool = True) -> Graph:
    """Smallest safe degree; SettingError, with the bound, when none is safe.

    corrupt   fraction of the devices that collude with the controller
    lost      fraction that may drop out after key sharing
    malicious whether the controller may send different survivors to different devices
    """
    if devices < 3 or not 0 <= corrupt < 1 or not 0 <= lost < 1 or corrupt + lost >= 1:
        raise SettingError(
            f"{devices} devices, {corrupt:.0%} corrupt, {lost:.0%} lost",
            "three devices or more, and some of them honest, are needed",
        )
    best: Graph | None = None
    for degree in [*range(4, devices - 1, 2), devices - 1]:
        for threshold in range(degree // 2 + 1, degree + 1):
            found = assess(devices, degree, threshold, corrupt, lost, malicious=malicious)
            if max(found.privacy, found.connected) > -PRIVACY_BITS:
                continue
            if found.safe():
                return found
            best = found if best is None or found.failure < best.failure else best
            break  # a higher threshold only fails more often
    raise SettingError(
        f"{devices} devices, {corrupt:.0%} corrupt, {lost:.0%} lost: no graph is safe "
        f"({_shortfall(best)}; "
        f"private to 2^-{PRIVACY_BITS} and failing below 2^-{CORRECTNESS_BITS} is required)",
        "let more devices take part, or assume fewer corrupt or lost ones",
    )


def _shortfall(best: Graph | None) -> str:
    """The bound in words; as a sum over devices it may exceed 1, and then bounds nothing."""
    if best is None:
        return "nowhere private"
    if best.failure >= 0:
        return "a round may fail every time"
    return f"a round fails with a probability of up to 2^{best.failure:.1f}"


def assess(
    devices: int,
    degree: int,
    threshold: int,
    corrupt: float,
    lost: float,
    *,
    malicious: bool = True,
) -> Graph:
    """Failure probabilities of one choice."""
    corrupted, dropped = (math.ceil(part * devices - 1e-9) for part in (corrupt, lost))
    opens = 2 * threshold - degree if malicious else threshold
    complete = degree >= devices - 1
    union = math.log2(devices)
    return Graph(
        degree=degree,
        threshold=threshold,
        privacy=union + _at_least(opens, devices - 1, corrupted, degree),
        connected=_NEVER if complete or corrupted + dropped == 0
        else union + degree / 2 * math.log2((corrupted + dropped) / devices),
        failure=union + _at_least(degree - threshold + 1, devices - 1, dropped, degree),
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
