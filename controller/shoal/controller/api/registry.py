"""All routes of the API."""

from shoal.controller.api import (
    alerts,
    audit,
    checkpoints,
    datasets,
    deletion,
    devices,
    folders,
    groups,
    lineage,
    mlflow,
    models,
    monitoring,
    needs,
    notifications,
    operations,
    people,
    rollouts,
    rounds,
    runs,
)
from shoal.controller.api.routing import Route, routes_of

MODULES = (
    people, devices, groups, folders, datasets, models, mlflow, runs, lineage, deletion,
    rollouts, rounds, checkpoints, alerts, notifications, needs, monitoring, audit, operations,
)  # fmt: skip


def all_routes() -> list[Route]:
    """Routes in the order of MODULES, then in source order."""
    return [route for module in MODULES for route in routes_of(module)]
