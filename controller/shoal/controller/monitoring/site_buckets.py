"""Buckets of time of one site: sums over its devices' windows, open until late ones have come.

A window adds to its bucket as it arrives; nothing of it is kept or read again. A device that is
switched off is missing from sums and number of members alike, so it is no drift of its site.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy.typing as npt

#: A device that sent nothing in this many buckets is not waited for.
RECENT = 4


class Bucket(NamedTuple):
    """Sums over the windows of a bucket of time; S series, F features of W bins.

    terms    float64 (3, S): surprises, tolerances, members, as sequential.site_terms gives them
    counts   (F, W): rows in the bins; rows: rows of all windows
    """

    terms: npt.NDArray[Any]
    counts: npt.NDArray[Any]
    rows: int


@dataclass
class SiteBuckets:
    """Open buckets of one site and release.

    width_s   length of a bucket; until: start of the newest bucket that was closed
    """

    width_s: float
    until: float = -math.inf
    open: dict[float, Bucket] = field(default_factory=dict)
    newest: dict[str, float] = field(default_factory=dict)

    def add(self, device: str, start: float, one: Bucket) -> None:
        """Add a device's window that began at `start`; one of a closed bucket is left out."""
        at = math.floor(start / self.width_s) * self.width_s
        if at <= self.until:
            return
        self.newest[device] = max(at, self.newest.get(device, at))
        old = self.open.get(at)
        if old is not None:
            one = Bucket(old.terms + one.terms, old.counts + one.counts, old.rows + one.rows)
        self.open[at] = one

    def discard(self) -> None:
        """Leave out what is open: it was judged by what was usual until now."""
        self.until = max([self.until, *self.open])
        self.open.clear()

    def close(self, before: float) -> list[tuple[float, Bucket]]:
        """Take the buckets that are complete, in order of time.

        One is complete when every recently active device has sent a later window, or when it began
        before `before`: the wait for late windows is over.
        """
        if not self.open:
            return []
        last = max(self.newest.values())
        waited = [at for at in self.newest.values() if at >= last - RECENT * self.width_s]
        passed = max(min(waited), before)
        done = [(at, self.open.pop(at)) for at in sorted(self.open) if at < passed]
        if done:
            self.until = done[-1][0]
            gone = self.until - 100 * self.width_s
            self.newest = {name: at for name, at in self.newest.items() if at > gone}
        return done
