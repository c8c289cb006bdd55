"""Test doubles for sources and sinks: their context, and a recorder of frames and faults."""

import contextlib
import random
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from devices import LABELS, MODEL
from shoal.agent.feeds.frames import Frame, Prediction, Quality
from shoal.agent.feeds.io.interface import Context, Source
from shoal.agent.feeds.io.plugins import SINKS, SOURCES, load, settings_of
from shoal.agent.feeds.io.runner import FeedPorts, Feeds
from shoal.agent.host.faults import Fault
from shoal.agent.serving.engine import Engine
from shoal.agent.serving.served_model import ServedModel
from shoal.pipeline import Image
from shoal.wire import Health
from waiting import PATIENCE_S


class Recorder:
    """Builds feeds, and records the frames and faults that they emit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.frames: list[Frame] = []
        self.faults: list[Fault] = []
        self.image: Image | None = None  # in the signed releases

    def context(self, kind: str, name: str = "line") -> Context:
        return Context(
            name=name,
            kind=kind,
            folder=self.folder,
            fault=self.faults.append,
            wall=time.time,
            monotonic=time.monotonic,
            random=random.Random(name),
            image=lambda: self.image,
        )

    def source(self, kind: str, **settings: Any) -> Any:
        """A source by its name in agent.toml, as the agent builds it."""
        made = load(SOURCES, kind)
        table = settings_of("sources.line", made.Settings, {"kind": kind} | settings)
        return made(table, self.context(kind), self.emit)

    def sink(self, kind: str, **settings: Any) -> Any:
        made = load(SINKS, kind)
        table = settings_of("sinks.line", made.Settings, {"kind": kind} | settings)
        return made(table, self.context(kind))

    def emit(self, frame: Frame) -> int:
        self.frames.append(frame)
        return 1

    @property
    def newest(self) -> dict[str, float]:
        """Values of the last frame by name; {} before the first."""
        if not self.frames:
            return {}
        frame = self.frames[-1]
        return dict(zip(frame.names, frame.rows[-1].tolist(), strict=True))

    def reported(self, what: str) -> bool:
        return any(what in fault.detail for fault in self.faults)


@contextlib.contextmanager
def running(feed: Source) -> Iterator[threading.Thread]:
    """The feed on a thread of its own, ended and waited for."""
    stopping = threading.Event()
    thread = threading.Thread(target=feed.run, args=(stopping,), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stopping.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the feed does not end"


def serving_of(loaded: Engine, model: str = MODEL) -> ServedModel:
    serving = ServedModel(model, clock=time.time, timer=time.perf_counter, lock=threading.Lock())
    serving.swap(loaded, Health())
    return serving


def feeds_of(
    recorder: Recorder,
    served: Mapping[str, ServedModel],
    sources: Mapping[str, Mapping[str, Any]],
    sinks: Mapping[str, Mapping[str, Any]] | None = None,
) -> Feeds:
    ports = FeedPorts(
        folder=recorder.folder,
        serving=lambda: served,
        fault=recorder.faults.append,
        wall=time.time,
        monotonic=time.monotonic,
        random=random.Random(1),
    )
    return Feeds(sources, sinks or {}, ports)


def prediction(time_s: float = 1_000.0, **changes: Any) -> Prediction:
    made = Prediction(
        time_s=time_s,
        asset="pump-3",
        model=MODEL,
        release=f"{MODEL}@1",
        quality=Quality.GOOD,
        labels=LABELS,
        scores=np.array([0.7, 0.2, 0.1], np.float32),
        label="good",
    )
    return made._replace(**changes)
