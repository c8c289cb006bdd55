"""What the agent needs of the world. Adapters are in io/; tests/scenario has them in memory."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from shoal.agent.adaptation import Load
from shoal.agent.faults import Fault
from shoal.agent.orders import Floors, Runtime
from shoal.agent.outbox import Letter
from shoal.agent.probation import Measured
from shoal.agent.rounds import Participation
from shoal.agent.serving import Engine
from shoal.agent.testimony import Accounts, Nobody
from shoal.agent.update import Record, Slot
from shoal.manifest import File, Manifest
from shoal.profile import Profile
from shoal.sketch import F32
from shoal.trust import Order
from shoal.wire import Health, Upward

if TYPE_CHECKING:
    from shoal.agent.training import LearningPorts


class Journal(Protocol):
    """Durable when a call returns. StorageError when the disk refuses; then nothing changed.

    lost   why an earlier journal is gone, "" when none is
    """

    lost: str

    def records(self) -> dict[str, Record]: ...
    def save(self, record: Record) -> None: ...
    def floors(self) -> Floors: ...
    def save_floors(self, floors: Floors) -> None: ...
    def assignment(self) -> bytes: ...
    def save_assignment(self, payload: bytes, floors: Floors) -> None: ...
    def participation(self) -> Participation: ...
    def save_participation(self, known: Participation) -> None: ...


class Outbox(Protocol):
    """Durable store of what the controller does not have yet.

    boot   random name of this store's life
    add    `key` not empty: added once, however often it is asked
    faults what happened to the store since it was last asked
    connected  what waits now is the backlog, and goes after what comes from now on
    number_all  every row has its number from now on
    after  letters numbered above `seq`, in order; rows not yet numbered get their number now, at
           most `backlog` of the backlog's windows; caught_up counts these
    """

    @property
    def boot(self) -> str: ...
    def add(self, message: Upward, key: str = "", number: bool = False) -> None: ...
    def connected(self) -> None: ...
    def number_all(self) -> None: ...
    def after(self, seq: int, limit: int, backlog: int | None = None) -> list[Letter]: ...
    def ack(self, boot: str, seqs: Sequence[int]) -> None: ...
    def faults(self) -> list[Fault]: ...
    @property
    def waiting(self) -> int: ...
    @property
    def caught_up(self) -> int: ...


class Slots(Protocol):
    """The two slots of each model, and the stage beside them.

    stage_has   bytes of `file` in the stage already; file.size when it is whole and true
    keep        the stage is durable as it is
    missing     bytes that the stage still lacks of `files`; size  bytes of a slot
    drop        delete a slot that does not serve
    sweep       delete the stage and what else is left over, of all models but the `busy` ones
    install     stage -> slot, durable; repeatable; BundleError when neither holds the release
    held        sha256 -> path of every file in either slot, as their manifests say
    point       the `current` link, switched atomically; found  what the links point at
    """

    def read_manifest(self, model: str, slot: str) -> Manifest: ...
    def put_manifest(self, model: str, data: bytes) -> None: ...
    def staged(self, model: str, sha256: str) -> Manifest: ...
    def reuse(self, model: str, file: File) -> bool: ...
    def keep(self, model: str) -> None: ...
    def verify_stage(self, model: str, sha256: str, profile: str) -> None: ...
    def install(self, model: str, slot: str, sha256: str, profile: str) -> None: ...
    def verify(self, slot: Slot, profile: str) -> None: ...
    def point(self, model: str, slot: Slot | None) -> None: ...
    def found(self) -> list[Slot]: ...
    def clean(self, model: str) -> None: ...
    def sweep(self, busy: Collection[str]) -> None: ...
    def missing(self, model: str, files: Sequence[File]) -> int: ...
    def size(self, model: str, slot: str) -> int: ...
    def drop(self, model: str, slot: str) -> None: ...
    def held(self, model: str) -> dict[str, Path]: ...
    def free_bytes(self) -> int: ...


class Downloads(Protocol):
    """Fetches by hash. AbsentError: 404; DeniedError: 403; LinkError: try again; StorageError.

    file   into the model's stage, from where it left off; `stop` is asked between pieces
    delta  the same by way of what differs from `base`; BundleError, AbsentError where the whole
           file is the better way
    """

    def small(self, url: str, size: int, sha256: str) -> bytes: ...
    def file(self, url: str, model: str, file: File, stop: Callable[[], bool]) -> int: ...
    def delta(
        self, url: str, model: str, file: File, base: Path, stop: Callable[[], bool]
    ) -> int: ...


class Images(Protocol):
    """shoal.trust.ImageRepository, or the like."""

    def refresh(
        self, now_s: float, floors: Mapping[str, float] | None = None
    ) -> dict[str, int]: ...
    def check(self, order: Order) -> None: ...


class Loader(Protocol):
    """Loads a release from its slot; ModelError names what this runtime cannot do.

    settle   what can wait until it serves: what makes the next start quick, and memory given back
    """

    @property
    def runtime(self) -> Runtime: ...
    def load(self, slot: Slot, profile: Profile) -> Engine: ...
    def settle(self, slot: Slot, profile: Profile) -> None: ...
    def trim(self) -> None: ...


class Prober(Protocol):
    """Tries a slot's variants off the serving path; ModelError when the trial dies.

    recent   local inputs (n, F) for the shadow, run through `beside` too
    prepare  a probe is to come: what of it takes time may begin; dismiss  none is to come
    """

    def prepare(self, profile: Profile) -> None: ...
    def dismiss(self) -> None: ...
    def probe(
        self,
        model: str,
        slot: str,
        profile: Profile,
        recent: F32 | None,
        beside: Slot | None,
        stop: Callable[[], bool],
    ) -> list[Measured]: ...


class Link(Protocol):
    """To the broker. publish raises LinkError when not connected."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None: ...


class Random(Protocol):
    def random(self) -> float: ...
    def getrandbits(self, k: int, /) -> int: ...


class Ports(NamedTuple):
    """Everything that is passed in.

    spawn    runs a job now or on a thread of its own; the job never raises
    lock     makes a lock for one model's window
    timer    seconds, for latency
    load     what presses on the machine now
    disciplined   whether the machine's clock is set from the network
    sessions what programs with a session of their own say of a release on trial
    """

    journal: Journal
    outbox: Outbox
    slots: Slots
    downloads: Downloads
    images: Images
    loader: Loader
    prober: Prober
    link: Link
    health: Callable[[], Health]
    spawn: Callable[[Callable[[], None]], None]
    lock: Callable[[], AbstractContextManager[object]]
    wall: Callable[[], float]
    monotonic: Callable[[], float]
    timer: Callable[[], float]
    random: Random
    load: Callable[[], Load] = Load
    learning: "LearningPorts | None" = None
    sessions: Accounts = Nobody()
    disciplined: Callable[[], bool] = lambda: False
