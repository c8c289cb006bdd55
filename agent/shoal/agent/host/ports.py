"""Ports of the machine: clocks, chance, threads, and how it does."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from shoal.agent.host.load import Load
from shoal.agent.host.randomness import Random
from shoal.wire import Health


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
