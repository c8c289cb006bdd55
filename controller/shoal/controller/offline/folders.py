"""Offline bundles for air-gapped devices: export, and import of the sealed messages they return.

An export holds the messages that MQTT would deliver, and the metadata and files of the artifact
server. An import goes through the same ingest as messages from MQTT, with the same validation and
deduplication, so a message counts once, whichever way and however often it arrives.
"""

import base64
import datetime
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select

from shoal import sealed_message, topics, wire
from shoal.controller.access import audit
from shoal.controller.fleet import devices
from shoal.controller.fleet.certificates import DeviceCA, Proven
from shoal.controller.host.context import Context
from shoal.controller.ingest.ingest import ingest
from shoal.controller.offline.records import FolderBlob, FolderPlan, ParcelReceipt
from shoal.controller.rollouts import assignment_messages, assignments
from shoal.controller.store import arrivals
from shoal.controller.store.tables import audit as audit_table
from shoal.controller.store.tables import device
from shoal.errors import (
    AbsentError,
    BundleError,
    ConflictError,
    DeniedError,
    InputError,
    OversizeError,
)
from shoal.sealed_message import DOWN, UP, BatchMessage, MessageBatch

#: Devices in one bundle, at most; messages ingested in one transaction.
MOST_DEVICES, BATCH = 200, 500
#: Newest messages of a device that are acked, and how many in one Ack.
ACKED, ACKS = 50_000, 7_000
EXPORT, IMPORT, REFUSE = "folder.export", "folder.import", "folder.refuse"
#: Kinds that are imported: those of an outbox, and the inventory. A late status would be wrong.
_KINDS = ("window", "event", "inventory")
_AGAIN = "export it again on the device"


def export(
    ctx: Context, authority: DeviceCA, *, actor: str, names: Sequence[str], site: str
) -> FolderPlan:
    """Contents of an offline bundle for these devices and all of `site`.

    Raises InputError for none or too many, AbsentError for an unknown device, ConflictError for a
    decommissioned one.
    """
    now = ctx.clock()
    wanted = _resolve(ctx, names, site)
    signed: dict[str, wire.Assignment | None] = {}
    acks: dict[str, list[wire.Ack]] = {}
    with ctx.store.write() as db:
        for name in wanted:
            signed[name] = assignments.renew_now(db, ctx, name)
            acks[name] = _acks(db, name)
        orders = [order for name in wanted for order in assignments.orders_of(db, name)]
        releases = sorted({order.release for order in orders if not order.removes})
        audit.record(db, ctx, actor, EXPORT, site or wanted[0], devices=wanted, releases=releases)
    metadata = ctx.signer.folder_metadata(sorted({order.model for order in orders}), now)
    return FolderPlan(
        ca=authority.root_fingerprint,
        made_at=now,
        valid_until_at=min(now + assignment_messages.LIFETIME_S, *map(_expiry, metadata.values())),
        devices=wanted,
        releases=releases,
        metadata={name: data.decode() for name, data in metadata.items()},
        parcels={name: _seal(ctx, authority, name, signed[name], acks[name]) for name in wanted},
        blobs=_blobs(ctx, signed.values()),
    )


def import_batch(ctx: Context, authority: DeviceCA, *, actor: str, data: bytes) -> ParcelReceipt:
    """Import a message that a device sealed; repeated imports have no further effect.

    Raises BundleError or OversizeError for incomplete or damaged data, DeniedError unless it is
    sealed by the key of a device that is enrolled now. Refusals are audited too.
    """
    try:
        sender, received = _open(authority, data)
        messages, before = _admit(ctx, sender, received, actor, data)
    except (BundleError, OversizeError, DeniedError) as error:
        sha256 = hashlib.sha256(data).hexdigest()
        with ctx.store.write() as db:
            audit.record(db, ctx, actor, REFUSE, "parcel", sha256=sha256, why=error.message)
        raise
    batch = [(topics.up(received.device, one.kind), one.payload) for one in messages]
    for start in range(0, len(batch), BATCH):
        ingest(ctx, batch[start : start + BATCH])
    with ctx.store.read() as db:
        fresh = arrivals.count_of(db, received.device) - before
    return ParcelReceipt(
        device=received.device,
        made_at=received.made_s,
        trip=received.trip,
        part=received.part,
        parts=received.parts,
        letters=len(received.letters),
        fresh=fresh,
    )


# --- export ---------------------------------------------------------------------------------------


def _resolve(ctx: Context, names: Sequence[str], site: str) -> list[str]:
    for name in names:
        if devices.get_device(ctx, name).state != devices.ENROLLED:
            raise ConflictError(f"device {name} was decommissioned", "enrol it again first")
    found = set(names)
    if site:
        query = select(device.c.name).where(
            device.c.site == site, device.c.state == devices.ENROLLED
        )
        with ctx.store.read() as db:
            of_site = set(db.scalars(query.limit(MOST_DEVICES + 1)))
        if not of_site:
            raise AbsentError("site", site, "list them: shoal device list")
        found |= of_site
    if not 0 < len(found) <= MOST_DEVICES:
        raise InputError(
            f"{len(found)} devices", f"name 1 to {MOST_DEVICES} devices, or a site of as many"
        )
    return sorted(found)


def _seal(
    ctx: Context,
    authority: DeviceCA,
    name: str,
    assignment: wire.Assignment | None,
    acks: Sequence[wire.Ack],
) -> str:
    messages: list[wire.Message] = [*([assignment] if assignment else []), *acks]
    content = MessageBatch(
        device=name,
        made_s=ctx.clock(),
        trip=f"{ctx.random.getrandbits(32):08x}",
        letters=[BatchMessage(wire.DOWN_KIND[type(one)], wire.encode(one)) for one in messages],
        roots=ctx.signer.director_roots(0),
    )
    chain = authority.controller_chain
    sealed = sealed_message.seal(content, DOWN, chain, authority.sign_as_controller)
    return base64.b64encode(sealed).decode()


def _acks(db: Connection, name: str) -> list[wire.Ack]:
    """Acks for the newest ACKED messages in the database, by boot."""
    return [
        wire.Ack(boot=boot, seqs=some)
        for boot, found in arrivals.acked_of(db, name, ACKED).items()
        for some in _chunks(found)
    ]


def _chunks(seqs: list[int]) -> list[list[int]]:
    return [seqs[start : start + ACKS] for start in range(0, len(seqs), ACKS)]


def _blobs(ctx: Context, signed: Iterable[wire.Assignment | None]) -> list[FolderBlob]:
    urls = {
        sha256: url
        for one in signed
        if one is not None
        for sha256, url in one.urls.items()
        if ">" not in sha256
    }
    return [
        FolderBlob(sha256=sha256, size=ctx.blobs.path(sha256).stat().st_size, url=urls[sha256])
        for sha256 in sorted(urls)
    ]


def _expiry(metadata: bytes) -> float:
    text = msgspec.json.decode(metadata)["signed"]["expires"]
    return datetime.datetime.fromisoformat(text).timestamp()


# --- import ---------------------------------------------------------------------------------------


def _open(authority: DeviceCA, data: bytes) -> tuple[Proven, MessageBatch]:
    """Sender and content. Damage in transport looks like a forgery."""
    sealed = sealed_message.unseal(data)
    message = sealed_message.signed_bytes(UP, sealed.body)
    try:
        sender = authority.prove(sealed.certificate, sealed.signature, message, None)
    except DeniedError as error:
        otherwise = error.hint or "find out who wrote it"
        raise DeniedError(
            f"the sealed message is damaged or forged: {error.message}",
            f"{_AGAIN} first; if that is refused as well: {otherwise}",
        ) from error
    return sender, sealed_message.decode_batch(sealed.body)


def _admit(
    ctx: Context, sender: Proven, received: MessageBatch, actor: str, data: bytes
) -> tuple[list[BatchMessage], int]:
    """Messages to ingest, and the number of the device's messages stored before.

    The import is audited before any message is ingested.
    """
    with ctx.store.write() as db:
        row = _check(db, ctx, sender, received)
        messages = [one for one in received.letters if one.kind in _KINDS]
        if not _is_newest(db, row, received):
            messages = [one for one in messages if one.kind != "inventory"]
        audit.record(
            db, ctx, actor, IMPORT, received.device, trip=received.trip, part=received.part,
            parts=received.parts, made_s=received.made_s, letters=len(received.letters),
            sha256=hashlib.sha256(data).hexdigest(), session=row.session,
        )  # fmt: skip
        return messages, arrivals.count_of(db, received.device)


def _check(db: Connection, ctx: Context, sender: Proven, received: MessageBatch) -> Row[Any]:
    """The sender's row; DeniedError unless it is enrolled with this certificate or its key.

    An expired certificate is accepted while its key is the enrolled one: a device without a
    network cannot renew, and its data must not be lost for that.
    """
    if received.device != sender.device:
        raise DeniedError(f"device {sender.device} cannot send messages of {received.device}")
    columns = ("state", "generation", "key_sha256", "session", "seen_at")
    query = select(*(device.c[column] for column in columns))
    row = db.execute(query.where(device.c.name == sender.device)).one_or_none()
    if row is None or row.state != devices.ENROLLED or row.generation != sender.generation:
        raise DeniedError(
            f"the certificate is of no device {sender.device} that is enrolled now",
            f"enrol it again, then {_AGAIN}",
        )
    if sender.ends_s < ctx.clock() and sender.key_sha256 != row.key_sha256:
        raise DeniedError("sealed with a key from before a renewal", _AGAIN)
    return row


def _is_newest(db: Connection, row: Row[Any], received: MessageBatch) -> bool:
    """Whether nothing newer of the device is stored: an old inventory must not undo a new one."""
    query = (
        select(audit_table.c.detail)
        .where(audit_table.c.subject == received.device, audit_table.c.verb == IMPORT)
        .order_by(audit_table.c.id.desc())
        .limit(100)
    )
    before = list(db.scalars(query))
    offline_since = row.session == (before[0]["session"] if before else "")
    since = 0.0 if offline_since else row.seen_at
    return received.made_s >= max([since, *(detail["made_s"] for detail in before)])
