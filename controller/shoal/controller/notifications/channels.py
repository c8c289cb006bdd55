"""Channels: created by an admin, tested, removed. Addresses with secrets are files of mode 0600."""

import base64
import re
import secrets
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import Connection, Row, delete, insert, select, update

from shoal.controller.access import audit
from shoal.controller.alerts.records import SEVERITIES
from shoal.controller.host.context import Context
from shoal.controller.notifications import quiet_hours, webhook_signature
from shoal.controller.notifications.records import KINDS, PENDING, Attempt, Channel, Delivery, Item
from shoal.controller.store.notification_tables import attempt, channel, delivery
from shoal.durable import SECRET, write_durable
from shoal.errors import AbsentError, ConflictError, InputError

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LONGEST, MOST = 2_000, 50
#: Services of Apprise that send over the network to people; others run programs, show windows on
#: this machine, or post to any address without a signature.
SCHEMES = frozenset(
    (
        "mailto", "mailtos", "slack", "msteams", "workflows", "discord", "tgram", "mmost", "mmosts",
        "matrix", "matrixs", "rocket", "rockets", "gchat", "wxteams", "webex", "pover", "ntfy",
        "ntfys", "gotify", "gotifys", "opsgenie", "pagerduty", "zulip", "twilio", "ses", "sns",
        "signal", "signals", "victorops", "nctalk", "nctalks",
    )
)  # fmt: skip


class Address(msgspec.Struct, frozen=True):
    """What is secret of a channel: the whole URL, and a webhook's secret."""

    url: str
    secret: str = ""


def create(
    ctx: Context,
    *,
    actor: str,
    name: str,
    kind: str,
    url: str,
    secret: str = "",
    severity: str = "warning",
    sites: list[str],
    quiet: str = "",
    zone: str = "UTC",
    escalated_only: bool = False,
    digest_s: float = 0.0,
) -> Channel:
    """Create a channel; a webhook's secret is made where none is given, and returned only here.

    InputError for what is wrong; no message repeats the URL or the secret. ConflictError.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"name {name!r:.70}", "small letters, digits and -, up to 63")
    if severity not in SEVERITIES:
        raise InputError(f"severity {severity!r:.40}", f"use one of: {', '.join(SEVERITIES)}")
    if not 0 <= digest_s <= 86_400 or len(sites) > 500:
        raise InputError("digest or sites", "a digest of up to a day, up to 500 sites")
    quiet_hours.check(quiet, zone)
    target = _check_url(kind, url)
    if kind == "webhook":
        made = base64.b64encode(secrets.token_bytes(32)).decode()
        secret = secret or webhook_signature.PREFIX + made
        webhook_signature.key(secret)
    row = Channel(
        name=name, kind=kind, target=target, severity=severity, sites=sites, quiet=quiet,
        zone=zone, escalated_only=escalated_only, digest_s=digest_s, created_at=ctx.clock(),
        created_by=actor, secret=secret,
    )  # fmt: skip
    values = msgspec.structs.asdict(row)
    del values["secret"]
    with ctx.store.write() as db:
        known = set(db.scalars(select(channel.c.name)))
        if name in known:
            raise ConflictError(f"a channel {name!r} is there", f"shoal notify remove {name}")
        if len(known) >= MOST:
            raise InputError(f"{MOST} channels are there already", "remove one: shoal notify list")
        _write(ctx, name, Address(url, secret))
        db.execute(insert(channel).values(**values))
        audit.record(db, ctx, actor, "channel.create", name, kind=kind, target=target)
    return row


def list_channels(ctx: Context) -> list[Channel]:
    """All channels by name, without secrets."""
    with ctx.store.read() as db:
        return [Channel.of_row(row) for row in db.execute(select(channel).order_by(channel.c.name))]


def remove(ctx: Context, *, actor: str, name: str) -> None:
    """Remove a channel, its secret and its deliveries. AbsentError."""
    with ctx.store.write() as db:
        mine = select(delivery.c.id).where(delivery.c.channel == name)
        db.execute(delete(attempt).where(attempt.c.delivery.in_(mine)))
        db.execute(delete(delivery).where(delivery.c.channel == name))
        if not db.execute(delete(channel).where(channel.c.name == name)).rowcount:
            raise _absent(name)
        audit.record(db, ctx, actor, "channel.remove", name)
    _path(ctx, name).unlink(missing_ok=True)


def send_test(ctx: Context, *, actor: str, name: str) -> str:
    """Queue a test message, whatever the hour; the delivery's id. AbsentError."""
    now = ctx.clock()
    item = Item(
        event=0, alert=0, at=now, what="opened", severity="info", kind="test", site="",
        title="Test of Shoal's notifications", detail=f"{actor} asked for it.",
        next_step="nothing to do",
    )  # fmt: skip
    ident = uuid.uuid4().hex
    with ctx.store.write() as db:
        if db.scalar(select(channel.c.name).where(channel.c.name == name)) is None:
            raise _absent(name)
        db.execute(
            insert(delivery).values(
                id=ident, channel=name, state=PENDING, events=[msgspec.structs.asdict(item)],
                created_at=now, due_at=now,
            )
        )  # fmt: skip
        audit.record(db, ctx, actor, "channel.test", name)
    return ident


def deliveries(ctx: Context, name: str = "", state: str = "", limit: int = 50) -> list[Delivery]:
    """The newest deliveries, each with its attempts."""
    wanted = [delivery.c[k] == v for k, v in {"channel": name, "state": state}.items() if v]
    query = select(delivery).where(*wanted).order_by(delivery.c.created_at.desc()).limit(limit)
    with ctx.store.read() as db:
        return [_delivery(db, row) for row in db.execute(query).all()]


def get_delivery(ctx: Context, ident: str) -> Delivery:
    """One delivery; AbsentError."""
    with ctx.store.read() as db:
        row = db.execute(select(delivery).where(delivery.c.id == ident)).first()
        if row is None:
            raise AbsentError("delivery", ident, "list them: shoal notify log")
        return _delivery(db, row)


def retry(ctx: Context, *, actor: str, id: str) -> Delivery:  # noqa: A002 - the API's word
    """Try a failed delivery again now. AbsentError."""
    get_delivery(ctx, id)
    with ctx.store.write() as db:
        again = update(delivery).where(delivery.c.id == id, delivery.c.state == "failed")
        db.execute(again.values(state=PENDING, due_at=ctx.clock()))
        audit.record(db, ctx, actor, "delivery.retry", id)
    return get_delivery(ctx, id)


def address(ctx: Context, name: str) -> Address:
    """The whole address of a channel; AbsentError if its file is lost."""
    try:
        return msgspec.json.decode(_path(ctx, name).read_bytes(), type=Address)
    except (OSError, msgspec.MsgspecError) as error:
        hint = f"create it again: shoal notify remove {name}"
        raise AbsentError("the address of channel", name, hint) from error


def _delivery(db: Connection, row: Row[Any]) -> Delivery:
    tries = select(attempt).where(attempt.c.delivery == row.id).order_by(attempt.c.number)
    found = [Attempt.of_row(one) for one in db.execute(tries)]
    events = msgspec.convert(row.events, list[Item])
    return Delivery.of_row(row, tries=found, events=events)


def _check_url(kind: str, url: str) -> str:
    """The address without its secrets."""
    if kind not in KINDS:
        raise InputError(f"kind {kind!r:.40}", f"use one of: {', '.join(KINDS)}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InputError("the address of a channel is no URL", "SCHEME://HOST/...") from error
    if len(url) > _LONGEST or not host:
        raise InputError("the address of a channel is no URL", "SCHEME://HOST/...")
    if kind == "webhook":
        if parts.scheme not in ("https", "http") or parts.username or parts.password:
            raise InputError("the address of a webhook", "https://HOST/PATH, without a password")
        return f"{parts.scheme}://{host}" + (f":{port}" if port else "")
    if parts.scheme not in SCHEMES:
        raise InputError(
            f"scheme {parts.scheme!r:.40} of an Apprise URL",
            f"one of: {', '.join(sorted(SCHEMES))}",
        )
    return f"{parts.scheme}://{host}" if parts.scheme.startswith("mail") else f"{parts.scheme}://"


def _write(ctx: Context, name: str, what: Address) -> None:
    folder = _path(ctx, name).parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durable(_path(ctx, name), msgspec.json.encode(what), SECRET)


def _path(ctx: Context, name: str) -> Path:
    return ctx.folder / "keys" / "channels" / f"{name}.json"


def _absent(name: str) -> AbsentError:
    return AbsentError("channel", name, "list them: shoal notify list")
