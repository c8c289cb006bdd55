"""A running round: its state in memory, loaded from database and files, and its journal line."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from cryptography import x509
from sqlalchemy import Connection, Row, select

from shoal.controller.federated.planning import client_selection, plans, scheduling
from shoal.controller.federated.ports import Files
from shoal.controller.federated.rounds import machine, rows
from shoal.controller.federated.rounds.machine import State
from shoal.controller.federated.secagg.session import SecAggSession
from shoal.controller.host.context import Context
from shoal.controller.store.tables import device
from shoal.federated.messages import Invite, Measure
from shoal.federated.plan import Plan
from shoal.federated.secure import Terms

#: Rows that every device may report: inventories are rare, and rows arrive in between.
MIN_ROW_LIMIT = 64
#: For a device whose inventory has no number: rows that a device keeps by default.
DEFAULT_ROW_LIMIT = 20_000


class Request(NamedTuple):
    """Last request sent to a device: its kind, how often in a row, when to repeat it (Unix s)."""

    kind: str
    times: int
    repeat_at_s: float


class IncomingUpdate:
    """Chunks of one update that have arrived, as they are on disk.

    payload   identity of the whole: its digest, number of chunks, length
    missing   indexes of the chunks that have not arrived
    held      bytes of their files
    """

    __slots__ = ("held", "missing", "payload")

    def __init__(self, payload: tuple[bytes, int, int]) -> None:
        self.payload, self.missing, self.held = payload, set(range(payload[1])), 0

    def take(self, index: int, size: int) -> None:
        self.missing.discard(index)
        self.held += size


class ActiveRound:
    """One attempt of one round.

    record      its state, as the journal has it
    error       why it cannot continue; "" mostly
    requests    device -> last request sent; lost in a restart, after which all are sent again
    signed      purpose -> signed message; signed once in the life of a process
    ignored     reason -> number of ignored messages
    secagg      of a securely aggregated round, once its roster is fixed
    secagg_id   config.secure_id of such a round; b"" for others
    incoming    device -> chunks of its update that are on disk; None without any, read when asked
    squares     device -> squared norm of its update, where it is known
    facts       device -> facts of its update, until they are written to the database
    sites       device -> its site, in a task with gateways
    row_limits  device -> largest number of rows that it may report, where that is known
    authorities certificates of the device CA
    """

    def __init__(
        self, db: Connection, row: Row[Any], files: Files, authorities: list[x509.Certificate]
    ) -> None:
        task = rows.task_of(rows.task_row(db, row.task))
        assert task.prepared is not None  # no round of a task begins before
        self.id, self.task, self.prepared = row.id, task, task.prepared
        self.record: machine.RoundRecord = rows.record_of(row)
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
        self.sites = _sites(db, self.record.marks) if task.plan.gateways else {}
        self.row_limits = _row_limits(db, task.model, self.record.marks)
        self.error, self.secagg_id = "", b""
        self.requests: dict[str, Request] = {}
        self.signed: dict[str, Invite | Measure] = {}
        self.incoming: dict[str, IncomingUpdate | None] = {}
        self.squares: dict[str, float] = {}
        self.secagg: SecAggSession | None = None

    def limit_rows(self, device: str, reported: int, default: int | None = None) -> int:
        """Reported rows, limited; default: the limit of a device whose inventory has no number."""
        return min(reported, self.row_limits.get(device, reported if default is None else default))

    @property
    def size(self) -> int:
        return self.prepared.size

    @property
    def terms(self) -> Terms:
        """Terms of secure aggregation."""
        secure = self.plan.secure
        assert secure is not None
        assert self.secagg_id
        return Terms(
            round_id=self.secagg_id,
            degree=secure.degree,
            threshold=secure.threshold,
            least=self.plan.least,
        )

    def mark_lost(self, devices: list[str], reason: str) -> None:
        marks = dict.fromkeys(devices, machine.Mark.LOST)
        self.record = msgspec.structs.replace(
            self.record,
            marks=self.record.marks | marks,
            reasons=self.record.reasons | dict.fromkeys(devices, reason),
        )


def _sites(db: Connection, devices: Iterable[str]) -> dict[str, str]:
    query = select(device.c.name, device.c.site).where(device.c.name.in_(devices))
    return {row.name: row.site for row in db.execute(query)}


def _row_limits(db: Connection, model: str, devices: Iterable[str]) -> dict[str, int]:
    """Largest number of rows that a device may report: twice its last inventory, which is rounded
    down. A device may lie in its inventory too; the strategy's `most_examples` bounds that.
    """
    query = select(device.c.name, device.c.facts).where(device.c.name.in_(list(devices)))
    read = scheduling.labelled_rows
    found = {row.name: int(read(row.facts, model, default=-1)) for row in db.execute(query)}
    return {n: max(MIN_ROW_LIMIT, 2 * count) for n, count in found.items() if count >= 0}


# --- the journal ------------------------------------------------------------------------------


def write_journal(
    db: Connection, ctx: Context, active: ActiveRound, after: machine.RoundRecord
) -> None:
    """Store `after` as the round's record, and in the same transaction the privacy that it spends,
    its participations, and its checkpoint as the task's newest."""
    task = rows.task_row(db, active.task.name)
    if active.facts is not None:
        rows.save_participations(db, active.id, active.facts)
    if _spends(active, after.state):
        noise = plans.noise_of(active.plan, active.size)
        assert noise is not None
        spent = scheduling.after_spending(active.task.plan, task.spent, noise)
        rows.set_task(db, ctx, task.name, **spent)
        task = rows.task_row(db, task.name)
    active.result |= {"ignored": dict(sorted(active.ignored.items())), "epsilon": task.epsilon}
    ended = {}
    if after.state in machine.ENDED:
        ended = {"ended_at": ctx.clock()}
        active.result["seconds"] = ctx.clock() - active.started_at
    rows.set_round(
        db, ctx, active.id, journal=msgspec.to_builtins(after), state=after.state.value,
        reason=after.reason, result=active.result, checkpoint=active.checkpoint,
        memory=active.memory, **ended,
    )  # fmt: skip
    if active.record.purpose == "train" and after.state is State.DONE:
        _publish(db, ctx, active, task)
    elif active.record.purpose == "train" and after.state is State.FAILED:
        _schedule_retry(db, ctx, active, task, after)
    if after.state in machine.ENDED:
        rows.save_participations(db, active.id, rows.update_facts(db, active.id))


def _spends(active: ActiveRound, state: State) -> bool:
    """Privacy is spent once a round, before anything that costs it can be known: with local noise
    when single updates may arrive, from TRAINING on, otherwise when the sum is taken."""
    privacy = active.plan.privacy
    if privacy is None or active.record.state is state:
        return False
    return state is (State.TRAINING if privacy.where == "local" else State.AGGREGATING)


def _publish(db: Connection, ctx: Context, active: ActiveRound, task: Row[Any]) -> None:
    """Make the checkpoint the task's newest."""
    done = task.rounds + 1
    running = task.state == rows.RUNNING
    rows.set_task(
        db, ctx, task.name, checkpoint=active.checkpoint, memory=active.memory,
        parent=active.record.number, rounds=done, next_at=0.0,
        state=rows.READY if running and done >= task.asked else task.state,
    )  # fmt: skip


def _schedule_retry(
    db: Connection, ctx: Context, active: ActiveRound, task: Row[Any], after: machine.RoundRecord
) -> None:
    """Try again later; stop the task after its last attempt. A stopped task is left alone."""
    if task.state != rows.RUNNING:
        return
    why = f"round {active.id} failed: {after.reason}{_reasons(after)}"
    if active.attempt >= active.task.plan.attempts:
        stopped = (
            f"{why}, the {active.attempt}. time in a row; shoal round show {active.id} has more"
        )
        scheduling.stop(db, ctx, task.name, task.model, stopped)
        return
    wait_s = min(scheduling.FIRST_RETRY_S * 2 ** (active.attempt - 1), scheduling.LONGEST_RETRY_S)
    rows.set_task(db, ctx, task.name, reason=f"{why}; it is tried again",
                  next_at=ctx.clock() + wait_s)  # fmt: skip


def _reasons(after: machine.RoundRecord) -> str:
    """Why devices dropped out, counted, with hints, for a round that had too few."""
    if after.reason not in ("too-few-joined", "too-few-updates"):
        return ""
    left = after.reasons.values()
    hint = client_selection.hints(left)
    return f" ({client_selection.tally(left)}{'; ' if hint else ''}{hint})" if left else ""
