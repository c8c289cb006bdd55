"""Sends what is due: each attempt is written down before it is made, and its end after.

A message is delivered at least once: one whose attempt was cut is sent again with the same id.
After a failure it waits FIRST_S, four times longer each time, LONGEST_S at most, MOST attempts.
"""

import datetime as dt
import logging
from typing import Any
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import Row, func, insert, select, update

from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft
from shoal.controller.host.context import Context
from shoal.controller.notifications import channels, webhook_signature
from shoal.controller.notifications.io import outbound
from shoal.controller.notifications.records import FAILED, PENDING, SENT, Item, body, title
from shoal.controller.store.notification_tables import attempt, channel, delivery
from shoal.errors import DeniedError, LinkError, ShoalError

_log = logging.getLogger(__name__)
FIRST_S, LONGEST_S, MOST = 30.0, 3_600.0, 8
#: Deliveries in one step, one for each channel at a time: a slow one delays the others by seconds.
BATCH = 10
#: Schemes of Apprise whose host is a server that one runs oneself.
_OWN_SERVER = ("mail", "mmost", "matrix", "rocket", "ntfy", "gotify", "signal", "nctalk")


class RefusedError(ShoalError):
    """The receiver refuses the message: it would again."""

    code = "refused"


class Sender:
    """Sends the deliveries of one controller; there must be no second."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def step(self) -> int:
        """Try what is due, the oldest of each channel; how many."""
        is_due = (delivery.c.due_at > 0) & (delivery.c.due_at <= self._ctx.clock())
        first = select(delivery.c.id, func.min(delivery.c.due_at)).where(is_due)
        with self._ctx.store.read() as db:
            due = list(db.scalars(first.group_by(delivery.c.channel).limit(BATCH)))
        for ident in due:
            self._try(ident)
        return len(due)

    def _try(self, ident: str) -> None:
        ctx, now = self._ctx, self._ctx.clock()
        with ctx.store.write() as db:
            joined = select(delivery, channel.c.kind).join(
                channel, channel.c.name == delivery.c.channel
            )
            row = db.execute(joined.where(delivery.c.id == ident)).first()
            if row is None:
                return
            number = row.attempts + 1
            db.execute(insert(attempt).values(delivery=ident, number=number, began_at=now))
            again_at = now + min(LONGEST_S, FIRST_S * 4.0 ** (number - 1))
            one = update(delivery).where(delivery.c.id == ident)
            db.execute(one.values(attempts=number, due_at=again_at))
        error, outcome = "", "sent"
        try:
            self._send(row)
        except (DeniedError, RefusedError) as refusal:
            error, outcome = str(refusal), "refused"
        except Exception as failure:  # noqa: BLE001 - whatever a service's library raises
            known = isinstance(failure, ShoalError)
            error, outcome = str(failure) if known else type(failure).__name__, "failed"
        self._ended(row, number, outcome, error[:500])

    def _send(self, row: Row[Any]) -> None:
        items = msgspec.convert(row.events, list[Item])
        address = channels.address(self._ctx, row.channel)
        private = self._ctx.settings.alerts.notify_private
        if row.kind == "webhook":
            send_webhook(address, row.id, items, int(self._ctx.clock()), private=private)
        else:
            send_apprise(address.url, title(items), body(items), private=private)

    def _ended(self, row: Row[Any], number: int, outcome: str, error: str) -> None:
        ctx, now = self._ctx, self._ctx.clock()
        values: dict[str, Any] = {"error": error}
        if outcome == "sent":
            values |= {"state": SENT, "due_at": 0.0, "ended_at": now}
        elif outcome == "refused" or number >= MOST:
            values |= {"state": FAILED, "due_at": 0.0, "ended_at": now}
        else:
            values |= {"state": PENDING}
        mine = (attempt.c.delivery == row.id) & (attempt.c.number == number)
        key = f"notifications/{row.channel}"
        with ctx.store.write() as db:
            db.execute(
                update(attempt).where(mine).values(ended_at=now, outcome=outcome, error=error)
            )
            db.execute(update(delivery).where(delivery.c.id == row.id).values(**values))
            if values["state"] == FAILED:
                alerts.raise_alert(db, ctx, alert_draft(key, row.channel, error))
            elif values["state"] == SENT:
                alerts.close(db, ctx, key, "a message was delivered")
        if error:
            _log.warning("channel %s, attempt %d: %s", row.channel, number, error)


def send_webhook(
    address: channels.Address, ident: str, items: list[Item], now: int, *, private: bool
) -> None:
    """Post a signed message. RefusedError, DeniedError, LinkError."""
    stamp = dt.datetime.fromtimestamp(now, dt.UTC).isoformat()
    data = [msgspec.to_builtins(item) for item in items]
    kind = f"alert.{items[0].what}" if len(items) == 1 else "alert.digest"
    payload = msgspec.json.encode({"type": kind, "timestamp": stamp, "data": {"alerts": data}})
    signed = webhook_signature.headers(address.secret, f"msg_{ident}", now, payload)
    headers = {**signed, "content-type": "application/json", "user-agent": "shoal"}
    status = outbound.request("POST", address.url, private=private, body=payload, headers=headers)
    if 200 <= status < 300:
        return
    if 300 <= status < 500 and status not in (408, 409, 425, 429):
        raise RefusedError(f"the receiver answered {status}", "check the channel's address")
    raise LinkError(f"the receiver answered {status}")


def send_apprise(url: str, subject: str, text: str, *, private: bool) -> None:
    """Send by Apprise. DeniedError, LinkError, without what is secret in the URL."""
    import apprise  # loaded with the first message: 0.3 s

    parts = urlsplit(url)
    if parts.scheme.startswith(_OWN_SERVER):
        outbound.check_host(parts.hostname or "", private=private)
    service = apprise.Apprise()
    if not service.add(url):
        raise RefusedError("Apprise does not understand the channel's URL", "see its service page")
    with apprise.LogCapture(level=logging.WARNING) as log:
        if not service.notify(title=subject, body=text):
            lines = log.getvalue().strip().splitlines() or ["no reason given"]
            raise LinkError(f"{parts.scheme}: {_without_secrets(lines[-1], url)}")


def _without_secrets(line: str, url: str) -> str:
    """A line of Apprise's log without any part of the URL but its host.

    >>> _without_secrets("bad hunter22 at mail.example", "mailto://ana:hunter22@mail.example")
    'bad *** at mail.example'
    """
    parts = urlsplit(url)
    secret = [parts.username, parts.password, *parts.path.split("/"), *parts.query.split("&")]
    for text in sorted((one for one in secret if one and len(one) > 3), key=len, reverse=True):
        line = line.replace(text, "***")
    return line[:300]


def alert_draft(key: str, name: str, error: str) -> Draft:
    """Alert of a channel whose messages are not delivered."""
    return Draft(
        key=key, kind="notifications", severity="warning",
        title=f"Notifications to {name} are not delivered", detail=f"The last error: {error}.",
        next_step=f"Mend the channel and test it: shoal notify test {name}; then: shoal notify log "
        f"--channel {name}",
    )  # fmt: skip
