"""Devices that train on digits, without a broker: real client, journal, rows, sandbox, trainer,
trust and certificates. Messages are encoded and decoded as on the wire. The test is the
controller.

>>> device = RoundDevice(FakeController(folder), "cam-1", rows)        # doctest: +SKIP
>>> device.receive(controller.invite(1)); device.said(messages.Join)               # doctest: +SKIP
"""

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from controllers import repository_fetch
from digits import Rows, forward
from shoal import wire
from shoal.agent.federated.client import Callbacks, RoundClient
from shoal.agent.federated.io.credentials import credentials_of
from shoal.agent.federated.io.row_buffer import BUFFER, Buffer, Limits
from shoal.agent.federated.io.sandbox import DiskSandbox, rounds_folder, task_folder
from shoal.agent.federated.io.trainer_process import SubprocessTrainer, run_job, sandboxed
from shoal.agent.federated.ports import FederatedPorts
from shoal.agent.federated.trainer import TrainingJob, TrainingResult
from shoal.agent.host.clock import DeviceClock
from shoal.agent.host.faults import Fault
from shoal.agent.host.ports import Load
from shoal.agent.host.round_limits import Limits as RoundLimits
from shoal.agent.identity.io.enrol import key_pem, make_csr
from shoal.agent.installed.io.journal import SqliteJournal
from shoal.controller.fleet.io.ca import Authority
from shoal.controller.releases.io.signing import Signer
from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import loss_graph, prepare, step_graph
from shoal.errors import BundleError, LinkError
from shoal.federated import messages
from shoal.federated.chunks import Assembly
from shoal.federated.config import Config, Content
from shoal.federated.messages import Contribution
from shoal.federated.plan import Learning, Plan
from shoal.manifest import File
from shoal.params import F32
from shoal.signers import Seen
from shoal.trust import ImageRepository
from supply import Power

MODEL, TASK = "digits", "digits-at-home"
FEATURES, LABELS = tuple(f"p{i}" for i in range(64)), tuple(map(str, range(10)))
NOW = 1_800_000_000.0
T = TypeVar("T", bound=messages.RoundMessage)


class FakeController:
    """The controller's side: keys, certificates, blobs and messages."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.blobs = folder / "school", dict[str, bytes]()
        self.folder.mkdir(parents=True)
        self.now = NOW
        self.signer = Signer.create(self.folder, lambda: self.now)
        self.authority = Authority.create(self.folder / "pki", names=["localhost"], now=NOW)
        self.prepared = prepare(forward(0), Loss("cross-entropy"))
        self.graph = self.put(step_graph(self.prepared).SerializeToString())
        self.loss = self.put(loss_graph(self.prepared).SerializeToString())
        self.theta = self.prepared.theta

    def put(self, data: bytes) -> Content:
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs[sha256] = data
        return Content(sha256=sha256, length=len(data))

    def config(self, number: int = 1, *, attempt: bytes = b"", **changes: Any) -> Config:
        """Round `number`; changes go to the config where it has such a field, else to the plan."""
        own = {name: changes.pop(name) for name in Config.__struct_fields__ if name in changes}
        plan = {
            "task": TASK, "round": number, "attempt": attempt or attempt_of(number),
            "strategy": "fedavg", "least": 3, "deadline_s": self.now + 600,
            "learning": Learning(lr=0.1, epochs=2, batch=10), **changes,
        }  # fmt: skip
        whole = {
            "model": MODEL, "graph": self.graph, "theta": self.put(self.theta.tobytes()),
            "labels": LABELS, "features": FEATURES, **own,
        }  # fmt: skip
        return Config(plan=Plan(**plan), **whole)

    def urls(self) -> dict[str, str]:
        return {sha256: f"https://artifacts/{sha256}" for sha256 in self.blobs}

    def invite(self, number: int = 1, **changes: Any) -> wire.RoundCall:
        config = self.config(number, **changes)
        signed = self.signer.sign_round(config, self.now)
        said = messages.Invite(signed=signed, urls=self.urls())
        return wire.RoundCall(attempt=config.plan.attempt, said=said)

    def measure(self, number: int = 1, **changes: Any) -> wire.RoundCall:
        config = self.config(number, purpose="evaluate", graph=self.loss, **changes)
        signed = self.signer.sign_round(config, self.now)
        said = messages.Measure(signed=signed, urls=self.urls())
        return wire.RoundCall(attempt=config.plan.attempt, said=said)


def attempt_of(number: int) -> bytes:
    return number.to_bytes(16)


class RoundDevice:
    """One device. `start` after a power cut rebuilds it from the disk.

    trainer   "inside": in this process, for speed; "process": as on a device
    more      further fields of FederatedPorts
    """

    def __init__(
        self, controller: FakeController, name: str, home: Rows | None = None, *,
        trainer: str = "inside",
        quiet_hz: float = 20.0, more: dict[str, Any] | None = None, **limits: Any,
    ) -> None:  # fmt: skip
        self.more = more or {}
        self.controller, self.name, self.folder = controller, name, controller.folder.parent / name
        self.limits, self.quiet_hz = RoundLimits(**{"rows": 2, **limits}), quiet_hz
        self.trainer, self.connected, self.reachable = trainer, True, True
        self.sent, self.faults = list[wire.RoundAnswer](), list[Fault]()
        self.serving: dict[str, Any] = {}
        self.load, self.mains = Load(), True
        self._enrol()
        if home is not None:
            self.add_rows(home)
        self.start()

    def add_rows(self, rows: Rows) -> None:
        buffer = self._buffer()
        buffer.add(MODEL, FEATURES, rows.x, [str(y) for y in rows.y])
        buffer.flush()
        buffer.close()

    def start(self, power: Power | None = None) -> None:
        """Power on."""
        self.power = power = power or Power()
        supply, here = power.supply, self.folder / "learning"
        self.journal, self.rows = SqliteJournal(self.folder / "journal.db"), self._buffer()
        self.sandbox = DiskSandbox(here, Blobs(self, here))  # type: ignore[arg-type]
        self._posted: list[Any] = []
        images = ImageRepository(
            here / "metadata", self.controller.signer.root, repository_fetch(self.controller.folder)
        )
        ports = FederatedPorts(
            journal=supply(self.journal, "save_participation"), load=lambda: self.load,
            spawn=self._spawn, random=random.Random(1), monotonic=lambda: self.controller.now,
            rows=self.rows, images=supply(images, "refresh"),
            sandbox=supply(self.sandbox, "fetch", "end", "clean"),
            trainer=supply(self._trainer(here), "run"),
            credentials=credentials_of(self.folder, lambda: self.controller.now),
            entropy=random.randbytes, mains=lambda: self.mains, limits=self.limits,
            quiet_hz=self.quiet_hz, **({"hand_over": out_of_reach} | self.more),
        )  # fmt: skip
        callbacks = Callbacks(
            answer=self._say, post=self._posted.append, fault=self.faults.append,
            serving=self.serving, throttled=lambda: False, seen=Seen,
        )  # fmt: skip
        clock = DeviceClock(wall=lambda: self.controller.now, monotonic=lambda: self.controller.now)
        self.learning = RoundClient(self.name, ports, clock, callbacks)
        self.learning.start()

    def stop(self) -> None:
        """End the process."""
        self.journal.close()
        self.rows.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def receive(self, call: wire.RoundCall) -> list[messages.DeviceMessage]:
        """Replies to a message, once all resulting jobs are done."""
        before = len(self.sent)
        read = wire.decode_down("round", wire.encode(call))
        assert isinstance(read, wire.RoundCall)
        self.learning.on_call(read)
        self.settle()
        return [answer.said for answer in self.sent[before:]]

    def call(self, number: int, said: messages.ControllerMessage) -> list[messages.DeviceMessage]:
        return self.receive(wire.RoundCall(attempt=attempt_of(number), said=said))

    def settle(self) -> None:
        """Do everything that is due now."""
        while True:
            while self._posted:
                self._posted.pop(0)()
            if self.learning.tick() > 1.0 and not self._posted:
                return

    def said(self, kind: type[T]) -> list[T]:
        return [answer.said for answer in self.sent if isinstance(answer.said, kind)]

    def contribution(self) -> Contribution:
        """The contribution, reassembled from its pieces."""
        import msgspec

        whole = Assembly(most=1 << 24)
        for piece in self.said(messages.Piece):
            whole.take(piece.chunk)
        return msgspec.msgpack.decode(whole.payload(), type=Contribution)

    @property
    def state(self) -> str:
        part = self.journal.participation().part
        return part.state if part else ""

    def path(self, number: int) -> Path:
        return rounds_folder(self.folder / "learning", attempt_of(number).hex())

    def kept(self) -> Path:
        return task_folder(self.folder / "learning", TASK)

    def _say(self, attempt: bytes, said: messages.DeviceMessage) -> bool:
        self.power.point("before say")
        if not self.connected:
            return False
        answer = wire.RoundAnswer(
            device=self.name,
            boot="b",
            seq=0,
            sent_s=self.controller.now,
            attempt=attempt,
            said=said,
        )
        read = wire.decode_up("round", wire.encode(answer))
        assert isinstance(read, wire.RoundAnswer)
        self.sent.append(read)
        self.power.point("after say")
        return True

    def _spawn(self, job: Callable[[], None]) -> None:
        job()

    def _buffer(self) -> Buffer:
        here = self.folder / "learning"
        here.mkdir(parents=True, exist_ok=True)
        return Buffer(here / BUFFER, Limits(2**24, 10_000, 0), lambda: self.controller.now)

    def _trainer(self, here: Path) -> Any:
        if self.trainer == "process":
            return SubprocessTrainer(here, dict(os.environ), memory_mb=256, cpu_s=60)
        return Inside(here)

    def _enrol(self) -> None:
        self.folder.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        (self.folder / "device.key").write_bytes(key_pem(key))
        issued = self.controller.authority.issue_device(make_csr(key, self.name), self.name, NOW)
        (self.folder / "device.crt").write_text(issued.certificate)
        (self.folder / "ca.pem").write_text(self.controller.authority.bundle)


class Inside:
    """The trainer, without a process."""

    def __init__(self, here: Path) -> None:
        self._here = here

    def run(
        self, attempt: bytes, work: TrainingJob, hold: Callable[[], str], stop: Callable[[], bool]
    ) -> TrainingResult:
        if stop():
            raise LinkError("training was cancelled")
        return run_job(sandboxed(self._here, attempt, work))


def out_of_reach(route: messages.GatewayRoute, attempt: bytes, data: bytes) -> bool:
    """No gateway can be reached."""
    raise LinkError(f"{route.gateway} is out of reach")


class Blobs:
    """Downloads by hash into an attempt's folder."""

    def __init__(self, device: RoundDevice, here: Path) -> None:
        self._device, self._here = device, here

    def file(self, url: str, attempt: str, file: File, stop: Callable[[], bool]) -> int:
        if not self._device.reachable:
            raise LinkError("the artifact server is away")
        data = self._device.controller.blobs[url.rpartition("/")[2]]
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise BundleError(f"{file.name} is not what was signed")
        path = rounds_folder(self._here, attempt) / file.name
        path.with_suffix(".part").write_bytes(data)
        path.with_suffix(".part").replace(path)
        return len(data)


def some_rows(count: int, seed: int = 0) -> Rows:
    """Digits of one device."""
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    chosen = np.random.default_rng(seed).permutation(len(digits))[:count]
    return Rows((images[chosen] / 16).astype(np.float32), digits[chosen].astype(np.int64))


def norm(values: F32) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))
