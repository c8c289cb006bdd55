"""Everything that can go wrong in Shoal, as one tree.

    ShoalError
    ├── WireError             a message that cannot be read
    │   └── OversizeError     ... because it is larger than its kind may be
    ├── SettingError          a setting, flag or file the operator can correct
    ├── InputError            data handed to a model does not fit its schema
    ├── DatasetError          a file that cannot be a dataset
    ├── ModelError            a model this runtime or profile cannot carry
    ├── SketchError           sketches that do not belong together
    ├── BundleError           a release's files are missing, damaged or hostile
    ├── TrustError            a release or an order that must not be followed
    │   ├── UntrustedError    too few known keys signed it
    │   ├── StaleError        expired, or older than what was already seen
    │   ├── MisdirectedError  meant for another device, ring or path
    │   └── RefusedError      a federated round that asks more than this device gives
    ├── StorageError          the disk refused: full, read-only, damaged
    ├── LinkError             broker, controller or artifact server out of reach
    ├── ConflictError         the thing is not in a state that allows this
    ├── AbsentError           no such device, model, release, rollout, ...
    └── DeniedError           not signed in, or not allowed

An error carries facts, and its message names the thing and what to do about it.
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
    """A message larger than its kind may be; it was not parsed."""

    code = "oversize-message"

    def __init__(self, kind: str, size: int, limit: int) -> None:
        super().__init__(
            f"{kind}: {size} bytes, {limit} allowed", "send less at once", size=size, limit=limit
        )


class SettingError(ShoalError):
    """A setting, flag or file that the operator can correct."""

    code = "bad-setting"


class InputError(ShoalError):
    """Data handed to a model does not fit its schema."""

    code = "bad-input"


class DatasetError(ShoalError):
    """A file that cannot be a dataset."""

    code = "bad-dataset"


class ModelError(ShoalError):
    """A model that this runtime or this profile cannot carry."""

    code = "unusable-model"


class SketchError(ShoalError):
    """Sketches of different references cannot be merged or compared."""

    code = "sketch-mismatch"


class BundleError(ShoalError):
    """A release's files are missing, damaged or hostile."""

    code = "bad-bundle"


class TrustError(ShoalError):
    """A release or an order that must not be followed."""

    code = "untrusted"


class UntrustedError(TrustError):
    """Too few known keys signed this."""

    code = "bad-signature"


class StaleError(TrustError):
    """Expired, or older than what this device has already seen."""

    code = "stale"


class MisdirectedError(TrustError):
    """Validly signed, but for another device, ring or path."""

    code = "misdirected"


class RefusedError(TrustError):
    """A federated round that asks more than this device gives; it stays out of it.

    reason   slug: what the console groups refusals by
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
    """The thing is not in a state that allows this."""

    code = "conflict"


class AbsentError(ShoalError):
    """There is no such thing."""

    code = "not-found"

    def __init__(self, kind: str, name: object, hint: str = "") -> None:
        super().__init__(f"no {kind} {name!r}", hint, kind=kind, name=str(name))


class DeniedError(ShoalError):
    """Not signed in, or not allowed."""

    code = "denied"
