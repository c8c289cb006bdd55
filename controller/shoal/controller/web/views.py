"""The console: every screen registers itself on one blueprint."""

from shoal.controller.web import (
    alerts,
    device,
    drift,
    fleet,
    journal,
    models,
    rollouts,
    rounds,
    session,
)
from shoal.controller.web.screen import blueprint

__all__ = ["SCREENS", "blueprint"]

#: Modules that hold the screens.
SCREENS = (alerts, device, drift, fleet, journal, models, rollouts, rounds, session)
