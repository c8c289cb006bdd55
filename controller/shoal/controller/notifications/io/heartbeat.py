"""The dead man's switch: a URL that is fetched only while the controller hears its fleet."""

import logging

from shoal.controller.conditions import uptime
from shoal.controller.host.context import Context
from shoal.controller.notifications.io import outbound
from shoal.errors import ShoalError

_log = logging.getLogger(__name__)


def send(ctx: Context) -> bool:
    """Fetch the heartbeat's URL, if engine, ingest, broker link and database are live."""
    with ctx.store.read() as db:
        if not uptime.is_current(db, ctx.clock()):
            _log.warning("no heartbeat: ingest, broker link or database is not live")
            return False
    settings = ctx.settings.alerts
    try:
        status = outbound.request(
            "GET", settings.heartbeat_url, private=settings.notify_private, headers={}
        )
    except ShoalError as error:
        _log.warning("heartbeat: %s", error)
        return False
    return 200 <= status < 300
