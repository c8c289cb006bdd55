"""The device's own limits for taking part in federated rounds."""

import msgspec

from shoal.federated.spending import Budget


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What this device will not go below, or above.

    enabled        it learns at all
    rows           fewer of its own it does not learn from
    cohort         devices that must be in a sum with it
    secure         only under secure aggregation
    clip           longest update that it sends, as L2 norm; 0: any
    noise          least noise, in clips; above 0 a plan without privacy is refused
    budget         epsilon over its life; None: not counted
    trust_central  noise that the controller promises counts for both; else it is none
    graphs         SHA-256, hex, of the graphs that it runs; empty: any that was signed
    idle, mains    only while nobody asks it anything; only on mains power
    celsius        it does not train above; 0: any temperature
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
