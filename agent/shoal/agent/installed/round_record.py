"""A device's participation in federated rounds, as the journal keeps it."""

import enum

import msgspec

from shoal.federated.config import Config
from shoal.federated.spending import Ledger
from shoal.machine import NamedEnum


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
