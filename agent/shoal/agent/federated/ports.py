"""Ports of federated learning: rows, sandbox, trainer, gateway. The adapters are in io/."""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from shoal.agent.federated.secagg import Credentials
from shoal.agent.federated.trainer import TrainingJob, TrainingResult
from shoal.agent.host.ports import Load, Random
from shoal.agent.host.round_limits import Limits
from shoal.agent.installed.record import Participation, SavedUpdate
from shoal.federated.config import Config
from shoal.federated.messages import GatewayRoute
from shoal.federated.spending import Ledger

if TYPE_CHECKING:
    from shoal.trust import ImageRepository

#: Files in the sandbox, beside those of Config.contents.
CONTRIBUTION, NUMBERS, SITE_SUM = "contribution", "numbers", "site-sum"


class RoundJournal(Protocol):
    """Durable when a call returns. StorageError when the disk refuses; then nothing changed."""

    def participation(self) -> Participation: ...
    def save_participation(self, known: Participation) -> None: ...


class Trainer(Protocol):
    """Runs a job in a process of its own.

    attempt       whose sandbox it works in
    pause_reason  why it must pause now, "" to go on: inference has priority
    cancelled     whether the job was cancelled
    Raises RefusedError when the round asks for what this device cannot do, ModelError for a graph
    that does not run, LinkError when it was cancelled.
    """

    def run(
        self,
        attempt: bytes,
        job: TrainingJob,
        pause_reason: Callable[[], str],
        cancelled: Callable[[], bool],
    ) -> TrainingResult: ...


class Rows(Protocol):
    """The device's rows. StorageError when the disk refuses.

    lost    why an earlier file of them is gone, "" when none is
    count   labelled ones
    due     whether the rows in memory should be flushed to the disk
    """

    @property
    def lost(self) -> str: ...
    def count(self, model: str, features: tuple[str, ...]) -> int: ...
    def due(self) -> bool: ...
    def flush(self) -> None: ...


class Sandbox(Protocol):
    """Folders of rounds' files, apart from every slot.

    fetch   the contents that the config names by hash, resuming; LinkError: try again
    piece   `length` bytes of a saved contribution, or of the site's sum by its name, from `start`
    end     delete the files of an attempt; keep: keep its state for the task's next round
    clean   delete the files of all other attempts
    spent, spend   copy of the privacy ledger, so that losing the journal gives no new budget
    """

    def fetch(
        self, attempt: bytes, config: Config, urls: dict[str, str], cancelled: Callable[[], bool]
    ) -> None: ...
    def piece(self, attempt: bytes, start: int, length: int, name: str = CONTRIBUTION) -> bytes: ...
    def end(self, attempt: bytes, task: str, *, keep: bool) -> None: ...
    def clean(self, attempt: bytes) -> None: ...
    def spent(self) -> Ledger: ...
    def spend(self, ledger: Ledger) -> None: ...


class SiteSumFile(NamedTuple):
    """A site's sum on the disk."""

    members: frozenset[str]
    saved: SavedUpdate


class SiteCollector(Protocol):
    """Collects a site's updates on its gateway, which this device is. Safe in any thread.

    open      accept an attempt's updates from these devices; again: from others. `members`: device
              -> least generation of its certificate; `limit`: bytes of one update. SettingError
              when the address cannot be used, StorageError when the disk refuses
    received  devices whose updates are on the disk
    sum       save the sum of the updates, and accept no more. `size`: of the model; `most`:
              examples that one device counts for. StorageError, InputError
    close     accept no more updates
    """

    def open(self, attempt: bytes, members: Mapping[str, int], limit: int) -> None: ...
    def received(self) -> frozenset[str]: ...
    def sum(
        self, attempt: bytes, members: Collection[str], size: int, most: int
    ) -> SiteSumFile: ...
    def close(self) -> None: ...


class FederatedPorts(NamedTuple):
    """Adapters of federated learning.

    spawn       runs a job now or on a thread of its own; the job never raises
    load        sensors of the machine
    images      its verified targets name the keys that sign rounds; with a cache of its own, so
                that it never waits for an update
    mains       whether on mains power; None where the machine does not report it
    entropy     n -> n random bytes of the system
    limits, quiet_hz   from agent.toml
    link_ready  whether the link to the broker can take a large message
    collector   on a gateway; else None
    hand_over   sends this device's update to its gateway: route, attempt, bytes; False: ask again
                later. LinkError, UntrustedError: upload it directly
    """

    journal: RoundJournal
    rows: Rows
    images: "ImageRepository"
    sandbox: Sandbox
    trainer: Trainer
    spawn: Callable[[Callable[[], None]], None]
    monotonic: Callable[[], float]
    random: Random
    load: Callable[[], Load]
    credentials: Credentials
    entropy: Callable[[int], bytes]
    mains: Callable[[], bool | None]
    limits: Limits
    hand_over: Callable[[GatewayRoute, bytes, bytes], bool]
    quiet_hz: float = 20.0
    link_ready: Callable[[], bool] = lambda: True
    collector: SiteCollector | None = None
