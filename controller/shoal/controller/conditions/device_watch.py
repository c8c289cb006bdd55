"""What a batch of messages says of the devices' condition, inside its transaction."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection

from shoal.controller.alerts import members
from shoal.controller.conditions import offline
from shoal.controller.conditions.drafts import draft
from shoal.controller.host.context import Context

_log = logging.getLogger(__name__)


def forget(db: Connection, ctx: Context, name: str) -> None:
    """Forget what a device showed, and its rhythm: it was decommissioned, or enrols anew."""
    offline.forget(db, name)
    members.forget(db, ctx, name, draft)


def note_batch(
    db: Connection, ctx: Context, devices: Mapping[str, Any], spoke: set[str], now: float
) -> None:
    """Learn from the devices that spoke, and end or raise what they show.

    devices   device -> its row before the batch: seen_at, site
    spoke     devices from which a message arrived
    """
    heard = {name: (devices[name].seen_at, devices[name].site) for name in spoke}
    dirty: set[str] = set()
    _guarded(db, lambda: dirty.update(offline.spoke(db, ctx, heard, now)))
    members.refresh(db, ctx, dirty, draft)


def _guarded(db: Connection, rule: Callable[[], object]) -> None:
    """Run a rule; one that fails undoes its own writes and costs no telemetry."""
    try:
        with db.begin_nested():
            rule()
    except Exception:  # noqa: BLE001 - a bug in a rule must not cost telemetry
        _log.exception("conditions of devices")
