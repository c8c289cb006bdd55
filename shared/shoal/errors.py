"""The error tree of Shoal.

    ShoalError
    ├── WireError             a message that cannot be read
    │   └── OversizeError     ... because it is larger than its kind may be
    ├── SettingError          a setting, flag or file the operator can correct
    ├── InputError            data for a model does not match its schema
    ├── DatasetError          a file that is not a valid dataset
    ├── ModelError            a model that this runtime or profile cannot run
    ├── SketchError           sketches of different references
    ├── BundleError           a release's files are missing, damaged or hostile
    ├── TrustError            a release or an order that must be rejected
    │   ├── UntrustedError    too few valid signatures
    │   ├── RevokedError      a release that must never be installed again
    │   ├── ProvenanceError   a release whose provenance contradicts its manifest
    │   ├── StaleError        older than a version already seen
    │   │   └── ExpiredError  ... or expired, by this machine's clock
    │   ├── MisdirectedError  signed for another device, ring or path
    │   └── RefusedError      a federated round beyond the device's limits
    ├── StorageError          the disk refused: full, read-only, damaged
    ├── LinkError             broker, controller or artifact server out of reach
    ├── ConflictError         the state of the resource does not allow this
    ├── AbsentError           no such device, model, release, rollout, ...
    └── DeniedError           not signed in, or not allowed

An error carries facts, and its message names the resource and a hint.
"""

from typing import Any


class ShoalError(Exception):
    """Base of every error that Shoal raises on purpose.

    code   short slug: the last part of the problem+json ``type``, and the ``cause`` of an event
    hint   what to do about it, one sentence; empty when the message already says so
    """

    code = "error"

    def __init__(self, message: str, hint: str = "", **facts: Any) -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message, self.hint, self.facts = message, hint, facts


def hint_fields(hint: str) -> dict[str, str]:
    """A hint as fields of a JSON object. `mend` is its old name: it goes in 0.2."""
    return {"hint": hint, "mend": hint}


class WireError(ShoalError):
    """A message that cannot be read."""

    code = "unreadable-message"


class OversizeError(WireError):
    """A message over the size limit of its kind; it was not parsed."""

    code = "oversize-message"

    def __init__(self, kind: str, size: int, limit: int) -> None:
        super().__init__(
            f"{kind}: {size} bytes, {limit} allowed", "send less at once", size=size, limit=limit
        )


class SettingError(ShoalError):
    """A setting, flag or file that the operator can correct."""

    code = "bad-setting"


class InputError(ShoalError):
    """Data for a model does not match its schema."""

    code = "bad-input"


class DatasetError(ShoalError):
    """A file that is not a valid dataset."""

    code = "bad-dataset"


class ModelError(ShoalError):
    """A model that this runtime or this profile cannot run."""

    code = "unusable-model"


class SketchError(ShoalError):
    """Sketches of different references cannot be merged or compared."""

    code = "sketch-mismatch"


class BundleError(ShoalError):
    """A release's files are missing, damaged or hostile."""

    code = "bad-bundle"


class TrustError(ShoalError):
    """A release or an order that must be rejected."""

    code = "untrusted"


class UntrustedError(TrustError):
    """Too few valid signatures."""

    code = "bad-signature"


class RevokedError(TrustError):
    """The release was revoked: it must never be installed again."""

    code = "revoked"


class ProvenanceError(TrustError):
    """The provenance in a release's bundle contradicts its manifest."""

    code = "provenance-mismatch"


class StaleError(TrustError):
    """Expired, or older than a version that this device has already seen."""

    code = "stale"


class ExpiredError(StaleError):
    """Expired, by this machine's clock: it may be the clock that is wrong."""


class MisdirectedError(TrustError):
    """Validly signed, for another device, ring or path."""

    code = "misdirected"


class RefusedError(TrustError):
    """A federated round beyond the device's limits; the device does not join.

    reason   slug by which the console groups refusals
    """

    code = "round-refused"

    def __init__(self, detail: str, reason: str, hint: str = "") -> None:
        super().__init__(detail, hint, reason=reason)
        self.reason = reason


class StorageError(ShoalError):
    """The disk refused: full, read-only or damaged."""

    code = "storage"


class LinkError(ShoalError):
    """Broker, controller or artifact server is out of reach."""

    code = "unreachable"


class ConflictError(ShoalError):
    """The state of the resource does not allow this."""

    code = "conflict"


class AbsentError(ShoalError):
    """No resource of this kind and name."""

    code = "not-found"

    def __init__(self, kind: str, name: object, hint: str = "") -> None:
        super().__init__(f"no {kind} {name!r}", hint, kind=kind, name=str(name))


class DeniedError(ShoalError):
    """Not signed in, or not allowed."""

    code = "denied"
