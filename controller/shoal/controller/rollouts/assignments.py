"""Assignments: the desired releases of each device, signed by the director.

One row per device, its version rising with every change; `sent_version` lags behind until the
engine has published it. Changes of many devices are prepared (read and signed) from a consistent
view, without the write lock, and stored where nothing has changed meanwhile: database and signed
message cannot differ.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, bindparam, func, or_, select, update

from shoal import manifest as manifests
from shoal import wire
from shoal.controller.host.context import Context
from shoal.controller.releases import quarantine
from shoal.controller.rollouts.assignment_messages import LIFETIME_S, MessageWriter
from shoal.controller.rollouts.release_files import ReleaseFiles
from shoal.controller.store.chunks import chunks
from shoal.controller.store.rollout_tables import assignment
from shoal.controller.store.tables import device, release
from shoal.errors import AbsentError, ConflictError
from shoal.manifest import Manifest
from shoal.orders import Order
from shoal.trust import CANDIDATE, RELEASE, RINGS, target_path

#: Remaining lifetime below which it is renewed.
RENEW_S = LIFETIME_S / 2
#: Assignments renewed in one transaction.
_RENEWED = 200
#: Seconds of orders that a broker may lose when it is killed; Mosquitto writes once a second.
LAST_S = 5.0
#: Release's state -> the role that signed it.
ROLES = {"released": RELEASE, "candidate": CANDIDATE}


class Signed(NamedTuple):
    """A signed release. data: bytes of the manifest; role: the role that signed it."""

    manifest: Manifest
    data: bytes
    role: str


class Change(NamedTuple):
    """A change of one device's orders.

    model   whose order is replaced; "" for none: the orders are signed again
    order   the new one; None withdraws: the device keeps the release that serves
    instead_of   changes nothing if another rollout than this has ordered the model since; "" always
    """

    device: str
    model: str = ""
    order: Order | None = None
    instead_of: str = ""


class Prepared(NamedTuple):
    """A signed assignment that is not stored yet.

    was      version that it replaces; None for none
    values   columns of the row
    """

    device: str
    was: int | None
    values: dict[str, Any]


class Pending(NamedTuple):
    """An assignment to publish. message: payload on the device's assignment topic; empty clears
    what the broker retains there."""

    device: str
    version: int
    message: bytes


def signed_release(db: Connection, ref: str) -> Signed:
    """The release "model@version"; AbsentError, ConflictError: it is unsigned or in quarantine."""
    role = role_of(db, ref)
    data = bytes(db.scalar(select(release.c.manifest).where(_is(ref))) or b"")
    return Signed(manifests.parse(data), data, role)


def role_of(db: Connection, ref: str) -> str:
    """The role that signed a release; the same errors as `signed_release`, without its manifest."""
    state = db.scalar(select(release.c.state).where(_is(ref)))
    if state is None:
        raise AbsentError("release", ref, "list them: shoal release list")
    if state not in ROLES:
        raise ConflictError(
            f"{ref} is {state}, not signed", f"sign it: shoal release publish {ref}"
        )
    quarantine.check_release(db, ref)
    return ROLES[state]


def rings(role: str) -> list[str]:
    """Rings whose devices accept a release signed by `role`."""
    return [ring for ring, roles in RINGS.items() if role in roles]


def order_of(release: Signed, *, rollout: str, attempt: int, deadline_at: float = 0.0) -> Order:
    """The order to run `release`, for any device."""
    manifest = release.manifest
    return Order(
        model=manifest.model,
        version=manifest.version,
        path=target_path(release.role, manifest.model, manifest.version),
        length=len(release.data),
        sha256=hashlib.sha256(release.data).hexdigest(),
        rollout=rollout,
        attempt=attempt,
        deadline_s=float(int(deadline_at)),
    )


# --- changes ------------------------------------------------------------------------------------


def prepare(db: Connection, ctx: Context, changes: Sequence[Change]) -> list[Prepared]:
    """Sign the changed orders of devices, without those of quarantined releases; writes nothing.

    changes   one a device at most; orders of other models stay
    """
    names = [change.device for change in changes]
    rows = _rows(db, names)
    writer = MessageWriter(db, ctx, names)
    prepared = []
    for change in changes:
        row = rows.get(change.device)
        orders = _orders(row)
        present = orders.get(change.model)
        if change.instead_of and present and present.rollout != change.instead_of:
            continue
        if change.model:
            orders.pop(change.model, None)
        if change.order is not None:
            orders[change.model] = change.order
        prepared.append(_signed(writer, change.device, row.version if row else None, orders))
    return prepared


def store(db: Connection, prepared: Sequence[Prepared]) -> set[str]:
    """Store what was prepared, for the next versions; the devices whose row has not changed since.

    Those that have changed keep what they have: prepare them again.
    """
    stale = outdated(db, prepared)
    valid = [one for one in prepared if one.device not in stale]
    new = [{"device": one.device, **one.values} for one in valid if one.was is None]
    changed = [{"of_device": one.device, **one.values} for one in valid if one.was is not None]
    if new:
        db.execute(assignment.insert(), new)
    if changed:
        db.execute(_UPDATE, changed)
    return {one.device for one in valid}


def outdated(db: Connection, prepared: Sequence[Prepared]) -> set[str]:
    """Devices whose assignment has changed since it was prepared."""
    names = [one.device for one in prepared]
    versions: dict[str, int] = {}
    for some in chunks(names):
        mine = assignment.c.device.in_(some)
        versions |= dict(
            db.execute(select(assignment.c.device, assignment.c.version).where(mine)).all()
        )
    return {one.device for one in prepared if versions.get(one.device) != one.was}


def change(db: Connection, ctx: Context, changes: Sequence[Change]) -> set[str]:
    """Prepare and store in one write transaction: for few devices; those that were changed."""
    return store(db, prepare(db, ctx, changes))


def know_removal(db: Connection, names: Sequence[str]) -> set[str]:
    """Those of the devices whose agents know the order to remove a model."""
    query = select(device.c.name, device.c.facts["removes"]).where(device.c.name.in_(names))
    facts: list[Any] = list(db.execute(query))
    return {name for name, removes in facts if removes == 1}  # SQLite has no true


def renew(ctx: Context) -> int:
    """Renew assignments past half of their lifetime, some in each transaction; how many."""
    due = select(assignment.c.device).where(
        assignment.c.expires_at < ctx.clock() + RENEW_S, assignment.c.expires_at > 0
    )
    renewed = 0
    while True:
        with ctx.store.read() as db:
            names = list(db.scalars(due.limit(_RENEWED)))
            prepared = prepare(db, ctx, [Change(name) for name in names])
        if not prepared:
            return renewed
        with ctx.store.write() as db:
            renewed += len(store(db, prepared))


def renew_now(db: Connection, ctx: Context, name: str) -> wire.Assignment | None:
    """Renew and return the device's assignment; None if it has none."""
    if name not in _rows(db, [name]):
        return None
    change(db, ctx, [Change(name)])
    message = wire.decode_down("assignment", bytes(_rows(db, [name])[name].message))
    assert isinstance(message, wire.Assignment)
    return message


def raise_floor(db: Connection, ctx: Context, name: str, floor: int) -> None:
    """Raise the version above `floor`, the newest that the device has seen.

    Needed after the database was restored from a backup that is older than the assignment.
    """
    row = _rows(db, [name]).get(name)
    if row is not None and row.version < floor:
        again = _signed(MessageWriter(db, ctx, [name]), name, floor, _orders(row))
        store(db, [again._replace(was=row.version)])


# --- publishing ---------------------------------------------------------------------------------


def pending(ctx: Context, limit: int = 500) -> list[Pending]:
    """Assignments that changed since they were published; of devices that are not enrolled any
    more only those that clear the topic."""
    query = (
        select(assignment.c.device, assignment.c.version, assignment.c.message)
        .join(device, device.c.name == assignment.c.device)
        .where(
            assignment.c.sent_version < assignment.c.version,
            or_(device.c.state == "enrolled", func.length(assignment.c.message) == 0),
        )
        .limit(limit)
    )
    with ctx.store.read() as db:
        return [Pending(row.device, row.version, bytes(row.message)) for row in db.execute(query)]


def mark_sent(ctx: Context, sent: Sequence[Pending]) -> None:
    """Mark these as published. One that changed meanwhile stays pending."""
    with ctx.store.write() as db:
        db.execute(
            _UPDATE, [{"of_device": one.device, "sent_version": one.version} for one in sent]
        )


def send_again(ctx: Context, names: Iterable[str] | None = None) -> None:
    """Have the assignments of these devices published again: the broker may have lost them.

    names   None: those that were signed in the last seconds before the newest one
    """
    newest = select(func.max(assignment.c.signed_at)).scalar_subquery()
    with ctx.store.write() as db:
        if names is None:
            late = (assignment.c.signed_at > newest - LAST_S) & (assignment.c.signed_at > 0)
            names = list(db.scalars(select(assignment.c.device).where(late)))
        for some in chunks(sorted(set(names))):
            mine = assignment.c.device.in_(some) & (assignment.c.version > 0)
            db.execute(update(assignment).where(mine).values(sent_version=assignment.c.version - 1))


# --- reading ------------------------------------------------------------------------------------


def orders_of(db: Connection, name: str) -> list[Order]:
    """Orders in a device's assignment."""
    return list(_orders(_rows(db, [name]).get(name)).values())


def deltas_of(ctx: Context, ref: str) -> list[str]:
    """Deltas, as "OLD-NEW", that devices will request once they are ordered release `ref`.

    Empty for a release that is unsigned, in quarantine, or deleted.
    """
    with ctx.store.read() as db:
        try:
            manifest = signed_release(db, ref).manifest
        except (AbsentError, ConflictError):
            return []
        has = device.c.releases[manifest.model].as_string()
        query = select(device.c.profile, has).where(device.c.state == "enrolled").distinct()
        files = ReleaseFiles(db)
        found = {
            f"{old}-{new}"
            for profile, release in db.execute(query)
            for old, new in files.deltas(ref, release or "", profile or "")
        }
    return sorted(found)


def _signed(
    writer: MessageWriter, name: str, was: int | None, orders: dict[str, Order]
) -> Prepared:
    orders, version = writer.allowed(orders), (was or 0) + 1
    values = {
        "version": version,
        "orders": msgspec.to_builtins(orders),
        "message": writer.write(name, version, list(orders.values())),
        "signed_at": writer.now,
        "expires_at": writer.expires_at,
    }
    return Prepared(name, was, values)


def _is(ref: str) -> ColumnElement[bool]:
    model, version = manifests.parse_release(ref)
    return (release.c.model == model) & (release.c.version == version)


def _orders(row: Any) -> dict[str, Order]:
    return {} if row is None else msgspec.convert(row.orders, dict[str, Order])


def _rows(db: Connection, names: Sequence[str]) -> dict[str, Any]:
    """Rows of the assignments of devices, by name."""
    found: dict[str, Any] = {}
    for some in chunks(names):
        mine = assignment.c.device.in_(some)
        found |= {row.device: row for row in db.execute(select(assignment).where(mine))}
    return found


_UPDATE = update(assignment).where(assignment.c.device == bindparam("of_device"))
