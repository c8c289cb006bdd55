"""A whole fleet in memory, on a virtual clock: real controller services on a real database, the
real engine, the real agents with their real journals, outboxes, slots and trust, real wire bytes
on real topics. Only the broker, HTTP, onnxruntime and time are stand-ins.

>>> fleet = Fleet(folder)                                            # doctest: +SKIP
>>> fleet.station("cam-1", site="north", ring="canary")              # doctest: +SKIP
>>> fleet.publish(fleet.release()); fleet.run(30)                    # doctest: +SKIP
"""

import contextlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import insert, select

from fakes import (
    Broker,
    Capabilities,
    Clock,
    Idle,
    JsonModels,
    MemoryLink,
    NoSessionReports,
    Silent,
)
from shoal import bundle, topics, wire
from shoal import manifest as manifests
from shoal.agent.host.ports import HostPorts
from shoal.agent.installed.io.journal import SqliteJournal
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.loop import Agent
from shoal.agent.peers.policy import PeerDirectory
from shoal.agent.telemetry.io.outbox_store import SqliteOutbox
from shoal.agent.telemetry.reporter import Identity, ReporterPorts
from shoal.agent.update.ports import UpdatePorts, UpdateSettings
from shoal.controller.engine_jobs import build_engine
from shoal.controller.host.context import Context
from shoal.controller.host.settings import Drift, Settings
from shoal.controller.host.settings import Fleet as Telemetry
from shoal.controller.host.windows import StoredWindow
from shoal.controller.monitoring import drift_history
from shoal.controller.releases import download_urls, models, releases
from shoal.controller.releases.io.blobs import Blobs
from shoal.controller.releases.io.signing import Signer
from shoal.controller.rollouts import device_rows, rollouts
from shoal.controller.rollouts.records import Rollout, RolloutPlan, Selector, StagePlan
from shoal.controller.store import rollout_tables, tables, used_versions
from shoal.controller.store.drift_tables import drift_point
from shoal.errors import AbsentError
from shoal.manifest import Feature, Manifest, Variant
from shoal.profile import load_profiles
from shoal.sketch import References, reference_of
from shoal.trust import ImageRepository
from shoal.wire import Health
from stores import new_store

MODEL = "lot-codes"
FEATURES = ("contrast", "blur", "edge")
CANARY_THEN_REST = [
    StagePlan(name="canary", select=Selector(ring="canary")),
    StagePlan(name="rest"),
]


class Station:
    """One device with its agent; what it has on disk survives `crash` and `start`."""

    def __init__(self, fleet: "Fleet", name: str, site: str, ring: str, profile: str) -> None:
        self.fleet, self.name, self.site = fleet, name, site
        self._ring, self._profile = ring, profile
        self.folder = fleet.folder / "devices" / name
        (self.folder / "models").mkdir(parents=True)
        self.random = np.random.default_rng(sum(name.encode()))
        self.shift = np.zeros(len(FEATURES))
        self.spread = np.ones(len(FEATURES))
        self.rows, self.clock_off_s = 30, 0.0
        self.health = Health(rss_mb=50)
        self.facts: dict[str, Any] = {"removes": True}
        self.agent: Agent | None = None
        self.link: MemoryLink

    def start(self) -> None:
        """Power on, and connect."""
        slots, dice = DiskSlots(self.folder / "models"), random.Random(self.name)
        self.link = MemoryLink(self.fleet.broker, [topics.all_down(self.name), topics.BUDGET])
        downloads = Capabilities(self.fleet, lambda model: slots.path(model, "stage"))
        models_on_disk = JsonModels(slots, self.name)
        self._journal = SqliteJournal(self.folder / "journal.db")
        self._outbox = SqliteOutbox(
            self.folder / "outbox.db",
            limit_bytes=2**22,
            boot_name=lambda: f"{dice.getrandbits(64):x}",
        )
        updates = UpdatePorts(
            journal=self._journal, slots=slots, downloads=downloads,
            images=ImageRepository(
                self.folder / "metadata", self.fleet.ctx.signer.root, self.fleet.metadata
            ),
            loader=models_on_disk, prober=models_on_disk, spawn=lambda job: job(), random=dice,
            sessions=NoSessionReports(), peers=PeerDirectory(),
        )  # fmt: skip
        host = HostPorts(
            health=lambda: self.health, spawn=lambda job: job(), lock=threading.Lock,
            wall=lambda: self.fleet.clock() + self.clock_off_s,
            monotonic=self.fleet.clock, timer=self.fleet.clock, random=dice,
        )  # fmt: skip
        identity = Identity(
            self.name, self.site, self._ring, load_profiles()[self._profile], version="0.1.0"
        )
        self.agent = Agent(
            identity, host, updates=updates,
            reporter=ReporterPorts(self.link, self._outbox, dice),
            director_root=self.fleet.ctx.signer.director_root,
            settings=UpdateSettings(observe_s=self.fleet.observe_s), window_s=self.fleet.window_s,
            facts=lambda: self.facts,
        )  # fmt: skip
        agent = self.agent
        agent.start()
        self.link.start(agent.on_message, agent.on_connection, agent.reporter.will)

    def crash(self) -> None:
        """Power off: no message, no clean disconnect."""
        self.agent = None
        self.link._on_connection = lambda up: None
        self.link.stop(rudely=True)
        self._journal.close()
        self._outbox.close()

    def step(self) -> None:
        """Send some rows through the model, then run one tick of the agent."""
        if self.agent is None:
            return
        serving = self.agent.serving.get(MODEL)
        if serving is not None and serving.engine is not None and self.rows:
            noise = self.random.standard_normal((self.rows, len(FEATURES)))
            rows = (noise * self.spread + self.shift).astype(np.float32)
            truth = (rows.sum(1) > 0).astype(np.float32)
            serving.infer(rows, truth)
        self.agent.tick()

    @property
    def serves(self) -> str:
        """The release in service, "" for none."""
        serving = self.agent.serving.get(MODEL) if self.agent else None
        return serving.engine.slot.release if serving and serving.engine else ""


class Fleet:
    """Controller, broker and stations.

    window_s, observe_s   of telemetry and of the agents' observation, in virtual seconds
    """

    def __init__(
        self,
        folder: Path,
        *,
        window_s: float = 10.0,
        observe_s: float = 4.0,
        baseline_windows: int = 12,
    ) -> None:
        self.folder, self.clock, self.broker = folder, Clock(), Broker()
        self.window_s, self.observe_s = window_s, observe_s
        self.stations: dict[str, Station] = {}
        self.artifacts_down = False
        self.key = b"k" * download_urls.KEY_BYTES
        controller = folder / "controller"
        (controller / "keys").mkdir(parents=True)
        (controller / "keys" / "capability.key").write_bytes(self.key)
        self.ctx = Context(
            folder=controller,
            settings=Settings(
                fleet=Telemetry(window_s=window_s, jitter_s=0.0, offline_s=300.0),
                drift=Drift(baseline_windows=baseline_windows, cycle="none"),
            ),
            store=new_store(controller),
            blobs=Blobs(controller / "blobs"),
            signer=Signer.create(controller, self.clock),
            clock=self.clock,
            random=random.Random(7),
        )
        self._restart_engine()

    def _restart_engine(self) -> None:
        self.engine = build_engine(
            self.ctx, threading.Event(), Idle(), link=self._link, monotonic=self.clock
        )
        self.engine.connect()

    def _link(self, **given: Any) -> MemoryLink:
        return MemoryLink(self.broker, given["subscriptions"])

    @contextlib.contextmanager
    def controller_down(self) -> Iterator[None]:
        """Stop the controller's engine; the broker queues QoS 1 messages until it restarts."""
        queued: list[tuple[str, bytes]] = []
        self.engine._link.stop()
        self.engine._link._on_connection = lambda up: None
        subscriber = MemoryLink(self.broker, [topics.ALL_UP])
        self.engine = Silent()
        subscriber.start(lambda *m: queued.append(m), lambda up: None)
        yield
        subscriber.stop()
        self._restart_engine()
        for topic, payload in queued:
            self.engine._on_message(topic, payload)

    def metadata(self, name: str) -> bytes:
        """TUF metadata by file name, as the artifact server returns it."""
        path = self.ctx.signer.metadata_folder / name
        if not path.is_file():
            raise AbsentError("metadata", name)
        return path.read_bytes()

    def station(
        self, name: str, *, site: str = "north", ring: str = "stable", profile: str = "generic",
        start: bool = True,
    ) -> Station:  # fmt: skip
        """Enrol a device (its row, without certificates) and power it on."""
        row = {
            "name": name, "site": site, "labels": {}, "ring": ring, "profile": profile,
            "state": "enrolled", "enrolled_at": self.clock(), "releases": {}, "variants": {},
            "facts": {},
        }  # fmt: skip
        with self.ctx.store.write() as db:
            db.execute(insert(tables.device).values(**row))
        made = self.stations[name] = Station(self, name, site, ring, profile)
        if start:
            made.start()
        return made

    # --- releases -----------------------------------------------------------------------------

    def release(
        self,
        *,
        wrong_on: Sequence[str] = (),
        slow_on: Sequence[str] = (),
        refused: dict[str, str] | None = None,
        sign: str = "release",
        dataset: str = "plates@1",
        weights: Sequence[float] = (1, 1, 1),
    ) -> str:
        """A release of the model, in the database and signed (or not: sign ""); its name."""
        with self.ctx.store.write() as db:
            models.ensure_model(db, self.ctx, actor="ana", name=MODEL)
            known = db.scalars(select(tables.release.c.version))
            version = max([*known, used_versions.newest(db, "model", MODEL)]) + 1
        text = {"weights": list(weights), "wrong_on": list(wrong_on), "slow_on": list(slow_on)}
        text["version"] = version
        data, references = self._pack(version, json.dumps(text).encode(), refused or {}, dataset)
        report = {
            "task": "classification", "estimator": "mlp", "metrics": {}, "by_site": {},
            "variants": [], "verdicts": [], "signatures": [], "labels": ["bad", "good"],
            "features": list(FEATURES), "params": {},
        }  # fmt: skip
        with self.ctx.store.write() as db:
            db.execute(
                insert(tables.release).values(
                    model=MODEL, version=version, state="validated", dataset=dataset,
                    created_at=self.clock(), created_by="ana", report=report, manifest=data,
                    references=references, trigger="manual",
                )
            )  # fmt: skip
        ref = f"{MODEL}@{version}"
        if sign == "candidate":
            releases.sign_candidate(self.ctx, ref)
        elif sign:
            releases.publish(self.ctx, actor="ana", ref=ref)
        return ref

    def _pack(
        self, version: int, model: bytes, refused: dict[str, str], dataset: str
    ) -> tuple[bytes, bytes]:
        rng = np.random.default_rng(1)
        rows = rng.standard_normal((20_000, len(FEATURES)))
        score = 1 / (1 + np.exp(-rows.sum(1)))
        outputs = {"score": score, "prediction": (score >= 0.5).astype(float)}
        references = msgspec.json.encode(
            References(
                inputs=reference_of(dict(zip(FEATURES, rows.T, strict=True))),
                outputs=reference_of(outputs, {"prediction": [-0.5, 0.5, 1.5]}),
            )
        )
        files = {"fp32.onnx": model, "reference.json": references, "golden.npz": b"golden"}
        for data in files.values():
            self.ctx.blobs.put_bytes(data)
        described = {name: bundle.describe(name, data) for name, data in files.items()}
        supported = [
            n for n, p in load_profiles().items() if not p.unsupported and n not in refused
        ]
        manifest = Manifest(
            model=MODEL, version=version, release_counter=1, task="classification",
            input="input", output="output",
            features=[Feature(name=n, low=-4, high=4) for n in FEATURES], labels=["bad", "good"],
            variants=[Variant(name="fp32", file=described["fp32.onnx"])],
            profiles={name: ["fp32"] for name in supported}, refused=refused,
            reference=described["reference.json"], golden=described["golden.npz"], opset=17,
            ort=">=1.31", created_s=self.clock(), dataset=dataset, dataset_sha256="0" * 64,
        )  # fmt: skip
        data = manifests.encode(manifest)
        self.ctx.blobs.put_bytes(data)
        return data, references

    # --- time ---------------------------------------------------------------------------------

    def roll_out(
        self, release: str, stages: Sequence[StagePlan] = CANARY_THEN_REST, **plan: Any
    ) -> Rollout:
        """Start a rollout."""
        plan = {"deadline_s": 600.0, **plan}
        whole = RolloutPlan(release=release, stages=list(stages), **plan)
        return rollouts.start(self.ctx, actor="ana", plan=whole)

    def run(
        self, seconds: float, until: Callable[[], bool] | None = None, step: float = 1.0
    ) -> None:
        """Advance virtual time until `until` holds; fail if it does not within `seconds`."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += step
            self.settle()
            if until is not None and until():
                return
        assert until is None or until(), f"not within {seconds} s"

    def settle(self) -> None:
        """Run devices, broker and engine until no message is left; time stands still."""
        for one in self.stations.values():
            one.step()
        for _ in range(50):
            moved = self.broker.pump()
            while self.engine.drain():
                moved += 1
            self.engine.work()
            for one in self.stations.values():
                if one.agent is not None:
                    one.agent.tick()
            if not moved:
                return

    def rollout(self, ident: str) -> Rollout:
        """The rollout; its counts, kept event by event, must be those of its devices."""
        with self.ctx.store.read() as db:
            kept = {
                (stage, state): count.devices
                for stage, states in device_rows.counts(db, ident).items()
                for state, count in states.items()
            }
            mine = rollout_tables.rollout_device.c
            query = select(mine.stage, mine.state).where(mine.rollout == ident)
            assert kept == Counter((row.stage, row.state) for row in db.execute(query))
        return rollouts.get_rollout(self.ctx, ident)

    def states(self, ident: str) -> dict[str, str]:
        """Device -> state in a rollout."""
        found, _ = rollouts.rollout_devices(self.ctx, ident)
        return {one.device: one.state for one in found}

    def serving(self) -> dict[str, str]:
        """Device -> release in service, read from the devices."""
        return {name: one.serves for name, one in self.stations.items()}

    def publish_as(self, device: str, message: wire.Upward) -> None:
        """Publish a message of the device."""
        topic = topics.up(device, wire.UP_KIND[type(message)])
        self.broker.publish(topic, wire.encode(message))

    def windows(self, device: str = "") -> list[StoredWindow]:
        """Stored windows of a device, or of all, in order of arrival."""
        return self.ctx.store.windows.of(device=device, limit=1_000_000)

    def watched(self) -> set[tuple[str, str]]:
        """Devices and sites whose drift may alarm: they have seen their first windows."""
        return {
            (row.scope, row.subject)
            for row in self.rows_of(drift_point)
            if row.windows > drift_history.needed_windows(self.ctx, row.scope)
        }

    def rows_of(self, table: Any) -> list[Any]:
        """Everything in a table."""
        with self.ctx.store.read() as db:
            return list(db.execute(select(table)))
