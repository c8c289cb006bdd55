"""Real agents that learn together: a whole controller, real processes, rows that nobody else has.

>>> cohort = Cohort(served.start().ready())                            # doctest: +SKIP
>>> cohort.enrol("press-1", site="north"); cohort.start()              # doctest: +SKIP
>>> cohort.release(table, "digits", label="digit")                     # doctest: +SKIP
>>> cohort.teach("press-1", "digits", features, x, labels)             # doctest: +SKIP
>>> cohort.plan(name="t", release="digits@1", ...); cohort.run("t", 5) # doctest: +SKIP
"""

import contextlib
import itertools
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime

from broker.served import Api, Served, init
from programs import nats_server
from shoal import wire
from shoal.agent.federated.io.row_buffer import BUFFER, Buffer, Limits
from shoal.agent.host.io import folder as names
from shoal.agent.host.io.facts import read_facts
from shoal.agent.identity.io.enrol import EnrolOptions, enrol
from shoal.controller.host import settings
from shoal.controller.releases.io.blobs import Blobs
from shoal.controller.training.gradient.weights import write_theta
from shoal.federated.chunks import Assembly
from shoal.federated.config import Config
from shoal.federated.messages import Contribution, Invite, Piece
from shoal.mqtt import Link
from shoal.params import F32, spec_of
from waiting import eventually

_MORE = """
[update]
observe_s = 1.0

[learning]
cohort = 2
rows = 2
celsius = 0.0
quiet_hz = 1e6
"""


class Member:
    """One device: its folder, and its agent's process while there is one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shoal.agent", "run", "--folder", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """-9: without a word."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """It does nothing meanwhile, as a machine that is suspended."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def said(self) -> str:
        """The end of its log."""
        return (self.folder / "agent.log").read_text()[-1500:]


class Cohort:
    """A controller, its devices, and an ear at the broker that hears everything.

    heard   (topic, payload) of every message in either direction
    """

    def __init__(self, served: Served) -> None:
        self.served, self.api = served, Api(served)
        self.members: dict[str, Member] = {}
        self.heard: list[tuple[str, bytes]] = []
        self._lock = threading.Lock()
        self._ear = self._listening()

    def _listening(self) -> Link:
        """A session that the broker keeps: it misses nothing while the broker is away."""
        pki = self.served.folder / "pki"
        link = Link(
            url=f"mqtts://localhost:{settings.load(self.served.folder).network.mqtt}",
            client_id="ear",
            ca=pki / "ca.pem",
            certificate=pki / "controller.crt",
            key=pki / "controller.key",
            subscriptions=["shoal/v1/#"],
            random=random.Random(0),
        )
        link.start(self._hear, lambda up: None)
        eventually(lambda: link.connected, "the ear is at the broker")
        return link

    def _hear(self, topic: str, payload: bytes) -> None:
        with self._lock:
            self.heard.append((topic, bytes(payload)))

    def end(self) -> None:
        for one in self.members.values():
            one.stop()
        self._ear.stop()

    # ------------------------------------------------------------------ devices

    def enrol(self, name: str, site: str) -> Member:
        """A device of this site, with an identity of its own; not started."""
        token = self.api.post("join-tokens", {"site": site, "uses": 1})["secret"]
        member = self.members[name] = Member(self.served.folder.parent / name)
        options = EnrolOptions(controller=self.api.url, token=token, name=name, profile="generic")
        enrol(member.folder, options, read_facts())
        path = member.folder / names.SETTINGS
        path.write_text(path.read_text() + _MORE)
        return member

    def start(self) -> None:
        for one in self.members.values():
            one.start()
        self.wait_online()

    def wait_online(self, within_s: float = 60) -> None:
        def online() -> bool:
            found = {d["name"]: d["online"] for d in self.api.get("devices?limit=500")["items"]}
            return all(found.get(name) for name in self.members)

        eventually(online, "every device is online", within_s)

    def wait_serving(self, release: str, within_s: float = 60) -> None:
        def serving() -> bool:
            told = {d["name"]: d["releases"] for d in self.api.get("devices?limit=500")["items"]}
            return all(release in told[name].values() for name in self.members)

        eventually(serving, f"every device says that it serves {release}", within_s)

    def wait_offline(self, name: str) -> None:
        eventually(lambda: not self.api.get(f"devices/{name}")["online"], f"{name} is gone", 60)

    def teach(
        self, name: str, model: str, features: Sequence[str], x: F32, labels: Sequence[str]
    ) -> None:
        """Put rows on a device's own disk."""
        folder = self.members[name].folder / names.LEARNING
        folder.mkdir(exist_ok=True, mode=0o700)
        limits = Limits(bytes=64 << 20, rows=100_000, seconds=0)
        buffer = Buffer(folder / BUFFER, limits, time.time)
        buffer.add(model, features, x, labels)
        buffer.flush()
        buffer.close()

    # ------------------------------------------------------------------ models

    def release(self, table: Path, model: str, label: str, **how: Any) -> str:
        """Train on the controller's own table, publish, and roll out to everybody; its name."""
        dataset = self.api.upload("datasets", table, {"name": f"{model}-sample", "label": label})
        asked = {"dataset": f"{dataset['name']}@{dataset['version']}", **how}
        made = self._done(self.api.post(f"models/{model}/train", asked)["id"])
        name = str(made["release"])
        self.publish(name)
        return name

    def publish(self, name: str) -> None:
        """Sign a release and roll it out to everybody."""
        refused = self.api.get(f"releases/{name}")["state"] == "refused"
        reason = {"override": "a small sample is all that there is"} if refused else {}
        self.api.post(f"releases/{name}/publish", reason)
        plan = {"release": name, "stages": [{"name": "all"}]}
        rollout = f"rollouts/{self.api.post('rollouts', plan)['id']}"
        over = ("FINISHED", "PAUSED")
        eventually(lambda: self.api.get(rollout)["state"] in over, f"rollout of {name}", 240)
        told = self.api.get(rollout)
        assert told["state"] == "FINISHED", told["reason"]
        self.wait_serving(name)  # who has not said so yet would not be invited

    def release_of(self, task: str) -> dict[str, Any]:
        """The release that a task's newest checkpoint becomes, as a candidate unless refused."""
        made = self._done(self.api.post(f"tasks/{task}/release", {"candidate": True})["id"])
        found: dict[str, Any] = self.api.get(f"releases/{made['release']}")
        return found

    def _done(self, operation: str) -> dict[str, Any]:
        path, over = f"operations/{operation}", ("succeeded", "failed")
        eventually(lambda: self.api.get(path)["state"] in over, "the operation", 120)
        ended = self.api.get(path)
        assert ended["state"] == "succeeded", ended["error"]
        return ended["result"] or {}

    # ------------------------------------------------------------------ rounds

    def plan(self, **asked: Any) -> dict[str, Any]:
        """A task that is ready for rounds."""
        self._done(self.api.post("tasks", asked)["operation"])
        found: dict[str, Any] = self.api.get(f"tasks/{asked['name']}")
        assert found["state"] == "ready", found
        return found

    def begin(self, task: str, rounds: int) -> None:
        self.api.post(f"tasks/{task}/start", {"rounds": rounds})

    def run(self, task: str, rounds: int, within_s: float = 60) -> list[dict[str, Any]]:
        """So many rounds; those of the task that are done, oldest first."""
        self.begin(task, rounds)
        self.wait_done(task, within_s)
        return [one for one in self.rounds(task) if one["state"] == "DONE"]

    def wait_done(self, task: str, within_s: float) -> None:
        path = f"tasks/{task}"
        end = time.monotonic() + within_s
        while self.api.get(path)["state"] == "running":
            assert time.monotonic() < end, self._why(task)
            time.sleep(0.1)

    def _why(self, task: str) -> str:
        told = [self.api.get(f"tasks/{task}"), *self.rounds(task)[-2:]]
        logs = "".join(one.said() for one in self.members.values())
        return f"{task} is not done: {told}{logs[:4000]}"

    def rounds(self, task: str) -> list[dict[str, Any]]:
        """Tries, oldest first."""
        found = self.api.get(f"rounds?task={task}&limit=500")["items"]
        return sorted(found, key=lambda one: one["number"])

    def parts(self, ident: str) -> dict[str, dict[str, Any]]:
        """Device -> its part in a round."""
        return {one["device"]: one for one in self.api.get(f"rounds/{ident}/devices")["items"]}

    def blob(self, sha256: str) -> bytes:
        return Blobs(self.served.folder / "blobs").read(sha256)

    def theta(self, sha256: str) -> F32:
        return np.frombuffer(self.blob(sha256), "<f4")

    def answers(self, task: str, x: F32, checkpoint: str = "") -> list[str]:
        """What the task's newest checkpoint, or another, says of rows: labels."""
        found = self.api.get(f"tasks/{task}")
        prepared = found["prepared"]
        graph = onnx.ModelProto.FromString(self.blob(prepared["graph"]))
        spec = spec_of({p.key: p.value for p in graph.metadata_props})
        inference = onnx.ModelProto.FromString(self.blob(prepared["inference"]))
        model = write_theta(inference, spec, self.theta(checkpoint or found["checkpoint"]))
        session = onnxruntime.InferenceSession(model.SerializeToString())
        said = session.run(None, {session.get_inputs()[0].name: x})
        [scores] = [one for one in said if getattr(one, "ndim", 0) == 2]
        return [prepared["labels"][i] for i in scores.argmax(1)]

    # ------------------------------------------------------------------ what was heard

    def messages(self) -> Iterator[tuple[str, Any]]:
        """(device, message) of round messages in either direction, in order."""
        with self._lock:
            heard = list(self.heard)
        for topic, payload in heard:
            *_, device, way, kind = topic.split("/")
            if kind == "round":
                read: Callable[..., Any] = wire.decode_up if way == "up" else wire.decode_down
                yield device, read(kind, payload)

    def wait_said(
        self, said: type, count: int = 1, within_s: float = 120, device: str = ""
    ) -> None:
        """Until so many devices (or this one) have said it, from now on."""
        before = len(self.heard)

        def found() -> bool:
            with self._lock:
                new = self.heard[before:]
            who = {
                topic
                for topic, payload in new
                if topic.endswith("/up/round")
                and (not device or f"/{device}/" in topic)
                and isinstance(wire.decode_up("round", payload).said, said)
            }
            return len(who) >= count

        eventually(found, f"{count} of {said.__name__}", within_s)

    def attempts(self) -> dict[tuple[str, int], bytes]:
        """(task, round) -> the try's name, from the invitations."""
        found = {}
        for _, message in self.messages():
            if isinstance(message, wire.RoundCall) and isinstance(message.said, Invite):
                signed = msgspec.json.decode(message.said.signed)["signed"]
                plan = msgspec.json.decode(signed["shoal"]["config"], type=Config).plan
                found[plan.task, plan.round] = message.attempt
        return found

    def contributions(self) -> dict[tuple[bytes, str], list[Contribution]]:
        """(attempt, device) -> every whole contribution that went by; one, unless it was killed."""
        parts: dict[tuple[bytes, str, bytes], Assembly] = {}
        for device, message in self.messages():
            if isinstance(message, wire.RoundAnswer) and isinstance(message.said, Piece):
                key = (message.attempt, device, message.said.chunk.digest)
                parts.setdefault(key, Assembly(1 << 30)).take(message.said.chunk)
        found: dict[tuple[bytes, str], list[Contribution]] = {}
        for (attempt, device, _), assembly in parts.items():
            if assembly.complete():
                whole = msgspec.msgpack.decode(assembly.payload(), type=Contribution)
                found.setdefault((attempt, device), []).append(whole)
        return found


@contextlib.contextmanager
def serving(parent: Path) -> Iterator[Cohort]:
    """A controller without devices; skips where there is no broker to run."""
    nats_server()
    served = Served(parent / "controller")
    served.facts = json.loads(init(parent / "controller", "--json", "--window-s", "5"))
    cohort = Cohort(served.start().ready())
    try:
        yield cohort
    finally:
        cohort.end()
        served.end()


def choices(
    found: dict[tuple[bytes, str], list[Contribution]], attempt: bytes, devices: Sequence[str]
) -> Iterator[list[Contribution]]:
    """Every way to take one contribution of each device."""
    return map(list, itertools.product(*(found[attempt, device] for device in devices)))


def holds_row(payload: bytes, row: F32) -> bool:
    """Whether a row, or half of one, is in these bytes: as numbers of any usual kind, or text."""
    kinds = ["<f4", ">f4", "<f8", ">f8"] + (["<i4", "u1"] if _whole(row) else [])
    for part in (row[: len(row) // 2], row[len(row) // 2 :]):
        if np.count_nonzero(part) < 3:
            continue
        if any(part.astype(kind).tobytes() in payload for kind in kinds):
            return True
        if any(glue.join(f"{v:g}" for v in part).encode() in payload for glue in (",", ", ", " ")):
            return True
    return False


def _whole(row: F32) -> bool:
    return bool((row == np.rint(row)).all() and (row >= 0).all() and (row < 256).all())
