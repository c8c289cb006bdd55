"""A device's part in federated rounds, as the journal keeps it."""

import enum

import msgspec

from shoal.federated.config import Config
from shoal.federated.spending import Ledger


class _Named(enum.StrEnum):
    """Members whose value is their name: what the journal and the screen say."""

    @staticmethod
    def _generate_next_value_(name: str, *_: object) -> str:
        return name


class State(_Named):
    """Where the part stands."""

    JOINED = enum.auto()
    TRAINING = enum.auto()
    TRAINED = enum.auto()  # secure: the update is there as whole numbers, without its masks
    SENT = enum.auto()  # the contribution is saved and spent for, and said whenever asked
    VOTED = enum.auto()  # secure: one ending is signed
    OPENED = enum.auto()  # secure: the shares are out
    REFUSED = enum.auto()
    OVER = enum.auto()


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """A contribution on this device's disk. digest: SHA-256; length: bytes."""

    digest: bytes
    length: int


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One try of one round on this device: what the journal holds.

    config        verified when the invitation came
    urls          sha256 -> where to fetch it
    since_s       Unix seconds, of the state
    spent         the device's ledger once the contribution is out
    contribution  from SENT on
    reason        slug, why it refused or was dismissed; detail: a sentence
    keeps         OVER: what it remembers for the task's next round holds
    """

    attempt: bytes
    config: Config
    urls: dict[str, str]
    since_s: float
    spent: Ledger
    state: State = State.JOINED
    contribution: Saved | None = None
    reason: str = ""
    detail: str = ""
    keeps: bool = False

    @property
    def secure(self) -> bool:
        return self.config.plan.secure is not None


class Participation(msgspec.Struct, frozen=True, kw_only=True):
    """All that the journal knows of rounds; it is written whole.

    last     task -> number of the last round that was answered
    ledger   what this device has spent, over its life
    """

    part: Part | None = None
    last: dict[str, int] = {}
    ledger: Ledger = Ledger()
