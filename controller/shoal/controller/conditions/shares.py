"""Whether a share has risen: failed requests, slow ones, wrong answers. A Bernoulli CUSUM.

The first trials of a release on a device are its baseline, p0. Each later window adds the logarithm
of the likelihood ratio of p1 (WORSE times p0, plus MARGIN) against p0, never below zero. The share
has risen at RISEN and is well again at zero: wrong answers come in bursts, so one window adds a
third of RISEN at most, and the score stops at half above it, so that good windows end it soon.

Reference: M. R. Reynolds and Z. G. Stoumbos, "A CUSUM chart for monitoring a proportion when
inspecting continuously", Journal of Quality Technology 31 (1999).
"""

import math
from typing import NamedTuple

WORSE, MARGIN, RISEN = 2.0, 0.03, 18.0
#: Bounds of p0: a share of none is not believed, nor that half of all answers may be wrong.
_LEAST, _MOST = 0.005, 0.3


class Share(NamedTuple):
    """State of one share: trials and hits of its baseline, and the score."""

    trials: int = 0
    hits: int = 0
    score: float = 0.0

    @property
    def usual(self) -> float:
        """p0: the baseline's share and two standard errors."""
        p = (self.hits + 0.5) / (self.trials + 1)
        return min(max(p + 2 * math.sqrt(p * (1 - p) / (self.trials + 1)), _LEAST), _MOST)

    @property
    def risen(self) -> bool:
        return self.score >= RISEN


def observe(share: Share, trials: int, hits: int, baseline: int) -> Share:
    """The state after a window of `trials`, of which `hits` were bad.

    baseline   trials that make up the baseline

    >>> usual = observe(Share(), 500, 5, baseline=500)
    >>> observe(usual, 500, 5, 500).score
    0.0
    >>> bad = observe(usual, 500, 100, 500)
    >>> bad.risen, observe(observe(bad, 500, 100, 500), 500, 100, 500).risen
    (False, True)
    """
    hits = min(max(hits, 0), trials)
    if trials <= 0:
        return share
    if share.trials < baseline:
        return Share(share.trials + trials, share.hits + hits, 0.0)
    p0 = share.usual
    p1 = min(0.95, WORSE * p0 + MARGIN)
    ratio = hits * math.log(p1 / p0) + (trials - hits) * math.log((1 - p1) / (1 - p0))
    step = min(RISEN / 3, max(-RISEN / 3, ratio))
    return share._replace(score=min(max(0.0, share.score + step), 1.5 * RISEN))
