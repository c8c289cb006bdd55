"""One model on the device: its slots, and the state of its update."""

import enum
from typing import Any

import msgspec

from shoal.machine import NamedEnum
from shoal.trust import Order


class State(NamedEnum):
    """State of an update attempt, as in UpdateEvent.state."""

    IDLE = enum.auto()
    QUEUED = enum.auto()
    DOWNLOADING = enum.auto()
    DOWNLOADED = enum.auto()
    INSTALLING = enum.auto()
    PROBING = enum.auto()
    ACTIVATING = enum.auto()
    OBSERVING = enum.auto()
    COMMITTING = enum.auto()
    ROLLING_BACK = enum.auto()
    SUCCEEDED = enum.auto()
    FAILED = enum.auto()
    REJECTED = enum.auto()
    TIMED_OUT = enum.auto()
    CANCELED = enum.auto()
    ALREADY_INSTALLED = enum.auto()


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """The release in one of a model's two slots.

    slot       "a" or "b"
    path       of the manifest in the image repository: its first part is the role
    sha256     of the manifest; model_sha256 of the variant's file
    counter    the release's security epoch
    timings_us variant -> p50 of its timed runs here
    """

    slot: str
    model: str
    release: str
    path: str
    sha256: str
    variant: str
    model_sha256: str
    counter: int
    since_s: float = 0.0
    timings_us: dict[str, float] = {}

    @property
    def role(self) -> str:
        return self.path.partition("/")[0]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One model on this device: its committed release, and the current update attempt.

    order     of the attempt; None before the first
    since_s   when the state began
    starts    of the agent since the state began; three in a risky state roll back
    redone    downloads repeated for damaged files in this attempt
    cause, detail, facts   why the attempt failed; empty otherwise
    serving   the committed slot
    trial     the slot of the attempt; it serves from the end of ACTIVATING
    spare     the slot before `serving`, still on disk: the fallback if `serving` is damaged
    """

    model: str
    order: Order | None = None
    state: State = State.IDLE
    since_s: float = 0.0
    starts: int = 0
    redone: int = 0
    cause: str = ""
    detail: str = ""
    facts: dict[str, Any] = {}
    serving: Slot | None = None
    trial: Slot | None = None
    spare: Slot | None = None

    @property
    def active(self) -> Slot | None:
        """The slot that should serve in this state."""
        trying = self.state in (State.OBSERVING, State.COMMITTING)
        return self.trial if trying and self.trial else self.serving

    @property
    def inactive(self) -> str:
        """Name of the slot that may be overwritten."""
        return "b" if self.serving and self.serving.slot == "a" else "a"
