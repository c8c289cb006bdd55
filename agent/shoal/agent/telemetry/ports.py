"""Ports of the reporter: the outbox and the link to the broker."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from shoal.agent.host.faults import Fault
from shoal.agent.host.randomness import Random
from shoal.agent.telemetry.outbox import Letter
from shoal.wire import Upward


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


class Link(Protocol):
    """To the broker. publish raises LinkError when not connected."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None: ...


class ReporterPorts(NamedTuple):
    """What the reporter is built from. random: names of processes and sessions."""

    link: Link
    outbox: Outbox
    random: Random
