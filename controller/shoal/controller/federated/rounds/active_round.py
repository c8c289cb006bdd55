"""A round that runs, as the engine has it in its hands: all of it comes from database and files."""

from collections import Counter
from typing import Any, NamedTuple

import msgspec
from cryptography import x509
from sqlalchemy import Row

from shoal.controller.federated.ports import Files
from shoal.controller.federated.records import Task
from shoal.controller.federated.rounds import machine, rows
from shoal.controller.federated.secagg.session import Circle
from shoal.federated.messages import Invite, Measure
from shoal.federated.plan import Plan
from shoal.federated.secure import Terms


class Nudge(NamedTuple):
    """What a device was last told: `what`, so many times; and when it is told again, Unix s."""

    what: str
    times: int
    next_s: float


class Live:
    """One try of one round.

    now       its journal
    broken    what it cannot go on for; "" mostly
    nudges    device -> what it was told; forgotten with the process: then all is said again
    signed    purpose -> what is said of it: signed once in the life of a process
    ignored   why answers were ignored -> how many
    circle    of a round that is aggregated securely, from its roster on
    facts     device -> what is known of its update, until it is written down
    sites     device -> its site, of a task with gateways
    claims    device -> rows that it may claim, where that is known: see claims
    bound     what a securely aggregated round is known by (config.secure_id); b"" for others
    authorities   of the device CA
    """

    def __init__(
        self, row: Row[Any], task: Task, files: Files, authorities: list[x509.Certificate]
    ) -> None:
        assert task.prepared is not None  # no round of a task begins before
        self.id, self.task, self.prepared = row.id, task, task.prepared
        self.now: machine.Round = rows.journal_of(row)
        self.plan: Plan = rows.plan_of(row)
        self.attempt: int = row.attempt
        self.parent, self.theta, self.old_memory = row.parent, row.theta, row.old_memory
        self.checkpoint: str = row.checkpoint
        self.memory: str = row.memory
        self.facts: dict[str, dict[str, Any]] | None = None
        self.result: dict[str, Any] = dict(row.result)
        self.ignored: Counter[str] = Counter(self.result.get("ignored", {}))
        self.started_at: float = row.started_at
        self.files, self.authorities = files, authorities
        self.sites: dict[str, str] = {}
        self.claims: dict[str, int] = {}
        self.broken, self.bound = "", b""
        self.nudges: dict[str, Nudge] = {}
        self.signed: dict[str, Invite | Measure] = {}
        self.circle: Circle | None = None

    def attempt_of(self, device: str) -> bytes:
        """Of the try that a device trains for: an earlier one's where it is carried on."""
        return self.now.attempt_of(device)

    def counted(self, device: str, rows: int, untold: int | None = None) -> int:
        """Of the rows that a device claims; untold: the most where its inventory says nothing."""
        return min(rows, self.claims.get(device, rows if untold is None else untold))

    @property
    def size(self) -> int:
        return self.prepared.size

    @property
    def terms(self) -> Terms:
        """Of secure aggregation."""
        secure = self.plan.secure
        assert secure is not None
        assert self.bound
        return Terms(
            round_id=self.bound,
            degree=secure.degree,
            threshold=secure.threshold,
            least=self.plan.least,
        )

    def left(self, devices: list[str], reason: str) -> None:
        """These are lost, and why."""
        marks = dict.fromkeys(devices, machine.Mark.LOST)
        self.now = msgspec.structs.replace(
            self.now,
            marks=self.now.marks | marks,
            reasons=self.now.reasons | dict.fromkeys(devices, reason),
        )
