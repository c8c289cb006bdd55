"""Builds the sources and sinks of agent.toml, connects them to the models, runs their threads."""

import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shoal.agent.feeds.flow import Flow, RowCollector
from shoal.agent.feeds.frames import FeedHealth, Prediction
from shoal.agent.feeds.io.interface import Context, FeedSettings, Sink, Source
from shoal.agent.feeds.io.plugins import SINKS, SOURCES, load, settings_of
from shoal.agent.host.faults import Fault
from shoal.agent.serving.served_model import ServedModel
from shoal.errors import SettingError
from shoal.pipeline import Image

#: Seconds that a feed may take to stop.
STOP_S = 5.0


class FeedPorts(NamedTuple):
    """What feeds use of the agent. serving: the served models by name; rate, collect: see Flow."""

    folder: Path
    serving: Callable[[], Mapping[str, ServedModel]]
    fault: Callable[[Fault], None]
    wall: Callable[[], float]
    monotonic: Callable[[], float]
    random: random.Random
    rate: Callable[[], float] = lambda: 1.0
    collect: RowCollector | None = None


class Feeds:
    """Sources and sinks of one device.

    sources, sinks   tables of agent.toml by name; SettingError names what is wrong in them
    """

    def __init__(
        self,
        sources: Mapping[str, Mapping[str, Any]],
        sinks: Mapping[str, Mapping[str, Any]],
        ports: FeedPorts,
    ) -> None:
        self._ports, self._stopping = ports, threading.Event()
        self._threads: list[threading.Thread] = []
        self.sinks = {name: self._sink(name, table) for name, table in sinks.items()}
        self.sources = {name: self._source(name, table) for name, table in sources.items()}

    def start(self) -> None:
        """Start a thread for each: sinks first, so that no prediction is lost."""
        for name, feed in [*self.sinks_by_name(), *self.sources.items()]:
            thread = threading.Thread(
                target=feed.run, args=(self._stopping,), name=f"feed-{name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def stop(self, patience_s: float = STOP_S) -> None:
        """Stop every feed, and wait so long for all of them: one may hang in a dead connection."""
        self._stopping.set()
        end = self._ports.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, end - self._ports.monotonic()))

    def health(self) -> list[FeedHealth]:
        """Every source, then every sink."""
        feeds = [*self.sources.values(), *(sink for _, sink in self.sinks_by_name())]
        return [feed.health() for feed in feeds]

    @property
    def pushes(self) -> dict[str, Callable[[bytes], int]]:
        """Push sources by name: each takes a body posted to the endpoint."""
        found = {name: getattr(source, "take", None) for name, source in self.sources.items()}
        return {name: take for name, take in found.items() if take is not None}

    def sinks_by_name(self) -> list[tuple[str, Sink]]:
        return [(name, sink) for name, (_, sink) in self.sinks.items()]

    def _sink(self, name: str, table: Mapping[str, Any]) -> tuple[str, Sink]:
        kind, settings = self._settings(SINKS, f"sinks.{name}", table)
        sink: Sink = kind(settings, self._context(name, settings))
        return settings.model, sink

    def _source(self, name: str, table: Mapping[str, Any]) -> Source:
        kind, settings = self._settings(SOURCES, f"sources.{name}", table)
        takes: list[tuple[str, Callable[[Prediction], None]]] = [
            (model, sink.write) for model, sink in self.sinks.values()
        ]
        ports = self._ports
        flow = Flow(
            name,
            settings.model,
            serving=ports.serving,
            sinks=takes,
            fault=ports.fault,
            rate=ports.rate,
            collect=ports.collect,
        )
        source: Source = kind(settings, self._context(name, settings), flow)
        return source

    def _settings(
        self, group: str, where: str, table: Mapping[str, Any]
    ) -> tuple[Any, FeedSettings]:
        kind = load(group, str(table.get("kind", "")))
        return kind, settings_of(where, kind.Settings, table)

    def _context(self, name: str, settings: FeedSettings) -> Context:
        ports = self._ports
        return Context(
            name=name,
            kind=settings.kind,
            folder=ports.folder,
            fault=ports.fault,
            wall=ports.wall,
            monotonic=ports.monotonic,
            random=random.Random(ports.random.random()),
            image=lambda: image_of(ports.serving(), settings.model),
        )


def image_of(served: Mapping[str, ServedModel], model: str) -> Image | None:
    """The image spec in the releases that serve `model` ("" for all); None when there is none.

    SettingError when they differ.
    """
    engines = [one.engine for name, one in served.items() if model in ("", name)]
    found = {e.manifest.pipeline.image for e in engines if e is not None} - {None}
    if len(found) > 1:
        specs = ", ".join(sorted(map(str, found)))
        raise SettingError(f"models with different images: {specs}", "name one: model = ...")
    return found.pop() if found else None
