"""Since when the controller listens: what it did not hear before is no silence of a device."""

from sqlalchemy import Connection

from shoal.controller.host.context import Context
from shoal.controller.store import stored_values

_NAME = "alerts.uptime"
#: Noted so often, seconds; a longer pause was an outage of the controller or its broker.
EVERY_S = 15.0
_PAUSE_S = 4 * EVERY_S


def note(ctx: Context, connected: bool) -> None:
    """Note that the engine runs, ingests and is connected to the broker; writing it proves that
    the database is live too."""
    if not connected:
        return
    now = ctx.clock()
    with ctx.store.write() as db:
        at, since = _read(db)
        if now - at > _PAUSE_S:
            since = now
        value = {"at": now, "since": since}
        stored_values.write(db, _NAME, value)


def is_current(db: Connection, now: float) -> bool:
    """Whether the controller listens: else nobody can be called silent."""
    return now - _read(db)[0] <= _PAUSE_S


def since(db: Connection) -> float:
    """Unix seconds; 0 when it was never noted."""
    return _read(db)[1]


def _read(db: Connection) -> tuple[float, float]:
    found = stored_values.read(db, _NAME) or {}
    return float(found.get("at", 0.0)), float(found.get("since", 0.0))
