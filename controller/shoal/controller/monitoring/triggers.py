"""Drift, and newly labelled data: train again, once for each alert, and once for the same data."""

import logging
from typing import Any

from sqlalchemy import Connection, Select, select

from shoal.controller.alerts import alerts
from shoal.controller.host.context import Context
from shoal.controller.store.tables import alert, dataset, model, operation, release
from shoal.controller.training import training
from shoal.controller.training.jobs import ESTIMATORS, IMPORTED
from shoal.errors import ShoalError

_log = logging.getLogger(__name__)
ACTOR = "automation"


def evaluate(ctx: Context) -> int:
    """Start what policies ask for; how many trainings were started.

    A standing drift alert of a model with `retrain_on_drift`, and a version of the model's dataset
    that is newer than the alert and than what the drifting release was trained on. Training gets
    the release's own estimator and parameters, and its release is signed as a candidate only.
    """
    with ctx.store.read() as db:
        due = {  # several sites that drifted ask for one training, not for one each
            (row.model, wanted): row.id
            for row in db.execute(_standing()).all()
            if (wanted := _dataset(db, row.policy_dataset, row.release, row.opened_at))
            and not _fired(db, row.model, row.id, wanted)
        }
        kinds = {name: _kind(db, name) for name, _ in due}
    for (name, wanted), ident in due.items():
        estimator, params = kinds[name]
        try:
            training.start_training(
                ctx, actor=ACTOR, model=name, dataset=wanted, estimator=estimator, params=params,
                trigger=f"{training.AUTOMATIC}{ident}",
            )  # fmt: skip
        except ShoalError as error:
            _log.warning("alert %d cannot train %s anew: %s", ident, name, error)
    return len(due)


def _standing() -> Select[Any]:
    """Drift alerts that stand, of models that want to be retrained."""
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
            alert.c.state.in_(alerts.STANDING),
            model.c.retrain_on_drift,
            model.c.dataset != "",
        )
    )


def _dataset(db: Connection, policy: str, ref: str, opened_at: float) -> str:
    """The newest version of the policy's dataset if it is new enough, else ""."""
    name = policy.partition("@")[0]
    newest = db.execute(
        select(dataset.c.version, dataset.c.created_at)
        .where(dataset.c.name == name)
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


def _fired(db: Connection, name: str, ident: int, wanted: str) -> bool:
    """Whether this alert has asked already; of newer data it may ask again where it failed."""
    asked = db.execute(
        select(operation.c.params, operation.c.state).where(
            operation.c.kind == training.TRAIN, operation.c.subject == name
        )
    )
    return any(_same_cause(row, f"{training.AUTOMATIC}{ident}", wanted) for row in asked)


def _same_cause(asked: Any, trigger: str, wanted: str) -> bool:
    """Whether a training answers the alert already: its own, or another site's on these data."""
    mine, same = asked.params.get("trigger") == trigger, asked.params.get("dataset") == wanted
    automatic = str(asked.params.get("trigger", "")).startswith(training.AUTOMATIC)
    vain = asked.state in ("failed", "canceled")
    return (mine and (same or not vain)) or (automatic and same)


def _kind(db: Connection, name: str) -> tuple[str, dict[str, Any]]:
    """Estimator and parameters of the model's newest trained release.

    Not its choice of sites: what drifted is what has to be learnt now.
    """
    reports = db.scalars(
        select(release.c.report).where(release.c.model == name).order_by(release.c.version.desc())
    )
    for report in reports:
        if report.get("estimator", "") in ESTIMATORS.keys() - {IMPORTED}:
            params = {k: v for k, v in report.get("params", {}).items() if k != "sites"}
            return report["estimator"], params
    return "mlp", {}
