"""A folder for devices without a network, and the parcels that come back: air gap.

What goes out are the very messages that MQTT would carry, and the metadata and files that the
artifact server would give. What comes in goes through the very intake of what MQTT brings: the
same checks, the same numbers, so that nothing counts twice, whichever way it comes and how often.
"""

import base64
import datetime
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection, Row, func, select

from shoal import sealed_message, topics, wire
from shoal.controller.access import audit
from shoal.controller.fleet import devices
from shoal.controller.fleet.renewal import Prover, Renewing
from shoal.controller.host.context import Context
from shoal.controller.ingest.ingest import ingest
from shoal.controller.offline.records import FolderBlob, FolderPlan, ParcelReceipt
from shoal.controller.rollouts import assignments
from shoal.controller.store.tables import audit as audit_table
from shoal.controller.store.tables import device, device_event, window
from shoal.errors import (
    AbsentError,
    BundleError,
    ConflictError,
    DeniedError,
    InputError,
    OversizeError,
)
from shoal.sealed_message import DOWN, UP, BatchMessage, MessageBatch

#: Devices of one folder; messages taken in one transaction.
MOST, BATCH = 200, 500
#: Newest messages of a device that are told to have arrived, and how many in one letter.
ACKED, ACKS = 50_000, 7_000
EXPORT, IMPORT, REFUSE = "folder.export", "folder.import", "folder.refuse"
#: Kinds of message that wait in an outbox, and the inventory. A status would lie by arriving late.
_KINDS = ("window", "event", "inventory")
_AGAIN = "export it again on the device"


class Proven(Prover, Protocol):
    """Who sealed a parcel. ends_s: of its certificate; key_sha256: of the key in it."""

    @property
    def ends_s(self) -> float: ...
    @property
    def key_sha256(self) -> str: ...


class Sealing(Renewing, Protocol):
    """The device CA. prove: with None for the time, an expired certificate proves as well."""

    @property
    def controller_chain(self) -> str: ...
    def sign_as_controller(self, message: bytes) -> bytes: ...
    def prove(
        self, certificate: str, proof: bytes, message: bytes, now: float | None
    ) -> Proven: ...


def export(
    ctx: Context, authority: Sealing, *, actor: str, names: Sequence[str], site: str
) -> FolderPlan:
    """What a folder for these devices, and all of `site`, holds.

    Raises InputError for none or too many, AbsentError for a device that is none, ConflictError
    for one that was decommissioned.
    """
    now = ctx.clock()
    wanted = _named(ctx, names, site)
    told: dict[str, wire.Assignment | None] = {}
    acks: dict[str, list[wire.Ack]] = {}
    with ctx.store.write() as db:
        for name in wanted:
            told[name] = assignments.sign_anew(db, ctx, name)
            acks[name] = _acks(db, name)
        orders = [order for name in wanted for order in assignments.orders_of(db, name)]
        releases = sorted({order.release for order in orders})
        audit.record(db, ctx, actor, EXPORT, site or wanted[0], devices=wanted, releases=releases)
    metadata = ctx.signer.folder_metadata(sorted({order.model for order in orders}), now)
    return FolderPlan(
        ca=authority.root_fingerprint,
        made_at=now,
        valid_until_at=min(now + assignments.LIFE_S, *map(_expiry, metadata.values())),
        devices=wanted,
        releases=releases,
        metadata={name: data.decode() for name, data in metadata.items()},
        parcels={name: _parcel(ctx, authority, name, told[name], acks[name]) for name in wanted},
        blobs=_blobs(ctx, told.values()),
    )


def take_in(ctx: Context, authority: Sealing, *, actor: str, data: bytes) -> ParcelReceipt:
    """Take a parcel that a device sealed: what is in it counts once, however often it comes.

    Raises BundleError or OversizeError for what is no whole parcel, DeniedError for one that is
    not sealed by the key of a device that is enrolled now. Who brought that is written down, too.
    """
    try:
        who, taken = _open(authority, data)
        letters, before = _admit(ctx, who, taken, actor, data)
    except (BundleError, OversizeError, DeniedError) as error:
        sha256 = hashlib.sha256(data).hexdigest()
        with ctx.store.write() as db:
            audit.record(db, ctx, actor, REFUSE, "parcel", sha256=sha256, why=error.message)
        raise
    batch = [(topics.up(taken.device, one.kind), one.payload) for one in letters]
    for start in range(0, len(batch), BATCH):
        ingest(ctx, batch[start : start + BATCH])
    with ctx.store.read() as db:
        fresh = _count(db, taken.device) - before
    return ParcelReceipt(
        device=taken.device,
        made_at=taken.made_s,
        trip=taken.trip,
        part=taken.part,
        parts=taken.parts,
        letters=len(taken.letters),
        fresh=fresh,
    )


# --- out ------------------------------------------------------------------------------------------


def _named(ctx: Context, names: Sequence[str], site: str) -> list[str]:
    for name in names:
        if devices.get_device(ctx, name).state != devices.ENROLLED:
            raise ConflictError(f"device {name} was decommissioned", "enrol it anew first")
    found = set(names)
    if site:
        query = select(device.c.name).where(
            device.c.site == site, device.c.state == devices.ENROLLED
        )
        with ctx.store.read() as db:
            of_site = set(db.scalars(query.limit(MOST + 1)))
        if not of_site:
            raise AbsentError("site", site, "shoal device list says which there are")
        found |= of_site
    if not 0 < len(found) <= MOST:
        raise InputError(f"{len(found)} devices", f"name 1 to {MOST} devices, or a site of so many")
    return sorted(found)


def _parcel(
    ctx: Context,
    authority: Sealing,
    name: str,
    told: wire.Assignment | None,
    acks: Sequence[wire.Ack],
) -> str:
    messages: list[wire.Message] = [*([told] if told else []), *acks]
    made = MessageBatch(
        device=name,
        made_s=ctx.clock(),
        trip=f"{ctx.random.getrandbits(32):08x}",
        letters=[BatchMessage(wire.DOWN_KIND[type(one)], wire.encode(one)) for one in messages],
        roots=ctx.signer.director_roots(0),
    )
    chain = authority.controller_chain
    sealed = sealed_message.seal(made, DOWN, chain, authority.sign_as_controller)
    return base64.b64encode(sealed).decode()


def _acks(db: Connection, name: str) -> list[wire.Ack]:
    """Numbers that are in the database, of each boot: the newest ACKED to have arrived."""
    seqs: dict[str, list[int]] = {}
    for table in (window, device_event):
        query = (
            select(table.c.boot, table.c.seq)
            .where(table.c.device == name)
            .order_by(table.c.received_at.desc())
            .limit(ACKED)
        )
        for boot, seq in db.execute(query):
            seqs.setdefault(boot, []).append(seq)
    return [
        wire.Ack(boot=boot, seqs=some)
        for boot, found in seqs.items()
        for some in _chunks(sorted(found))
    ]


def _chunks(seqs: list[int]) -> list[list[int]]:
    return [seqs[start : start + ACKS] for start in range(0, len(seqs), ACKS)]


def _blobs(ctx: Context, told: Any) -> list[FolderBlob]:
    urls = {
        sha256: url
        for one in told
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


# --- in -------------------------------------------------------------------------------------------


def _open(authority: Sealing, data: bytes) -> tuple[Proven, MessageBatch]:
    """Who sealed it, and what is in it. A byte that went wrong on its way looks like a forgery."""
    sealed = sealed_message.unseal(data)
    message = sealed_message.signed_bytes(UP, sealed.body)
    try:
        who = authority.prove(sealed.certificate, sealed.signature, message, None)
    except DeniedError as error:
        otherwise = error.hint or "find out who wrote it"
        raise DeniedError(
            f"the parcel was damaged on its way, or is forged: {error.message}",
            f"{_AGAIN} first; if that is refused as well: {otherwise}",
        ) from error
    return who, sealed_message.decode_batch(sealed.body)


def _admit(
    ctx: Context, who: Proven, taken: MessageBatch, actor: str, data: bytes
) -> tuple[list[BatchMessage], int]:
    """What of a parcel is taken in, and how many messages there are of its device before that.

    It is written down who brings it, before anything of it counts.
    """
    with ctx.store.write() as db:
        row = _check(db, ctx, who, taken)
        letters = [one for one in taken.letters if one.kind in _KINDS]
        if not _newest(db, row, taken):
            letters = [one for one in letters if one.kind != "inventory"]
        audit.record(
            db, ctx, actor, IMPORT, taken.device, trip=taken.trip, part=taken.part,
            parts=taken.parts, made_s=taken.made_s, letters=len(taken.letters),
            sha256=hashlib.sha256(data).hexdigest(), session=row.session,
        )  # fmt: skip
        return letters, _count(db, taken.device)


def _check(db: Connection, ctx: Context, who: Proven, taken: MessageBatch) -> Row[Any]:
    """The device's row, when it may speak; an expired certificate is good while its key is ours.

    A device without a network cannot renew, and what it saw must not be lost for that.
    """
    if taken.device != who.device:
        raise DeniedError(f"device {who.device} cannot speak for {taken.device}")
    columns = ("state", "generation", "key_sha256", "session", "seen_at")
    query = select(*(device.c[column] for column in columns))
    row = db.execute(query.where(device.c.name == who.device)).one_or_none()
    if row is None or row.state != devices.ENROLLED or row.generation != who.generation:
        raise DeniedError(
            f"the parcel's certificate is of no device {who.device} that is enrolled now",
            f"enrol it again, then {_AGAIN}",
        )
    if who.ends_s < ctx.clock() and who.key_sha256 != row.key_sha256:
        raise DeniedError("the parcel is sealed by a key of before a renewal", _AGAIN)
    return row


def _newest(db: Connection, row: Row[Any], taken: MessageBatch) -> bool:
    """Whether nothing newer is known of the device: an old inventory must not undo a new one."""
    query = (
        select(audit_table.c.detail)
        .where(audit_table.c.subject == taken.device, audit_table.c.verb == IMPORT)
        .order_by(audit_table.c.id.desc())
        .limit(100)
    )
    before = list(db.scalars(query))
    unheard = row.session == (before[0]["session"] if before else "")
    since = 0.0 if unheard else row.seen_at
    return taken.made_s >= max([since, *(detail["made_s"] for detail in before)])


def _count(db: Connection, name: str) -> int:
    tables = (window, device_event)
    counts = [select(func.count()).select_from(t).where(t.c.device == name) for t in tables]
    return sum(db.scalar(count) or 0 for count in counts)
