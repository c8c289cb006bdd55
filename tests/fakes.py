"""Fakes of broker, artifact server, onnxruntime and time for a fleet in memory."""

import collections
import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shoal import bundle, delta
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.serving.engine import Engine as Served
from shoal.agent.serving.engine import Runtime
from shoal.agent.serving.session_reports import SessionReport
from shoal.agent.update.acceptance import Measured
from shoal.controller.releases import download_urls
from shoal.errors import LinkError
from shoal.manifest import File

NOW = 1_800_000_000.0


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """A temporary folder; in memory where possible: fsync costs nothing there."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as name:
        yield Path(name)


class Clock:
    """A virtual clock, in seconds."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Broker:
    """Topics, wildcards, retained messages, last wills; in order by default.

    spoil   given the messages of one pump, returns those to deliver: drop, repeat, shuffle
    """

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self.log: list[tuple[str, bytes]] = []
        self._links: list[MemoryLink] = []
        self._waiting: collections.deque[tuple[str, bytes]] = collections.deque()
        self.spoil: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]] = list

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self._waiting.append((topic, payload))
        self.log.append((topic, payload))
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)

    def join(self, link: "MemoryLink") -> None:
        self._links.append(link)
        for topic, payload in self.retained.items():
            if link.wants(topic):
                link.on_message(topic, payload)

    def leave(self, link: "MemoryLink", *, rudely: bool) -> None:
        if link in self._links:
            self._links.remove(link)
            if rudely and link.testament:
                self.publish(*link.testament, retain=True)

    def pump(self) -> int:
        """Deliver queued messages; return their number."""
        batch = self.spoil(list(self._waiting))
        self._waiting.clear()
        for topic, payload in batch:
            for link in list(self._links):
                if link.wants(topic):
                    link.on_message(topic, payload)
        return len(batch)


class MemoryLink:
    """shoal.mqtt.Link on the broker above."""

    def __init__(
        self,
        broker: Broker,
        subscriptions: Sequence[str],
    ) -> None:
        self._broker = broker
        self._filters = [re.compile(re.escape(f).replace(r"\+", "[^/]+")) for f in subscriptions]
        self.on_message: Callable[[str, bytes], None] = lambda topic, payload: None
        self._on_connection: Callable[[bool], None] = lambda up: None
        self.testament: tuple[str, bytes] | None = None
        self.connected = False

    def wants(self, topic: str) -> bool:
        return any(f.fullmatch(topic) for f in self._filters)

    def start(
        self,
        on_message: Callable[[str, bytes], None],
        on_connection: Callable[[bool], None],
        will: Callable[[], tuple[str, bytes]] | None = None,
    ) -> None:
        self.on_message, self._on_connection = on_message, on_connection
        self.testament = will() if will else None
        self.connected = True
        self._on_connection(True)
        self._broker.join(self)

    def stop(self, *, rudely: bool = False) -> None:
        self.connected = False
        self._broker.leave(self, rudely=rudely)
        self._on_connection(False)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        if not self.connected:
            raise LinkError("not connected")
        self._broker.publish(topic, payload, retain)


class Capabilities:
    """Fake artifact server: returns a blob for a signed, unexpired URL."""

    def __init__(self, fleet: Any, stage: Callable[[str], Path]) -> None:
        self._fleet, self._stage = fleet, stage

    def small(self, url: str, size: int, sha256: str) -> bytes:
        data = self._fetch(url)
        assert len(data) == size
        return data

    def file(
        self,
        url: str,
        model: str,
        file: File,
        stop: Callable[[], bool],
        bases: Sequence[Path] = (),
    ) -> int:
        data = self._fetch(url)
        (self._stage(model) / file.name).write_bytes(data)
        return len(data)

    def delta(self, url: str, model: str, file: File, base: Path, stop: Callable[[], bool]) -> int:
        data = self._fetch(url)
        made = delta.apply(base.read_bytes(), data, file.size)
        (self._stage(model) / file.name).write_bytes(made)
        return len(data)

    def _fetch(self, url: str) -> bytes:
        if self._fleet.artifacts_down:
            raise LinkError("artifact server is away")
        sha, expires, signature = re.search(r"/blobs/([\w-]+)\?exp=(\d+)&sig=(\w+)$", url).groups()
        download_urls.check(self._fleet.key, sha, expires, signature, self._fleet.clock())
        blobs, (old, _, new) = self._fleet.ctx.blobs, sha.partition("-")
        return delta.make(blobs.read(old), blobs.read(new)) if new else blobs.read(sha)


class Sums:
    """A session: one score from the sum of a row, as the model file says."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = np.asarray(weights, np.float32)

    def run(self, rows: Any) -> Any:
        score = 1 / (1 + np.exp(-(rows @ self._weights)))
        return np.stack([1 - score, score], axis=1).astype(np.float32)


class JsonModels:
    """Loader and prober of models described by a line of JSON.

    {"weights": [...], "wrong_on": [device...], "slow_on": [...]}
    """

    runtime = Runtime("1.32.0", range(22).__contains__)

    def __init__(self, slots: DiskSlots, device: str) -> None:
        self._slots, self._device = slots, device

    def load(self, slot: Any, profile: Any) -> Served:
        folder = self._slots.path(slot.model, slot.slot)
        manifest = bundle.read_manifest(folder)
        text = (folder / manifest.variant(slot.variant).file.name).read_bytes()
        return Served(
            slot=slot, manifest=manifest, references=bundle.read_references(folder, manifest),
            session=Sums(json.loads(text)["weights"]), slow_s=profile.budget.p99_ms / 1e3,
        )  # fmt: skip

    def settle(self, slot: Any, profile: Any) -> None:
        pass

    def trim(self) -> None:
        pass

    def prepare(self, profile: Any) -> None:
        pass

    def dismiss(self) -> None:
        pass

    def probe(
        self, model: str, slot: str, profile: Any, recent: Any, beside: Any, stop: Any
    ) -> list[Measured]:
        manifest = self._slots.read_manifest(model, slot)
        measured = []
        for name in manifest.profiles[profile.name]:
            file = self._slots.path(model, slot) / manifest.variant(name).file.name
            said = json.loads(file.read_bytes())
            wrong = self._device in said["wrong_on"]
            slow = profile.budget.p99_ms * (3 if self._device in said["slow_on"] else 0.1)
            disagree = self._disagree(said["weights"], recent, beside)
            measured.append(
                Measured(
                    variant=name, worst_error=0.31 if wrong else 0.0, labels_differ=4 * wrong,
                    golden_rows=32, p50_ms=slow / 2, p99_ms=slow, rss_mb=10.0,
                    disagree=disagree, compared=len(recent) if disagree >= 0 else 0,
                )
            )  # fmt: skip
        return measured

    def _disagree(self, weights: Sequence[float], recent: Any, beside: Any) -> float:
        """Share of `recent` that the model in service labels otherwise."""
        if recent is None or beside is None or not len(recent):
            return -1.0
        folder = self._slots.path(beside.model, beside.slot)
        file = bundle.read_manifest(folder).variant(beside.variant).file.name
        old = Sums(json.loads((folder / file).read_bytes())["weights"])
        return float((old.run(recent).argmax(1) != Sums(weights).run(recent).argmax(1)).mean())


class NoSessionReports:
    """SessionReports where no program can have a session."""

    def read(self) -> list[SessionReport]:
        return []

    def end(self, model: str) -> None:
        """Nothing to do."""


class Idle:
    """Operation runner that starts no subprocess."""

    def step(self) -> None:
        pass

    def stop(self) -> None:
        pass


class Silent:
    """An engine that is down."""

    def drain(self) -> int:
        return 0

    def work(self) -> float:
        return 0.0
