"""The device's own limits for federated rounds."""

import msgspec

from shoal.federated.spending import Budget


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that a round must respect, or this device refuses it.

    enabled        it takes part at all
    rows           least number of its own labelled rows
    cohort         least number of devices in the sum
    secure         only under secure aggregation
    clip           largest L2 norm of an update; 0: any
    noise          least noise, in clips; above 0 a plan without privacy is refused
    budget         epsilon over its life; None: unlimited
    trust_central  central noise counts for noise and budget; else it does not
    graphs         SHA-256, hex, of the graphs that it runs; empty: any signed one
    idle, mains    only without inference requests; only on mains power
    celsius        highest temperature for training; 0: any
    """

    enabled: bool = True
    rows: int = 10
    cohort: int = 3
    secure: bool = False
    clip: float = 0.0
    noise: float = 0.0
    budget: Budget | None = None
    trust_central: bool = False
    graphs: frozenset[str] = frozenset()
    idle: bool = True
    mains: bool = True
    celsius: float = 75.0
