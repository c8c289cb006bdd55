"""Retraining triggers: a drift alert with newer labelled data starts one training."""

import logging
from typing import Any

from sqlalchemy import Connection, Select, select

from shoal.controller.alerts import alerts
from shoal.controller.data.records import TABLE
from shoal.controller.host.context import Context
from shoal.controller.runs.records import TRAIN
from shoal.controller.store.tables import alert, dataset, model, operation, release
from shoal.controller.training import training
from shoal.errors import ShoalError
from shoal.estimators import ESTIMATORS, IMPORTED

_log = logging.getLogger(__name__)
ACTOR = "automation"
_TRAINED_HERE = ESTIMATORS.keys() - {IMPORTED}


def evaluate(ctx: Context) -> int:
    """Start the trainings that are due; their number.

    One is due when a drift alert is open for a model with `retrain_on_drift`, and the model's
    dataset has a version newer than the alert and than the drifted release's training data. It
    uses the release's estimator and parameters; the new release is signed as a candidate only.
    """
    with ctx.store.read() as db:
        due = {  # several drifted sites start one training, not one each
            (row.model, wanted): row.id
            for row in db.execute(_open_alerts()).all()
            if (wanted := _newer_dataset(db, row.policy_dataset, row.release, row.opened_at))
            and not _triggered(db, row.model, row.id, wanted)
        }
        recipes = {name: recipe_of(db, name) for name, _ in due}
    for (name, wanted), ident in due.items():
        estimator, params, script = recipes[name]
        try:
            training.start_training(
                ctx, actor=ACTOR, model=name, dataset=wanted, estimator=estimator, params=params,
                trigger=f"{training.AUTOMATIC}{ident}", script=script,
            )  # fmt: skip
        except ShoalError as error:
            _log.warning("alert %d cannot retrain %s: %s", ident, name, error)
    return len(due)


def _open_alerts() -> Select[Any]:
    """Open drift alerts of models with `retrain_on_drift`."""
    return (
        select(
            alert.c.id,
            alert.c.model,
            alert.c.release,
            alert.c.opened_at,
            model.c.dataset.label("policy_dataset"),
        )
        .join(model, model.c.name == alert.c.model)
        .where(
            alert.c.kind == "drift",
            alert.c.state.in_(alerts.UNRESOLVED),
            model.c.retrain_on_drift,
            model.c.retired_at == 0,
            model.c.dataset != "",
        )
    )


def _newer_dataset(db: Connection, policy: str, ref: str, opened_at: float) -> str:
    """The newest labelled table of the policy's dataset if it is newer than the alert, else ""."""
    name = policy.partition("@")[0]
    newest = db.execute(
        select(dataset.c.version, dataset.c.created_at)
        .where(dataset.c.name == name, dataset.c.kind == TABLE, dataset.c.label != "")
        .order_by(dataset.c.version.desc())
        .limit(1)
    ).first()
    if newest is None or newest.created_at <= opened_at:
        return ""
    model_name, _, version = ref.rpartition("@")
    trained = db.scalar(
        select(release.c.dataset).where(
            release.c.model == model_name, release.c.version == int(version)
        )
    )
    old_name, _, old = (trained or "").rpartition("@")
    if old_name == name and old.isdecimal() and int(old) >= newest.version:
        return ""
    return f"{name}@{newest.version}"


def _triggered(db: Connection, name: str, ident: int, wanted: str) -> bool:
    """Whether the alert has triggered already; with newer data a failed training is retried."""
    trainings = db.execute(
        select(operation.c.params, operation.c.state).where(
            operation.c.kind == TRAIN, operation.c.subject == name
        )
    )
    return any(_same_cause(row, f"{training.AUTOMATIC}{ident}", wanted) for row in trainings)


def _same_cause(trained: Any, trigger: str, wanted: str) -> bool:
    """Whether a training covers the alert: its own, or another site's on the same data."""
    mine, same = trained.params.get("trigger") == trigger, trained.params.get("dataset") == wanted
    automatic = str(trained.params.get("trigger", "")).startswith(training.AUTOMATIC)
    unsuccessful = trained.state in ("failed", "canceled")
    return (mine and (same or not unsuccessful)) or (automatic and same)


def retrain_step(db: Connection, ref: str) -> str:
    """What to do about drift of a release that stays, a clause that ends with a command.

    The command trains on the newest version of the dataset of the model's policy, else of the
    release; a script's recipe is kept by the policy alone.
    """
    name, _, version = ref.rpartition("@")
    policy = db.scalar(select(model.c.dataset).where(model.c.name == name))
    mine = (release.c.model == name) & (release.c.version == int(version))
    made = db.execute(select(release.c.dataset, release.c.report).where(mine)).first()
    data = (policy or (made.dataset if made else "")).partition("@")[0]
    if made is None or not data or made.report.get("estimator", "") not in _TRAINED_HERE:
        return f"make a version from newer data; how this one was made: shoal release show {ref}"
    estimator, _params, script = recipe_of(db, name)
    if script:
        command = f"shoal model policy {name} --retrain-on-drift --dataset {data}"
        return f"add newly labelled rows to {data} and have it retrained: {command}"
    command = f"shoal model train {name} --dataset {data} --estimator {estimator}"
    return f"add newly labelled rows to {data} and retrain: {command}"


def recipe_of(db: Connection, name: str) -> tuple[str, dict[str, Any], str]:
    """Estimator, parameters and script ("" for none) of the model's newest trained release.

    Without its restriction to sites: the drifted site's rows must be in the training data.
    """
    rows = db.execute(
        select(release.c.report, operation.c.params)
        .join(operation, operation.c.id == release.c.operation, isouter=True)
        .where(release.c.model == name)
        .order_by(release.c.version.desc())
    )
    for report, asked in rows:
        if report.get("estimator", "") in _TRAINED_HERE:
            params = {k: v for k, v in report.get("params", {}).items() if k != "sites"}
            return report["estimator"], params, (asked or {}).get("script", "")
    return "mlp", {}, ""
