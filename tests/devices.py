"""A device in memory: real journal, outbox, slots, trust and wire bytes; fakes for network,
onnxruntime, time and power supply.

>>> device = Device(folder, Cloud())                                 # doctest: +SKIP
>>> device.assign(cloud.release(1)); device.run(); device.serves()   # doctest: +SKIP
"""

import contextlib
import hashlib
import math
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from artifact_responses import Response
from repositories import NOW, Repository
from shoal import bundle, delta, topics, wire
from shoal import manifest as manifests
from shoal.agent.host.ports import HostPorts
from shoal.agent.installed.io.journal import SqliteJournal
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.installed.record import Slot
from shoal.agent.loop import Agent
from shoal.agent.peers.policy import PeerDirectory
from shoal.agent.serving.engine import Engine, Runtime
from shoal.agent.serving.io.session_reports import SessionReportReader
from shoal.agent.telemetry.io.outbox_store import SqliteOutbox
from shoal.agent.telemetry.reporter import Identity, ReporterPorts
from shoal.agent.update.acceptance import Measured
from shoal.agent.update.io.download import HttpsDownloads
from shoal.agent.update.ports import UpdatePorts, UpdateSettings
from shoal.errors import AbsentError, InputError, LinkError, ModelError
from shoal.manifest import Feature, File, Manifest, Variant
from shoal.orders import Order
from shoal.profile import Profile, profile
from shoal.sketch import References, reference_of
from shoal.trust import ImageRepository
from shoal.wire import Health
from supply import Power

MODEL, FEATURES, LABELS = "lot-codes", ("contrast", "blur"), ("good", "bad", "odd")
PROFILE = "x86-vnni"


class Cloud:
    """Signed releases, and the blobs of an artifact server."""

    def __init__(self, now: float = NOW) -> None:
        self.repository = Repository(now)
        self.blobs: dict[str, bytes] = {}
        self.deltas: dict[str, bytes] = {}
        self.reachable = True

    def release(
        self,
        version: int,
        *,
        role: str = "release",
        counter: int = 1,
        model: str = MODEL,
        weights: bytes = b"",
        **changes: Any,
    ) -> Order:
        """Sign a release with the model of `version`; return its order."""
        manifest = self.manifest(version, counter, model, weights, **changes)
        data = manifests.encode(manifest)
        self.blobs[hashlib.sha256(data).hexdigest()] = data
        order = self.repository.add(role, model, version, data)
        return msgspec.structs.replace(order, rollout=f"r-{version}")

    def manifest(
        self, version: int, counter: int, model: str, weights: bytes, **changes: Any
    ) -> Manifest:
        file = {
            name: self.file(f"{name}.onnx", weights or f"{model} {version} {name} ".encode() * 99)
            for name in ("int8-u8s8-pc", "fp32")
        }
        rows = np.random.default_rng(version).normal(size=(500, len(FEATURES)))
        output = softmax(rows, version)
        references = References(
            inputs=reference_of(dict(zip(FEATURES, rows.T, strict=True))),
            outputs=reference_of({"score": output.max(1), "prediction": output.argmax(1) * 1.0}),
        )
        golden = bundle.Golden(rows[:8].astype(np.float32), {"fp32": output[:8].astype(np.float32)})
        made = Manifest(
            model=model,
            version=version,
            release_counter=counter,
            task="classification",
            input="input",
            output="output",
            features=[Feature(name=name, low=-3, high=3) for name in FEATURES],
            labels=list(LABELS),
            variants=[Variant(name=name, file=f) for name, f in file.items()],
            profiles={PROFILE: ["int8-u8s8-pc", "fp32"], "generic": ["fp32"]},
            reference=self.file("reference.json", msgspec.json.encode(references)),
            golden=self.file("golden.npz", golden.to_bytes()),
            opset=20,
            ort=">=1.31",
            created_s=NOW,
            dataset="stamps@1",
            dataset_sha256="0" * 64,
        )
        return msgspec.structs.replace(made, **changes)

    def urls(self) -> dict[str, str]:
        return {key: f"https://cloud/{key}" for key in (*self.blobs, *self.deltas)}

    def offer_deltas(self) -> None:
        """Offer a delta between each two blobs."""
        for old, a in self.blobs.items():
            for new, b in self.blobs.items():
                self.deltas[f"{old}>{new}"] = delta.make(a, b)

    def get(self, url: str) -> bytes:
        if not self.reachable:
            raise LinkError("no route")
        try:
            key = url.rpartition("/")[2]
            return self.blobs[key] if key in self.blobs else self.deltas[key]
        except KeyError:
            raise AbsentError("artifact", url) from None

    def file(self, name: str, data: bytes) -> File:
        file = bundle.describe(name, data)
        self.blobs[file.sha256] = data
        return file


def softmax(rows: np.ndarray, version: int) -> np.ndarray:
    """Output of the model of `version`: a fixed linear map, then softmax; float64 (n, 3)."""
    weights = np.random.default_rng(1000 + version).normal(size=(rows.shape[1], len(LABELS)))
    e = np.exp(rows @ weights)
    return e / e.sum(1, keepdims=True)


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Downloads(HttpsDownloads):
    """HttpsDownloads with real stages and the network of a Cloud.

    sent   bytes downloaded
    """

    def __init__(self, cloud: Cloud, slots: DiskSlots, power: Power) -> None:
        super().__init__(
            ca=Path("none"),
            artifacts="https://cloud",
            stage=lambda model: slots.path(model, "stage"),
            max_kbps=0.0,
            monotonic=lambda: 0.0,
            sleep=lambda _: None,
        )
        self._cloud, self._power = cloud, power
        self.sent = 0

    def file(self, *args: Any) -> int:
        got = super().file(*args)
        self.sent += got
        return got

    def delta(self, *args: Any) -> int:
        got = super().delta(*args)
        self.sent += got
        return got

    @contextlib.contextmanager
    def _open(self, url: str, start: int, end: int = 0) -> Iterator[Any]:
        yield Response(self._bytes(url), start, self._power, end)

    def _bytes(self, url: str) -> bytes:
        if "/metadata/" not in url:
            return self._cloud.get(url)
        if not self._cloud.reachable:
            raise LinkError("no route")
        return self._cloud.repository.fetch(url.rpartition("/")[2])


class Loader:
    """Loads a slot's model: the linear map of its version."""

    runtime = Runtime("1.32.0", range(29).__contains__)

    def __init__(self, slots: DiskSlots, device: "Device") -> None:
        self._slots, self._device = slots, device

    def load(self, slot: Slot, used: Profile) -> Engine:
        folder = self._slots.path(slot.model, slot.slot)
        manifest = bundle.read_manifest(folder)
        if manifest.version in self._device.unloadable:
            raise ModelError("no such operator", "export it again")
        return Engine(
            slot=slot,
            manifest=manifest,
            references=bundle.read_references(folder, manifest),
            session=Session(manifest.version, self._device),
            slow_s=used.budget.p99_ms / 1e3,
        )

    def settle(self, slot: Slot, used: Profile) -> None:
        pass

    def trim(self) -> None:
        pass


class Session:
    def __init__(self, version: int, device: "Device") -> None:
        self._version, self._device = version, device

    def run(self, rows: np.ndarray) -> np.ndarray:
        if self._version in self._device.failing:
            raise ModelError("runtime failed", "roll back")
        if self._version in self._device.gives_nan:
            return np.full((len(rows), len(LABELS)), np.nan, np.float32)
        return softmax(rows, self._version).astype(np.float32)


class Prober:
    """Measurements that pass, except those that `Device.measures` changes for a variant."""

    def __init__(self, device: "Device") -> None:
        self._device = device

    def prepare(self, used: Profile) -> None:
        self._device.probes_prepared += not self._device.probe_waits
        self._device.probe_waits = True

    def dismiss(self) -> None:
        self._device.probe_waits = False

    def probe(
        self, model: str, slot: str, used: Profile, recent: Any, beside: Any, stop: Any
    ) -> list[Measured]:
        self._device.probes_waiting.append(self._device.probe_waits)
        self._device.probe_waits = False
        good = Measured(
            variant="",
            worst_error=1e-6,
            labels_differ=0,
            golden_rows=8,
            p50_ms=0.04,
            p99_ms=0.09,
            rss_mb=60.0,
        )
        manifest = bundle.read_manifest(self._device.slots.path(model, slot))
        return [
            msgspec.structs.replace(good, variant=name, **self._device.measures.get(name, {}))
            for name in manifest.profiles[used.name]
        ]


class Link:
    """Broker connection that records published messages, and acks them while `acks`."""

    def __init__(self, device: "Device") -> None:
        self._device = device

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        device = self._device
        if not device.online:
            raise LinkError("no broker")
        message = wire.decode_up(topics.parse_up(topic).kind, payload)
        device.received.append(message)
        if message.seq and device.acks:
            ack = wire.Ack(boot=message.boot, seqs=[message.seq])
            device.deliver("ack", wire.encode(ack))


class Device:
    """A device in a folder. `start` after a power cut rebuilds it from its disk.

    measures              variant -> what its probe measures otherwise
    headroom_mb           memory that one more process may use
    unloadable, failing, gives_nan   versions that do not load, fail every run, or return NaN
    probe_waits           whether a prepared probe process waits
    probes_prepared       number of probe processes started ahead of their probe
    probes_waiting        for each probe, whether a prepared process waited for it
    """

    def __init__(self, folder: Path, cloud: Cloud, ring: str = "stable", **settings: Any) -> None:
        self.folder, self.cloud, self.ring = folder, cloud, ring
        self.settings = UpdateSettings(**{"observe_s": 20.0, **settings})
        self.clock, self.power = Clock(), Power()
        self.online = self.acks = True
        self.received: list[Any] = []
        self.measures: dict[str, dict[str, float]] = {}
        self.headroom_mb = math.inf
        self.unloadable: set[int] = set()
        self.failing: set[int] = set()
        self.gives_nan: set[int] = set()
        self.probe_waits, self.probes_prepared, self.probes_waiting = False, 0, list[bool]()
        self.requests_per_tick = 3
        self.limit_bytes = 1 << 20
        self.version = 0
        self.start()

    def start(self, power: Power | None = None) -> None:
        """Power on."""
        self.power = power or Power()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.slots = DiskSlots(self.folder / "models")
        self.downloads = Downloads(self.cloud, self.slots, self.power)
        self.journal = SqliteJournal(self.folder / "journal.db")
        self.outbox = SqliteOutbox(
            self.folder / "outbox.db",
            limit_bytes=self.limit_bytes,
            boot_name=lambda: f"{random.getrandbits(64):016x}",
        )
        host = HostPorts(
            wall=self.clock, monotonic=self.clock, timer=lambda: 0.0, random=random.Random(7),
            spawn=lambda job: job(), lock=threading.Lock, health=Health,
        )  # fmt: skip
        self.agent = Agent(
            Identity(device="cam-1", site="north", ring=self.ring, profile=profile(PROFILE)),
            host,
            updates=self._update_ports(),
            reporter=self._reporter_ports(),
            director_root=self.cloud.repository.director_root,
            settings=self.settings,
            window_s=10.0,
        )
        self.agent.start()
        if self.online:
            self.connect()

    def stop(self) -> None:
        """End the process: close its files as the kernel would."""
        self.journal.close()
        self.outbox.close()

    def restart(self, power: Power | None = None) -> None:
        self.stop()
        self.start(power)

    def connect(self, up: bool = True) -> None:
        self.online = up
        if up:
            self.agent.reporter.will()
        self.agent.on_connection(up)

    def deliver(self, kind: str, payload: bytes) -> None:
        self.agent.on_message(topics.down("cam-1", kind), payload)

    def assign(
        self,
        *orders: Order,
        version: int = 0,
        urls: dict[str, str] | None = None,
        named: dict[str, int] | None = None,
    ) -> bytes:
        """Send the next assignment version with these orders; return its bytes.

        named   security epochs, by model
        """
        self.version = version or self.version + 1
        signed = self.cloud.repository.orders("cam-1", self.version, orders, named=named)
        found = self.cloud.urls() if urls is None else urls
        payload = wire.encode(wire.Assignment(signed=signed, urls=found))
        self.deliver("assignment", payload)
        return payload

    def run(self, seconds: float = 60.0) -> None:
        """Advance time, with inference requests every second."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            for _ in range(50):
                if self.agent.tick() > 0:
                    break
            for _ in range(self.requests_per_tick):
                self.infer()
            self.clock.now += 1.0

    def infer(self) -> np.ndarray | None:
        """Send one request; None when no release is served."""
        rows = np.random.default_rng(int(self.clock.now)).normal(size=(1, 2)).astype(np.float32)
        serving = self.agent.serving.get(MODEL)
        if serving is None or serving.engine is None:
            return None
        try:
            return serving.infer(rows)
        except (ModelError, InputError):
            return None

    def serves(self) -> str:
        """The release in service, "" for none; its files must match the signed hashes."""
        serving = self.agent.serving.get(MODEL)
        if serving is None or serving.engine is None:
            return ""
        self.slots.verify(serving.engine.slot, PROFILE)
        return serving.engine.manifest.release

    @property
    def record(self) -> Any:
        return self.journal.records()[MODEL]

    @property
    def state(self) -> str:
        return self.record.state.name

    def updates(self) -> list[wire.UpdateEvent]:
        """Update events, each (boot, seq) once, as in the controller's database."""
        return [m for m in self._distinct() if isinstance(m, wire.UpdateEvent)]

    def windows(self) -> list[wire.WindowReport]:
        return [m for m in self._distinct() if isinstance(m, wire.WindowReport)]

    def faults(self) -> list[wire.FaultEvent]:
        return [m for m in self._distinct() if isinstance(m, wire.FaultEvent)]

    def states(self, rollout: str) -> list[str]:
        return [m.state for m in self.updates() if m.rollout == rollout]

    def _distinct(self) -> list[Any]:
        numbered = {(m.boot, m.seq): m for m in self.received if m.seq}
        return list(numbered.values())

    def _reporter_ports(self) -> ReporterPorts:
        supply = self.power.supply
        outbox = supply(self.outbox, "add", "after", "ack")
        return ReporterPorts(supply(Link(self), "publish"), outbox, random.Random(7))

    def _update_ports(self) -> UpdatePorts:
        cloud, supply = self.cloud.repository, self.power.supply
        images = ImageRepository(self.folder / "metadata", cloud.root, self.downloads.metadata)
        slots = (
            "put_manifest", "put_proof", "reuse", "keep", "verify_stage", "install", "point",
            "remove", "clean",
        )  # fmt: skip
        return UpdatePorts(
            journal=supply(self.journal, "save", "save_floors", "save_assignment"),
            slots=supply(self.slots, *slots),
            downloads=supply(self.downloads, "small", "file", "delta"),
            images=supply(images, "refresh", "check"),
            loader=supply(Loader(self.slots, self), "load"),
            prober=supply(Prober(self), "probe"),
            spawn=lambda job: job(),
            random=random.Random(7),
            sessions=SessionReportReader(self.folder / "spool"),
            peers=PeerDirectory(),
            headroom=lambda: self.headroom_mb,
        )


class Model:
    """A session without onnxruntime: the linear map of a version."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.fails = False

    def run(self, rows: np.ndarray) -> np.ndarray:
        if self.fails:
            raise ModelError("broken")
        return softmax(rows, self.version).astype(np.float32)


def engine(version: int, **fields: Any) -> Engine:
    """An Engine with a release in memory; fields change its manifest."""
    manifest = Cloud().manifest(version, 1, MODEL, b"", **fields)
    rows = np.random.default_rng(0).normal(size=(99, len(manifest.features)))
    references = References(
        inputs=reference_of({f.name: rows[:, i] for i, f in enumerate(manifest.features)}),
        outputs=reference_of({"score": np.linspace(0, 1, 50), "prediction": np.arange(3.0)}),
    )
    slot = Slot(
        slot="a",
        model=MODEL,
        release=manifest.release,
        path="release/x",
        sha256="",
        variant="fp32",
        model_sha256="",
        counter=1,
    )
    return Engine(
        slot=slot, manifest=manifest, references=references, session=Model(version), slow_s=0.02
    )
