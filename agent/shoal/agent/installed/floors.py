"""Floors: versions and counters below which the device accepts nothing (rollback protection)."""

import msgspec

from shoal.epochs import FIRST, SecurityEpoch
from shoal.signers import Seen, Signers

_ASSIGNMENT = "assignment"


class Floors(msgspec.Struct, frozen=True, kw_only=True):
    """The floors of the device; kept apart from TUF's cache.

    assignment   version of the newest assignment seen
    counters     model -> release_counter of the highest release that was committed
    metadata     "timestamp", "snapshot" -> version
    time_s       newest signed time, Unix seconds
    signers      "timestamp", "snapshot", "assignment" -> who could sign that version
    revoked      model -> versions that signed metadata has revoked
    """

    assignment: int = 0
    counters: dict[str, int] = {}
    metadata: dict[str, int] = {}
    time_s: float = 0.0
    signers: dict[str, Signers] = {}
    revoked: dict[str, list[int]] = {}

    @property
    def seen(self) -> Seen:
        """Versions of release metadata, and who could sign them."""
        return Seen(self.metadata, self.signers)

    def raised(
        self,
        *,
        assignment: int = 0,
        counters: dict[str, int] | None = None,
        time_s: float = 0.0,
    ) -> "Floors":
        """The higher of both, field by field."""
        return msgspec.structs.replace(
            self,
            assignment=max(self.assignment, assignment),
            counters=_higher(self.counters, counters or {}),
            time_s=max(self.time_s, time_s),
        )

    def of_epoch(self, model: str, epoch: SecurityEpoch) -> "Floors":
        """Raise the counter of a model to its security epoch; what was revoked stays so."""
        revoked = sorted({*self.revoked.get(model, ()), *epoch.revoked})
        if epoch.epoch <= self.counters.get(model, FIRST) and not revoked:
            return self
        raised = self.raised(counters={model: epoch.epoch})
        return msgspec.structs.replace(raised, revoked={**self.revoked, model: revoked})

    def learned(self, other: "Floors") -> "Floors":
        """With counters and revocations that another copy of them has."""
        models = {*self.revoked, *other.revoked}
        both = {
            model: sorted({*self.revoked.get(model, ()), *other.revoked.get(model, ())})
            for model in models
        }
        return msgspec.structs.replace(self.raised(counters=other.counters), revoked=both)

    def is_revoked(self, release: str) -> bool:
        """Whether "model@version" was revoked, as far as this device has seen."""
        model, _, version = release.rpartition("@")
        return version.isdecimal() and int(version) in self.revoked.get(model, ())

    def after(self, seen: Seen) -> "Floors":
        """Raise the floors of release metadata to what was verified.

        They are lowered to it where a newer root has replaced one of the keys that could sign
        them (TUF 1.0.33, 5.3.11).
        """
        known = [(self.signers[r], new) for r, new in seen.signers.items() if r in self.signers]
        if any(new.root < old.root for old, new in known):
            return self  # verified before the root that is known already
        versions = {role: int(version) for role, version in seen.versions.items()}
        if known and not any(old.replaced_by(new) for old, new in known):
            versions = _higher(self.metadata, versions)
        return msgspec.structs.replace(
            self,
            metadata={**self.metadata, **versions},
            signers={**self.signers, **seen.signers},
        )

    def ordered(self, version: int, director: Signers) -> "Floors":
        """Raise the floor of assignments to a version that one of these keys has signed."""
        floor = max(version, self.of_assignments(director))
        signers = {**self.signers, _ASSIGNMENT: director}
        return msgspec.structs.replace(self, assignment=floor, signers=signers)

    def of_assignments(self, director: Signers) -> int:
        """Version below which no assignment is accepted; 0 once the director's key was replaced:
        the stolen one may have signed any version, and signs none that is accepted now."""
        before = self.signers.get(_ASSIGNMENT)
        return 0 if before and before.replaced_by(director) else self.assignment

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
