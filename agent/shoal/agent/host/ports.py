"""Ports of the machine: clocks, chance, threads, sensors, and files over the network."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from shoal.errors import LinkError
from shoal.manifest import File
from shoal.wire import Health

#: Bytes of disk that updates, imports and rounds leave free, for the outbox and the system.
RESERVE = 32 << 20


class Random(Protocol):
    """Random numbers."""

    def random(self) -> float: ...
    def getrandbits(self, k: int, /) -> int: ...


class Load(NamedTuple):
    """The machine's state now; negative where it is unknown.

    cpu_stall_pct, memory_stall_pct   share of the last ten seconds that something waited (PSI)
    temp_c       hottest of the chip
    throttled    the firmware has lowered the clock, or the voltage is too low
    memory_events  how often this service met its own memory limit (cgroup), ever
    """

    cpu_stall_pct: float = -1.0
    memory_stall_pct: float = -1.0
    temp_c: float = -1.0
    throttled: bool = False
    memory_events: int = 0


class RangeRefusedError(LinkError):
    """The server, or a proxy in between, does not answer a request for a part of a file."""


class Downloads(Protocol):
    """Fetches by hash. AbsentError: 404; DeniedError: 403; LinkError: try again; StorageError.

    metadata   of TUF, by the file's name
    file   into the model's stage, from where it left off; `stop` is asked between pieces; pieces
           that older versions at `bases` have are copied from there
    delta  the same by way of what differs from `base`; BundleError, AbsentError where the whole
           file is the better way
    """

    def metadata(self, name: str) -> bytes: ...
    def small(self, url: str, size: int, sha256: str) -> bytes: ...
    def file(
        self,
        url: str,
        model: str,
        file: File,
        stop: Callable[[], bool],
        bases: Sequence[Path] = (),
    ) -> int: ...
    def delta(
        self, url: str, model: str, file: File, base: Path, stop: Callable[[], bool]
    ) -> int: ...


class HostPorts(NamedTuple):
    """The machine, as every domain is given it.

    wall, monotonic, timer   seconds: Unix, since some moment, and for latency
    disciplined   whether the machine's clock is set from the network
    spawn    runs a job now or on a thread of its own; the job never raises
    lock     makes a lock for one model's window
    health, load   of the machine, now
    """

    wall: Callable[[], float]
    monotonic: Callable[[], float]
    timer: Callable[[], float]
    random: Random
    spawn: Callable[[Callable[[], None]], None]
    lock: Callable[[], AbstractContextManager[object]]
    health: Callable[[], Health]
    load: Callable[[], Load] = Load
    disciplined: Callable[[], bool] = lambda: False
