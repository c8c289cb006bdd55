"""The engine of a controller: its periodic jobs, domain by domain."""

import gc
import threading
import time
from collections.abc import Callable

from shoal.controller.alerts import members, upkeep
from shoal.controller.conditions import certificates, clocks, drafts, offline
from shoal.controller.deletion import deletion, unused_files
from shoal.controller.engine import Engine, Periodic
from shoal.controller.federated.checkpoints import promotion, retention
from shoal.controller.federated.planning import drift_trigger
from shoal.controller.fleet import devices, duplicate_devices
from shoal.controller.host.context import Context
from shoal.controller.ingest import flooding
from shoal.controller.mlflow.following import Follower
from shoal.controller.mlflow.io.server import Server
from shoal.controller.mlflow.mirror import Mirror
from shoal.controller.monitoring import (
    apply_baseline_changes,
    drift_monitor,
    findings,
    triggers,
)
from shoal.controller.notifications import outbox
from shoal.controller.notifications.io import heartbeat, sender
from shoal.controller.operations.io.runner import OperationRunner
from shoal.controller.rollouts import (
    assignments,
    convergence,
    quarantine_withdrawal,
    release_revocation,
    stepper,
    undeployments,
)
from shoal.controller.rollouts.io.delta_prefetch import DeltaPrefetcher
from shoal.controller.store import telemetry_retention
from shoal.controller.training.io import inspection
from shoal.mqtt import Link


def run(ctx: Context, stopping: threading.Event) -> None:
    """Run the engine until `stopping` is set."""
    _collect_rarely()
    operations = OperationRunner(ctx)
    try:
        build_engine(ctx, stopping, operations).run()
    finally:
        operations.stop()


def _collect_rarely() -> None:
    """Let the garbage collector look at what a batch leaves, not at all that was imported.

    A batch of ingest makes tens of thousands of objects and no cycles: the default threshold of 700
    collects again and again, for a sixth of the CPU of a window.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)


def build_engine(
    ctx: Context,
    stopping: threading.Event,
    operations: OperationRunner,
    link: Callable[..., Link] = Link,
    monotonic: Callable[[], float] = time.monotonic,
) -> Engine:
    """The engine with all of its jobs. link, monotonic: replaced by a fleet in memory."""
    return Engine(ctx, stopping, periodic_jobs(ctx, operations), link, monotonic)


def periodic_jobs(ctx: Context, operations: OperationRunner) -> list[Periodic]:
    """Jobs of every domain, in the order in which they run."""
    drift_s = min(5.0, max(0.25, ctx.settings.fleet.window_s / 8))
    drift_memory = drift_monitor.DriftMemory(ctx.settings.drift.memory_mb)

    def evaluate_drift() -> None:
        apply_baseline_changes.apply_all(ctx, drift_memory)
        drift_monitor.evaluate_all(ctx, drift_memory)

    return [
        Periodic("rollouts", 0.25, lambda: stepper.step_all(ctx), on_message=True, quiet_s=15.0),
        Periodic("groups", 0.25, lambda: convergence.step_all(ctx), on_message=True, quiet_s=15.0),
        Periodic("undeployments", 0.25, lambda: undeployments.step_all(ctx), quiet_s=5.0),
        Periodic("undeployments of updated agents", 15.0, lambda: undeployments.look_again(ctx)),
        Periodic("operations", 0.25, operations.step),
        Periodic("drift", drift_s, evaluate_drift, own_thread=True, quiet_s=4 * drift_s),
        Periodic("delta prefetch", 0.25, DeltaPrefetcher(ctx).poll, own_thread=True, quiet_s=15.0),
        Periodic("drift alerts", 2.0, lambda: findings.close_alerts(ctx), quiet_s=15.0),
        Periodic(
            "quarantine alerts", 2.0, lambda: quarantine_withdrawal.close_alerts(ctx), quiet_s=15.0
        ),
        Periodic("revocations", 1.0, lambda: release_revocation.step_all(ctx), quiet_s=15.0),
        Periodic("signing of revocations", 60.0, lambda: release_revocation.sign_all(ctx)),
        Periodic(
            "alerts of revocations", 2.0, lambda: release_revocation.close_alerts(ctx), quiet_s=15.0
        ),
        Periodic("retraining", 1.0, lambda: triggers.evaluate(ctx), quiet_s=15.0),
        Periodic("rounds on drift", 5.0, lambda: drift_trigger.evaluate(ctx), quiet_s=60.0),
        Periodic(
            "candidate releases", 5.0, lambda: promotion.promote_candidates(ctx), quiet_s=60.0
        ),
        Periodic("offline devices", 5.0, lambda: devices.mark_offline(ctx)),
        Periodic("overdue devices", 2.0, lambda: offline.step(ctx), quiet_s=5.0),
        Periodic("certificates", 600.0, lambda: certificates.step(ctx)),
        Periodic("conditions", 1.0, lambda: members.step(ctx, drafts.draft), quiet_s=5.0),
        Periodic("alerts", 1.0, lambda: upkeep.upkeep(ctx), quiet_s=5.0),
        Periodic("notifications", 2.0, lambda: outbox.collect(ctx), quiet_s=15.0),
        Periodic("deliveries", 2.0, sender.Sender(ctx).step, own_thread=True, quiet_s=5.0),
        *_heartbeat(ctx),
        *_mlflow(ctx),
        Periodic("clocks", 86_400.0, lambda: clocks.look_again(ctx, drafts.draft)),
        Periodic("flood alerts", 60.0, lambda: flooding.close_alerts(ctx)),
        Periodic("duplicate devices", 60.0, lambda: duplicate_devices.close_alerts(ctx)),
        Periodic("assignment renewal", 600.0, lambda: assignments.renew(ctx)),
        Periodic("telemetry retention", 3_600.0, lambda: telemetry_retention.delete_expired(ctx)),
        Periodic("retention of alerts", 3_600.0, lambda: upkeep.delete_expired(ctx)),
        Periodic("retention of deliveries", 3_600.0, lambda: outbox.delete_expired(ctx)),
        Periodic("deletions", 30.0, lambda: deletion.finish_all(ctx)),
        Periodic("unused files", 5.0, lambda: unused_files.free(ctx), quiet_s=60.0),
        Periodic("checkpoint retention", 3_600.0, lambda: retention.prune(ctx)),
    ]


def _mlflow(ctx: Context) -> list[Periodic]:
    settings = ctx.settings.mlflow
    if not settings.url:
        return []
    follower = Follower(ctx, Server(settings, ctx.folder), inspection.read_facts)
    mirror = Mirror(ctx, Server(settings, ctx.folder))
    jobs = [Periodic("mlflow runs", 2.0, mirror.step, own_thread=True)] if settings.runs else []
    return [*jobs, Periodic("mlflow aliases", 2.0, follower.step, own_thread=True)]


def _heartbeat(ctx: Context) -> list[Periodic]:
    settings = ctx.settings.alerts
    if not settings.heartbeat_url:
        return []
    every_s = settings.heartbeat_s
    return [Periodic("heartbeat", every_s, lambda: heartbeat.send(ctx), own_thread=True)]
