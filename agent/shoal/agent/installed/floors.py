"""Versions and counters below which the device never goes again."""

import msgspec


class Floors(msgspec.Struct, frozen=True, kw_only=True):
    """What this device never goes below again; kept apart from TUF's cache.

    assignment   version of the newest assignment seen
    counters     model -> release_counter of the highest release that was committed
    metadata     "timestamp", "snapshot" -> version
    time_s       Unix seconds that a signature has vouched for
    """

    assignment: int = 0
    counters: dict[str, int] = {}
    metadata: dict[str, int] = {}
    time_s: float = 0.0

    def raised(
        self,
        *,
        assignment: int = 0,
        counters: dict[str, int] | None = None,
        metadata: dict[str, int] | None = None,
        time_s: float = 0.0,
    ) -> "Floors":
        """Floors that are nowhere lower than these."""
        return Floors(
            assignment=max(self.assignment, assignment),
            counters=_higher(self.counters, counters or {}),
            metadata=_higher(self.metadata, metadata or {}),
            time_s=max(self.time_s, time_s),
        )

    def until(self, latest_s: float) -> "Floors":
        """These, with no time beyond `latest_s`: an agent of before may have kept any."""
        return msgspec.structs.replace(self, time_s=min(self.time_s, latest_s))

    def flat(self) -> dict[str, float]:
        """As Inventory.floors says it."""
        counters = {f"counter:{model}": float(n) for model, n in self.counters.items()}
        metadata = {role: float(version) for role, version in self.metadata.items()}
        return {
            "assignment": float(self.assignment),
            "time_s": self.time_s,
            **counters,
            **metadata,
        }


def _higher(old: dict[str, int], new: dict[str, int]) -> dict[str, int]:
    return {key: max(old.get(key, 0), new.get(key, 0)) for key in {**old, **new}}
