"""What the trainer's process is asked, and what it answers.

It runs in a folder of its own (the sandbox: one for each try of a round), reads the device's rows
itself, and writes what it made there, so that the agent's memory does not grow with the model.
"""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import msgspec

from shoal.agent.federated.secagg import Mask, Sign, Verify
from shoal.agent.host.round_limits import Limits
from shoal.agent.installed.round_record import Saved
from shoal.errors import LinkError
from shoal.federated.config import Config
from shoal.federated.messages import Measured, Way
from shoal.federated.spending import Ledger

if TYPE_CHECKING:
    from tuf.api.metadata import Targets

#: Names in the sandbox, beside those of Config.contents.
CONTRIBUTION, NUMBERS, SITE = "contribution", "numbers", "site-sum"


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    kind      train: learn, and write the contribution (securely: the numbers without masks);
              mask: put masks on the numbers, and write the contribution;
              measure: how theta does on the device's rows
    labels    classes by index; empty for values
    features  of a row, in order: rows of another model's features are left out
    seed      32 random bytes for shuffling, rounding and noise, used for nothing else
    """

    kind: Literal["train", "mask", "measure"]
    config: Config
    labels: tuple[str, ...]
    features: tuple[str, ...]
    seed: bytes = b""
    masks: list[Mask] = []


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    contribution  on the disk; None for numbers that still want masks, and for measuring
    rows          learned from; loss: mean over them before training
    steps         of training; seconds: of the process's CPU
    norm          L2, of the update before it was made small or hidden
    """

    contribution: Saved | None = None
    rows: int = 0
    loss: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    norm: float = 0.0
    rss_mb: float = 0.0
    measured: Measured | None = None


class Trainer(Protocol):
    """Does work in a process of its own.

    attempt   whose sandbox it works in
    hold      why it must rest now, "" to go on: inference comes first
    stop      whether it was taken back
    Raises RefusedError when the round asks for what cannot be done here, ModelError for a graph
    that does not run, LinkError when it was taken back.
    """

    def run(
        self, attempt: bytes, work: Work, hold: Callable[[], str], stop: Callable[[], bool]
    ) -> Made: ...


class Images(Protocol):
    """Who may sign a round: shoal.trust.ImageRepository, or the like."""

    @property
    def targets(self) -> "Targets": ...
    def refresh(
        self, now_s: float, floors: Mapping[str, float] | None = None
    ) -> dict[str, int]: ...


class Rows(Protocol):
    """The device's rows. StorageError when the disk refuses.

    lost    why an earlier file of them is gone, "" when none is
    count   labelled ones; due: whether what waits in memory should be flushed to the disk
    """

    @property
    def lost(self) -> str: ...
    def count(self, model: str, features: tuple[str, ...]) -> int: ...
    def due(self) -> bool: ...
    def flush(self) -> None: ...


class Sandbox(Protocol):
    """Folders of rounds' files, far from any slot.

    fetch   what the config names, by hash, from where it left off; LinkError: try again
    piece   `length` bytes of a saved contribution, or of the site's sum by its name, from `start`
    end     delete all of an attempt; keep: what it remembers for the task's next round holds
    clean   delete what is of no attempt but this
    spent, spend   the device's ledger, once more beside the journal: who loses that does not gain a
                   new budget
    """

    def spent(self) -> Ledger: ...
    def spend(self, ledger: Ledger) -> None: ...

    def fetch(
        self, attempt: bytes, config: Config, urls: dict[str, str], stop: Callable[[], bool]
    ) -> None: ...
    def piece(self, attempt: bytes, start: int, length: int, name: str = CONTRIBUTION) -> bytes: ...
    def end(self, attempt: bytes, task: str, *, keep: bool) -> None: ...
    def clean(self, attempt: bytes) -> None: ...


class Door(Protocol):
    """Where a site hands its updates over to this device, its gateway. Any thread may ask.

    open    listen for a try's updates of these devices; again: of others. `members`: device ->
            generation of its certificate, at least; `most`: bytes of one. SettingError when the
            address is not to be had, StorageError when the disk refuses
    came    devices whose updates are here
    gather  make their sum, and save it; who is in it. Afterwards nobody is let in. `size`: of the
            model; `most`: examples that a device counts for. StorageError, InputError for none
    shut    let nobody in any more
    """

    def open(self, attempt: bytes, members: Mapping[str, int], most: int) -> None: ...
    def came(self) -> frozenset[str]: ...
    def gather(
        self, attempt: bytes, members: Collection[str], size: int, most: int
    ) -> "Gathered": ...
    def shut(self) -> None: ...


class Gathered(NamedTuple):
    """A site's sum on the disk."""

    members: frozenset[str]
    saved: Saved


class Credentials(NamedTuple):
    """This device's identity in a securely aggregated round. certificate: DER, as it is now.

    verify   certificates of others by device -> Verify
    """

    sign: Sign
    certificate: Callable[[], bytes]
    verify: Callable[[dict[str, bytes]], Verify]


def no_way(way: Way, attempt: bytes, data: bytes) -> bool:
    """Of a device that hands nothing over."""
    raise LinkError(f"{way.gateway} is out of reach")


class LearningPorts(NamedTuple):
    """What learning needs of the world, beside the agent's Ports.

    images   as Ports.images, with a cache of its own: what an update does is not waited for
    mains    on mains power; None where the machine does not tell
    entropy  n -> n random bytes of the system
    limits, quiet_hz   of agent.toml
    room     whether the line to the broker has room for a large message
    door     where this device is its site's gateway, or None
    hand     gives this device's update to its gateway: attempt, its bytes; whether it has it now,
             else it is to be asked again. LinkError, UntrustedError: send it up directly
    """

    rows: Rows
    images: Images
    sandbox: Sandbox
    trainer: Trainer
    credentials: Credentials
    entropy: Callable[[int], bytes]
    mains: Callable[[], bool | None]
    limits: Limits
    quiet_hz: float = 20.0
    room: Callable[[], bool] = lambda: True
    door: Door | None = None
    hand: Callable[[Way, bytes, bytes], bool] = no_way
