"""The console's blueprint; importing the screens registers their routes."""

from shoal.controller.web import (
    administration,
    alerts,
    audit,
    baselines,
    datasets,
    deletion,
    device,
    drift,
    fleet,
    groups,
    lineage,
    models,
    needs,
    notifications,
    people,
    rollouts,
    rounds,
    runs,
    session,
    training,
    undeployments,
)
from shoal.controller.web.screen import blueprint

__all__ = ["SCREENS", "blueprint"]

#: Modules that hold the screens.
SCREENS = (
    administration, alerts, audit, baselines, datasets, deletion, device, drift, fleet, groups,
    models, needs, notifications, people, rollouts, rounds, runs, lineage, session, training,
    undeployments,
)  # fmt: skip
