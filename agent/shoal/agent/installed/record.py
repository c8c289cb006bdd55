"""Records of the journal: a model's slots and update, and the device's part in rounds."""

import enum
from typing import Any

import msgspec

from shoal.federated.config import Config
from shoal.federated.spending import Ledger
from shoal.machine import NamedEnum
from shoal.orders import Order


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
    REMOVING = enum.auto()
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
        if self.state is State.REMOVING:
            return None
        trying = self.state in (State.OBSERVING, State.COMMITTING)
        return self.trial if trying and self.trial else self.serving

    @property
    def inactive(self) -> str:
        """Name of the slot that may be overwritten."""
        return "b" if self.serving and self.serving.slot == "a" else "a"


class RoundState(NamedEnum):
    """State of an attempt on this device."""

    JOINED = enum.auto()
    TRAINING = enum.auto()
    TRAINED = enum.auto()  # secure: the update is saved as integers, without its masks
    SENT = enum.auto()  # the contribution is saved and charged, and sent whenever asked for
    VOTED = enum.auto()  # secure: one ending is signed
    OPENED = enum.auto()  # secure: the shares are sent
    REFUSED = enum.auto()
    OVER = enum.auto()


class SavedUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """A contribution on this device's disk. digest: SHA-256; length: bytes."""

    digest: bytes
    length: int


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of one round on this device.

    config        as verified on invitation
    urls          sha256 -> where to fetch it
    since_s       Unix seconds, of the state
    spent         the device's privacy ledger once the contribution is sent
    contribution  from SENT on
    reason        slug, why it refused or was dismissed; detail: a sentence
    keeps         OVER: the state for the task's next round is kept
    """

    attempt: bytes
    config: Config
    urls: dict[str, str]
    since_s: float
    spent: Ledger
    state: RoundState = RoundState.JOINED
    contribution: SavedUpdate | None = None
    reason: str = ""
    detail: str = ""
    keeps: bool = False

    @property
    def secure(self) -> bool:
        return self.config.plan.secure is not None


class Participation(msgspec.Struct, frozen=True, kw_only=True):
    """All that the journal holds of rounds; it is written whole.

    part     the current attempt, or the latest
    last     task -> number of the last round that was answered
    ledger   privacy budget that this device has spent, over its life
    """

    part: RoundRecord | None = None
    last: dict[str, int] = {}
    ledger: Ledger = Ledger()
