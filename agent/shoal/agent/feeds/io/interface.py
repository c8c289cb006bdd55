"""Plugin interface of sources and sinks (docs/sources-and-sinks.md)."""

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import msgspec

from shoal.agent.feeds.frames import FeedHealth, Frame, Prediction
from shoal.agent.host.faults import Fault
from shoal.pipeline import Image

#: Runs a frame through the served models; returns the rows run. Never raises; one thread calls it.
Emit = Callable[[Frame], int]


class Touched(NamedTuple):
    """Paths of a plugin's settings, relative to the agent's folder; "" for none."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


class FeedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of every source and sink.

    kind   name of the plugin
    model  the model it belongs to, "" for every one that serves
    """

    kind: str
    model: str = ""

    def touches(self) -> Touched:
        """Paths that it reads and writes, which the service's sandbox allows."""
        return Touched()


class ServerSettings(FeedSettings, frozen=True, kw_only=True):
    """Settings of a feed with a server.

    retry_s  longest pause between two attempts to connect, in seconds; it is drawn at random
    """

    retry_s: float = 60.0


class Context(NamedTuple):
    """What a plugin gets from the agent.

    name       as in agent.toml: [sources.NAME]
    folder     the agent's; paths in settings are relative to it
    image      image size and layout in the signed manifest of the release; None without one
    fault      reports a fault to the operator; repetitions are collapsed
    wall       Unix seconds; monotonic  seconds
    """

    name: str
    kind: str
    folder: Path
    fault: Callable[[Fault], None]
    wall: Callable[[], float]
    monotonic: Callable[[], float]
    random: random.Random
    image: Callable[[], Image | None] = lambda: None


class Source(Protocol):
    """Emits frames. Built with (settings, context, emit); SettingError for impossible settings.

    Settings  its FeedSettings: agent.toml is read into it, unknown names are refused
    """

    Settings: ClassVar[type[FeedSettings]]

    def run(self, stopping: threading.Event) -> None:
        """Emit frames until `stopping` is set. Never raises: it reconnects and backs off inside,
        and a tag that cannot be read is a value of bad quality.
        """
        ...

    def health(self) -> FeedHealth: ...


class Sink(Protocol):
    """Takes predictions. Built with (settings, context).

    write   never blocks and never raises: what cannot be sent now is stored up to a limit, or
            dropped and counted
    """

    Settings: ClassVar[type[FeedSettings]]

    def write(self, prediction: Prediction) -> None: ...
    def run(self, stopping: threading.Event) -> None: ...
    def health(self) -> FeedHealth: ...


class Tally:
    """Counters behind FeedHealth. Written by one thread, read by any."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.up, self.error = False, "starting"
        self.count = self.dropped = self.bad = self.connections = self.waiting = 0
        self.lag_s, self.up_since = -1.0, 0.0
        #: What does not work while it is up.
        self.partly: Callable[[], str] = str

    def came_up(self) -> None:
        """Record that it is connected, or that the file exists."""
        self.up, self.error, self.up_since = True, "", self._context.monotonic()
        self.connections += 1

    def went_down(self, why: str) -> None:
        self.up, self.error = False, why

    def gave(self, frame: Frame) -> None:
        """Count a frame that was emitted."""
        self.count += 1
        self.lag_s = max(0.0, self._context.wall() - frame.time_s)

    def health(self) -> FeedHealth:
        return FeedHealth(
            name=self._context.name,
            kind=self._context.kind,
            up=self.up,
            count=self.count,
            dropped=self.dropped,
            bad=self.bad,
            reconnects=max(0, self.connections - 1),
            lag_s=round(self.lag_s, 3),
            waiting=self.waiting,
            error=self.partly() if self.up else self.error,
        )
