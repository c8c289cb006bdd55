"""Floors: versions and counters below which the device accepts nothing (rollback protection)."""

import msgspec


class Floors(msgspec.Struct, frozen=True, kw_only=True):
    """The floors of the device; kept apart from TUF's cache.

    assignment   version of the newest assignment seen
    counters     model -> release_counter of the highest release that was committed
    metadata     "timestamp", "snapshot" -> version
    time_s       newest signed time, Unix seconds
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
        """The higher of both, field by field."""
        return Floors(
            assignment=max(self.assignment, assignment),
            counters=_higher(self.counters, counters or {}),
            metadata=_higher(self.metadata, metadata or {}),
            time_s=max(self.time_s, time_s),
        )

    def until(self, latest_s: float) -> "Floors":
        """Limit the time to `latest_s`: an earlier version of the agent may have saved any."""
        return msgspec.structs.replace(self, time_s=min(self.time_s, latest_s))

    def flat(self) -> dict[str, float]:
        """In the form of Inventory.floors."""
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
