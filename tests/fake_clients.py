"""Simulated devices in federated rounds, built of the real parts: verified configs, eligibility,
compression, chunks, secure aggregation. Only training is fake: a client's update is half of the
way to a target of its own.
"""

import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import insert, update

from fakes import MemoryLink
from fleet import Fleet
from shoal import topics, wire
from shoal.agent.federated.eligibility import Condition, judge
from shoal.agent.federated.secagg import Participant
from shoal.agent.host.round_limits import Limits
from shoal.agent.identity.io.enrol import make_csr
from shoal.controller.federated.records import Participation, Prepared, Task, TaskPlan
from shoal.controller.federated.rounds import rounds, rows
from shoal.controller.fleet.io.ca import Authority
from shoal.controller.store.tables import device, federated_task
from shoal.errors import RefusedError
from shoal.federated import messages
from shoal.federated.chunks import cut
from shoal.federated.compression import compress
from shoal.federated.config import Config, secure_id, verify_config
from shoal.federated.distributed import encode_privately
from shoal.federated.identity import check_signature
from shoal.federated.noise import Draws, privately
from shoal.federated.secure import Terms
from shoal.federated.spending import Ledger
from shoal.params import F32
from shoal.trust import ImageRepository

MODEL, TASK, SIZE = "lot-codes", "walk", 40
LIMITS = Limits(rows=1, cohort=2)


class FakeClient:
    """One device.

    quiet   classes of messages that it does not send
    piece   bytes of a piece
    log     class names of the received messages
    way     gateway route of the last Start
    """

    def __init__(self, federation: "FakeFederation", name: str, target: F32) -> None:
        self.federation, self.name, self.target = federation, name, target
        self.quiet: set[type] = set()
        self.limits, self.ledger = LIMITS, Ledger()
        self.piece, self.examples = 1 << 20, 10
        self.log: list[str] = []
        self.way: Any = None
        self.config: Config | None = None
        self.secagg: Participant | None = None
        self.said: dict[type, Any] = {}
        self.dismissed: list[str] = []
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = federation.certificate(name, self.key)
        self.link = MemoryLink(federation.fleet.broker, [topics.down(name, "round")])
        self.link.start(self._receive, lambda up: None)

    def say(self, attempt: bytes, said: Any) -> None:
        if type(said) in self.quiet:
            return
        message = wire.RoundAnswer(
            device=self.name, boot="b", seq=0, sent_s=self.federation.fleet.clock(),
            attempt=attempt, said=said,
        )  # fmt: skip
        self.link.publish(topics.up(self.name, "round"), wire.encode(message))

    def _receive(self, topic: str, payload: bytes) -> None:
        call = wire.decode_down("round", payload)
        assert isinstance(call, wire.RoundCall)
        self.log.append(type(call.said).__name__)
        if isinstance(call.said, messages.Start):
            self.way = call.said.way or None
        try:
            for answer in self._replies(call.attempt, call.said):
                self.say(call.attempt, answer)
        except RefusedError as refusal:
            self.say(
                call.attempt, messages.Refuse(reason=refusal.reason, detail=str(refusal)[:400])
            )

    def _replies(self, attempt: bytes, said: messages.ControllerMessage) -> Iterable[Any]:
        if isinstance(said, messages.Invite):
            return self._join(attempt, said)
        if isinstance(said, messages.Measure):
            return self._measure(said)
        if isinstance(said, messages.Dismiss):
            self.dismissed.append(said.reason)
            return []
        if self.config is None or self.config.plan.attempt != attempt:
            return []
        if isinstance(said, messages.Resend):
            pieces = self.said[messages.Piece]
            return [p for p in pieces if not said.missing or p.chunk.index in said.missing]
        kind = {
            messages.Start: messages.Boxes if self.secagg else messages.Piece,
            messages.Deal: messages.Piece, messages.Close: messages.Vote,
            messages.Pass: messages.Shares,
        }[type(said)]  # fmt: skip
        if kind not in self.said:
            self.said[kind] = list(self._build(said))
        return self.said[kind]

    def _join(self, attempt: bytes, said: messages.Invite) -> Iterable[Any]:
        config = self._verified(said.signed)
        if self.config is None or self.config.plan.attempt != attempt:
            self.ledger = judge(
                config.plan, SIZE, self.limits, Condition(rows=self.examples, idle=True),
                self.ledger, self.federation.fleet.clock(),
            )  # fmt: skip
            self.config, self.said, self.secagg = config, {}, self._participant(config)
            advert = self.secagg.advert() if self.secagg else None
            self.said[messages.Join] = [messages.Join(advert=advert)]
            self._fetch(said.urls)
        return self.said[messages.Join]

    def _fetch(self, urls: dict[str, str]) -> None:
        assert self.config is not None
        self.contents = {
            name: self.federation.fleet.ctx.blobs.read(content.sha256)
            for name, content in self.config.contents().items()
            if urls[content.sha256]
        }

    def _build(self, said: messages.ControllerMessage) -> Iterable[Any]:
        if isinstance(said, messages.Start) and self.secagg is None:
            yield from self._pieces(self._contribution())
        elif isinstance(said, messages.Start) and said.roster and self.secagg:
            yield messages.Boxes(boxes=self.secagg.boxes(said.roster))
        elif isinstance(said, messages.Deal) and self.secagg:
            numbers = self.secagg.masked(self._numbers(), said.boxes)
            yield from self._pieces(messages.Contribution(update=numbers.astype("<u4").tobytes()))
        elif isinstance(said, messages.Close) and self.secagg:
            yield messages.Vote(signature=self.secagg.vote(said.ending))
        elif isinstance(said, messages.Pass) and self.secagg:
            yield messages.Shares(shares=self.secagg.shares(said.votes))

    def _pieces(self, found: messages.Contribution) -> list[messages.Piece]:
        return [messages.Piece(chunk=c) for c in cut(msgspec.msgpack.encode(found), self.piece)]

    @property
    def theta(self) -> F32:
        return np.frombuffer(self.contents["theta"], "<f4")

    def delta(self) -> F32:
        return ((self.target - self.theta) / 2).astype(np.float32)

    def _contribution(self) -> messages.Contribution:
        assert self.config is not None
        plan, delta = self.config.plan, self.delta()
        if plan.privacy and plan.privacy.where == "local":
            delta = privately(delta, plan.privacy, Draws(secrets.token_bytes(32)))
        draws = Draws(secrets.token_bytes(32))
        control = self.config.control and compress(0 * delta + 1, plan.compression, draws)
        return messages.Contribution(
            update=compress(delta, plan.compression, draws), examples=self.examples,
            loss=float(np.square(self.target - self.theta).mean()), seconds=0.5,
            control=control or b"",
        )  # fmt: skip

    def _numbers(self) -> Any:
        assert self.config is not None
        plan = self.config.plan
        assert plan.secure is not None
        if plan.privacy:
            draws = Draws(secrets.token_bytes(32))
            return encode_privately(
                self.delta(), plan.privacy, plan.secure.scale, plan.least, draws
            )
        random = np.random.default_rng(0)
        return plan.secure.scale.encode(self.delta(), 1, random)

    def _measure(self, said: messages.Measure) -> Iterable[Any]:
        config = self._verified(said.signed)
        theta = np.frombuffer(self.federation.fleet.ctx.blobs.read(config.theta.sha256), "<f4")
        loss = float(np.square(self.target - theta).sum())
        whole = messages.Slice(rows=self.examples, loss=loss, correct=self.examples // 2)
        return [messages.Measured(whole=whole, classes={"ok": whole})]

    def _verified(self, signed: bytes) -> Config:
        return verify_config(signed, self.federation.targets(), self.federation.fleet.clock())

    def _participant(self, config: Config) -> Participant | None:
        secure = config.plan.secure
        if secure is None:
            return None
        terms = Terms(
            round_id=secure_id(config.plan.attempt, config.text()), degree=secure.degree,
            threshold=secure.threshold, least=config.plan.least,
        )  # fmt: skip
        return Participant(
            self.name, terms, self.limits.cohort, sign=self._sign, verify=self._verify,
            entropy=secrets.token_bytes, certificate=self.certificate,
        )  # fmt: skip

    def _sign(self, message: bytes) -> bytes:
        return self.key.sign(message, ec.ECDSA(hashes.SHA256()))

    def _verify(self, name: str, signature: bytes, message: bytes) -> None:
        """Verify a neighbour's signature by its certificate."""
        federation = self.federation
        check_signature(
            federation.clients[name].certificate, federation.authorities, name, signature, message,
            federation.fleet.clock(),
        )  # fmt: skip


class FakeFederation:
    """Fake clients and the engine of a fleet."""

    def __init__(self, folder: Path, count: int = 6) -> None:
        self.fleet = Fleet(folder)
        pki = self.fleet.ctx.folder / "pki"
        self._authority = Authority.create(pki, names=["localhost"], now=self.fleet.clock())
        self.authorities = x509.load_pem_x509_certificates((pki / "ca.pem").read_bytes())
        self._images = folder / "images"
        random = np.random.default_rng(1)
        self.clients: dict[str, FakeClient] = {}
        for i in range(count):
            self.enrol(f"d{i:02}", random.normal(size=SIZE).astype(np.float32) * 0.3)

    def enrol(self, name: str, target: F32, **values: Any) -> FakeClient:
        row = {
            "name": name, "site": "north" if int(name[1:]) % 2 else "south", "labels": {},
            "ring": "stable", "profile": "generic", "state": "enrolled", "online": True,
            "releases": {MODEL: f"{MODEL}@1"}, "variants": {}, "facts": {"ram_mb": 900},
            "seen_at": self.fleet.clock(),
        }  # fmt: skip
        with self.fleet.ctx.store.write() as db:
            db.execute(insert(device).values(**row | values))
        self.clients[name] = FakeClient(self, name, target)
        return self.clients[name]

    def set(self, name: str, **values: Any) -> None:
        """Set columns of a device's row."""
        with self.fleet.ctx.store.write() as db:
            db.execute(update(device).where(device.c.name == name).values(**values))

    def certificate(self, name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
        """DER."""
        issued = self._authority.issue_device(make_csr(key, name), name, self.fleet.clock())
        leaf = x509.load_pem_x509_certificate(issued.certificate.encode())
        return leaf.public_bytes(serialization.Encoding.DER)

    def targets(self) -> Any:
        """Current top-level targets of the image repository."""
        images = ImageRepository(self._images, self.fleet.ctx.signer.root, self.fleet.metadata)
        images.refresh(self.fleet.clock())
        return images.targets

    def task(self, **changes: Any) -> TaskPlan:
        """Add a ready task, whose model is a vector."""
        whole = {
            "name": TASK, "release": f"{MODEL}@1", "learning": {"lr": 0.1},
            "pace": {"goal": len(self.clients), "least": 2, "over": 1.0},
        }  # fmt: skip
        plan = msgspec.convert(whole | changes, TaskPlan)
        put = self.fleet.ctx.blobs.put_bytes
        prepared = Prepared(
            graph=put(b"graph").sha256, loss_graph=put(b"loss").sha256,
            inference=put(b"inference").sha256, size=SIZE,
            theta=put(np.zeros(SIZE, "<f4").tobytes()).sha256, labels=["ok", "bad"],
        )  # fmt: skip
        with self.fleet.ctx.store.write() as db:
            db.execute(
                insert(federated_task).values(
                    name=plan.name, model=MODEL, release=plan.release, state=rows.READY,
                    plan=msgspec.to_builtins(plan), prepared=msgspec.to_builtins(prepared),
                    spent=[], created_at=self.fleet.clock(), checkpoint=prepared.theta,
                )
            )  # fmt: skip
        return plan

    def start(self, count: int = 1, **changes: Any) -> None:
        """Add a ready task and request rounds."""
        self.task(**changes)
        self.more(count)

    def more(self, count: int = 1) -> None:
        rounds.start(self.fleet.ctx, actor="ana", task=TASK, rounds=count)

    @property
    def walk(self) -> Task:
        """The task's present record."""
        return rounds.get_task(self.fleet.ctx, TASK)

    def done(self, count: int = 1) -> bool:
        """Whether so many rounds have ended."""
        return self.walk.rounds >= count

    def parts(self, number: int = 1) -> dict[str, Participation]:
        """Participation of each device in a round, by name."""
        found = rounds.participations(self.fleet.ctx, f"{TASK}.{number}")
        return {part.device: part for part in found}

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> None:
        self.fleet.run(seconds, until, step=0.5)

    def theta(self, sha256: str) -> F32:
        return np.frombuffer(self.fleet.ctx.blobs.read(sha256), "<f4")
