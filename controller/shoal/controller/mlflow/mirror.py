"""Mirrors runs to MLflow in the background: what changed is marked due, and sent again until it is.

Sending a run twice changes nothing, so a mark may be set too often: a controller that ends at any
line goes on where it was. MLflow is out of reach: nothing is lost, and nothing waits for it.
"""

import logging
from typing import Any

from sqlalchemy import Connection, case, delete, func, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from shoal.controller.host.context import Context
from shoal.controller.mlflow import run_copy
from shoal.controller.mlflow.records import Mirrored
from shoal.controller.mlflow.registry import Registry
from shoal.controller.runs import listing
from shoal.controller.runs.records import KINDS, Run
from shoal.controller.store import stored_values
from shoal.controller.store.mlflow_tables import mlflow_run
from shoal.controller.store.tables import change, operation
from shoal.errors import AbsentError, DeniedError, LinkError, SettingError, ShoalError

_log = logging.getLogger(__name__)
#: Runs sent in one step, and marked in one transaction.
BATCH, MARKED = 20, 500
#: Seconds after a failure, four times longer each time, and the longest; tries of one run.
FIRST_S, LONGEST_S, MOST = 10.0, 900.0, 8
_POSITION, _STATE = "mlflow.position", "mlflow.runs"


class Mirror:
    """Sends the runs of one controller; there must be no second."""

    def __init__(self, ctx: Context, server: Registry) -> None:
        self._ctx, self._server = ctx, server
        self._experiment, self._failures, self._not_before = "", 0, 0.0

    def step(self) -> int:
        """Mark what changed, and send what is due; how many were sent."""
        ctx, now = self._ctx, self._ctx.clock()
        mark_changed(ctx)
        if now < self._not_before:
            return 0
        is_due = (mlflow_run.c.due_at > 0) & (mlflow_run.c.due_at <= now)
        with ctx.store.read() as db:
            query = select(mlflow_run).where(is_due).order_by(mlflow_run.c.due_at)
            due = db.execute(query.limit(BATCH)).all()
        sent = 0
        for row in due:
            try:
                self._send(row.run, row.remote)
            except (LinkError, DeniedError, SettingError) as error:  # of the server: for all runs
                self._wait(str(error))
                return sent
            except ShoalError as error:  # of this run
                self._failed(row, str(error))
                continue
            sent += 1
        if sent:
            self._failures = 0
            with ctx.store.write() as db:
                stored_values.write(db, _STATE, {"at": now, "error": "", "error_at": 0.0})
        return sent

    def _send(self, ident: str, remote: str) -> None:
        ctx = self._ctx
        try:
            run = listing.get_run(ctx, ident)
        except AbsentError:  # deleted here: its copy stays
            with ctx.store.write() as db:
                db.execute(delete(mlflow_run).where(mlflow_run.c.run == ident))
            return
        remote = remote or self._remote(run)
        for body in run_copy.batches(run, console(ctx, f"runs/{ident}")):
            self._server.call("POST", "runs/log-batch", {"run_id": remote, **body})
        self._server.call("POST", "runs/update", {"run_id": remote, **run_copy.status(run)})
        done = update(mlflow_run).where(mlflow_run.c.run == ident)
        with ctx.store.write() as db:
            db.execute(done.values(due_at=0.0, sent_at=ctx.clock(), attempts=0, error=""))

    def _remote(self, run: Run) -> str:
        """The run's copy: found by its tag, where a power cut came between two lines; or new."""
        experiment = self._experiment or self._find_experiment()
        wanted = {"experiment_ids": [experiment], "filter": f"tags.`shoal.run` = '{run.id}'"}
        found = self._server.call("POST", "runs/search", wanted | {"max_results": 1}).get("runs")
        if found:
            remote = str(found[0]["info"]["run_id"])
        else:
            tags = [{"key": "shoal.run", "value": run.id}]
            started = int((run.started_at or run.created_at) * 1_000)
            body = {"experiment_id": experiment, "start_time": started, "tags": tags}
            made = self._server.call("POST", "runs/create", body)
            remote = str(made["run"]["info"]["run_id"])
        with self._ctx.store.write() as db:
            mine = update(mlflow_run).where(mlflow_run.c.run == run.id)
            db.execute(mine.values(remote=remote))
        return remote

    def _find_experiment(self) -> str:
        name = self._ctx.settings.mlflow.experiment
        try:
            query = {"experiment_name": name}
            found = self._server.call("GET", "experiments/get-by-name", query)
            self._experiment = str(found["experiment"]["experiment_id"])
        except AbsentError:
            made = self._server.call("POST", "experiments/create", {"name": name})
            self._experiment = str(made["experiment_id"])
        return self._experiment

    def _wait(self, error: str) -> None:
        """Try none for a while: the server is out of reach."""
        now = self._ctx.clock()
        self._not_before = now + min(LONGEST_S, FIRST_S * 4.0**self._failures)
        self._failures = min(self._failures + 1, 8)
        _log.warning("runs are not mirrored: %s", error)
        with self._ctx.store.write() as db:
            before = stored_values.read(db, _STATE) or {}
            since = before.get("error_at") or now
            stored_values.write(db, _STATE, {**before, "error": error[:500], "error_at": since})

    def _failed(self, row: Any, error: str) -> None:
        """Try one run again later, MOST times."""
        attempts = row.attempts + 1
        again = self._ctx.clock() + min(LONGEST_S, FIRST_S * 4.0**row.attempts)
        values = {"attempts": attempts, "error": error[:500]}
        values["due_at"] = again if attempts < MOST else 0.0
        _log.warning("run %s is not mirrored: %s", row.run, error)
        with self._ctx.store.write() as db:
            db.execute(update(mlflow_run).where(mlflow_run.c.run == row.run).values(**values))


def mark_changed(ctx: Context) -> None:
    """Mark the runs that changed since the last time; all, where the change log does not reach."""
    with ctx.store.read() as db:
        known = stored_values.read(db, _POSITION)
        newest = db.scalar(select(func.max(change.c.id))) or 0
        oldest = db.scalar(select(func.min(change.c.id))) or 0
    position = int((known or {}).get("id", -1))
    if known is not None and newest == position:
        return
    if known is None or oldest > position + 1:
        _mark_all(ctx)
        found: list[str] = []
    else:
        range_ = (change.c.id > position) & (change.c.id <= newest)
        subjects = select(change.c.subject).where(range_, change.c.kind == "operation").distinct()
        runs = select(operation.c.id).where(
            operation.c.id.in_(subjects), operation.c.kind.in_(KINDS)
        )
        with ctx.store.read() as db:
            found = list(db.scalars(runs))
    with ctx.store.write() as db:
        _mark(db, ctx, found)
        stored_values.write(db, _POSITION, {"id": newest})


def state(ctx: Context) -> Mirrored:
    """How far runs are mirrored."""
    settings = ctx.settings.mlflow
    failed = (mlflow_run.c.due_at == 0) & (mlflow_run.c.error != "")
    counts = select(
        func.count(case((mlflow_run.c.sent_at > 0, 1))),
        func.count(case((mlflow_run.c.due_at > 0, 1))),
        func.count(case((failed, 1))),
    )
    with ctx.store.read() as db:
        sent, waiting, lost = db.execute(counts).one()
        known = stored_values.read(db, _STATE) or {}
    return Mirrored(
        enabled=bool(settings.url and settings.runs),
        experiment=settings.experiment,
        sent=sent,
        waiting=waiting,
        failed=lost,
        sent_at=known.get("at", 0.0),
        error=known.get("error", ""),
        error_at=known.get("error_at", 0.0),
    )


def console(ctx: Context, path: str) -> str:
    """Where people see something in the console, by the controller's first name."""
    network = ctx.settings.network
    return f"https://{network.names[0]}:{network.port}/{path}"


def _mark_all(ctx: Context) -> None:
    last = ""
    while True:
        query = select(operation.c.id).where(operation.c.kind.in_(KINDS), operation.c.id > last)
        with ctx.store.read() as db:
            found = list(db.scalars(query.order_by(operation.c.id).limit(MARKED)))
        if not found:
            return
        last = found[-1]
        with ctx.store.write() as db:
            _mark(db, ctx, found)


def _mark(db: Connection, ctx: Context, runs: list[str]) -> None:
    """Mark runs due; one that fails keeps its time."""
    if not runs:
        return
    now = ctx.clock()
    row = upsert(mlflow_run).values([{"run": one, "due_at": now} for one in runs])
    waits = (mlflow_run.c.attempts > 0) & (mlflow_run.c.due_at > 0)
    at = case((waits, mlflow_run.c.due_at), else_=now)
    db.execute(row.on_conflict_do_update(index_elements=["run"], set_={"due_at": at}))
