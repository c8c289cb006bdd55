"""Assignments: the desired releases of each device, signed by the director.

One row per device, its version rising with every change; `sent_version` lags behind until the
engine has published it. The message is signed in the transaction of the change: database and
signed message cannot differ.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, select, update

from shoal import manifest as manifests
from shoal import wire
from shoal.controller.host.context import Context
from shoal.controller.releases import download_urls, quarantine
from shoal.controller.store.tables import assignment, device, release
from shoal.errors import AbsentError, BundleError, ConflictError
from shoal.manifest import Manifest
from shoal.orders import Order
from shoal.trust import CANDIDATE, RELEASE, removal, target_path

#: Lifetime of an assignment: the director's signature, and the URLs in it.
LIFETIME_S = 7 * 86_400
#: Remaining lifetime below which it is renewed.
RENEW_S = LIFETIME_S / 2
#: Bytes of a file from which a delta is offered.
DELTA_FROM = 16 << 10
#: Devices of a site listed in an assignment as peers.
PEERS, _LONGEST_ADDRESS = 256, 64
#: Release's state -> the role that signed it.
ROLES = {"released": RELEASE, "candidate": CANDIDATE}


class Signed(NamedTuple):
    """A signed release. data: bytes of the manifest; role: the role that signed it."""

    manifest: Manifest
    data: bytes
    role: str


class Pending(NamedTuple):
    """An assignment to publish. message: payload on the device's assignment topic."""

    device: str
    version: int
    message: bytes


def signed_release(db: Connection, ref: str) -> Signed:
    """The release "model@version"; AbsentError, ConflictError: it is unsigned or in quarantine."""
    model, version = manifests.parse_release(ref)
    row = db.execute(
        select(release.c.manifest, release.c.state).where(
            release.c.model == model, release.c.version == version
        )
    ).first()
    if row is None:
        raise AbsentError("release", ref, "list them: shoal release list")
    if row.state not in ROLES:
        raise ConflictError(
            f"{ref} is {row.state}, not signed", f"sign it: shoal release publish {ref}"
        )
    quarantine.check_release(db, ref)
    return Signed(manifests.parse(row.manifest), bytes(row.manifest), ROLES[row.state])


def assign(
    db: Connection,
    ctx: Context,
    *,
    device: str,
    release: Signed,
    rollout: str,
    attempt: int,
    deadline_at: float = 0.0,
) -> int:
    """Order `release` for `device`; orders of other models stay. The new version."""
    manifest = release.manifest
    order = Order(
        model=manifest.model,
        version=manifest.version,
        path=target_path(release.role, manifest.model, manifest.version),
        length=len(release.data),
        sha256=hashlib.sha256(release.data).hexdigest(),
        rollout=rollout,
        attempt=attempt,
        deadline_s=float(int(deadline_at)),
    )
    return _change(db, ctx, device, manifest.model, order)


def order_removal(
    db: Connection, ctx: Context, *, device: str, model: str, rollout: str, attempt: int
) -> int:
    """Order `device` to serve no release of `model`; orders of other models stay. The new version.

    Only for an agent that knows such an order: `know_removal`.
    """
    return _change(db, ctx, device, model, removal(model, rollout=rollout, attempt=attempt))


def know_removal(db: Connection, names: Sequence[str]) -> set[str]:
    """Those of the devices whose agents know the order to remove a model."""
    query = select(device.c.name, device.c.facts["removes"]).where(device.c.name.in_(names))
    facts: list[Any] = list(db.execute(query))
    return {name for name, removes in facts if removes == 1}  # SQLite has no true


def withdraw(db: Connection, ctx: Context, *, device: str, model: str) -> int:
    """Remove the order of `model`: the device keeps the release that serves. The new version."""
    return _change(db, ctx, device, model, None)


def pending(ctx: Context, limit: int = 500) -> list[Pending]:
    """Assignments of enrolled devices that changed since they were published."""
    query = (
        select(assignment.c.device, assignment.c.version, assignment.c.message)
        .join(device, device.c.name == assignment.c.device)
        .where(assignment.c.sent_version < assignment.c.version, device.c.state == "enrolled")
        .limit(limit)
    )
    with ctx.store.read() as db:
        return [Pending(row.device, row.version, bytes(row.message)) for row in db.execute(query)]


def mark_sent(ctx: Context, sent: list[Pending]) -> None:
    """Mark these as published. One that changed meanwhile stays pending."""
    with ctx.store.write() as db:
        for one in sent:
            db.execute(
                update(assignment)
                .where(assignment.c.device == one.device)
                .values(sent_version=one.version)
            )


def renew(ctx: Context, limit: int = 500) -> int:
    """Renew assignments past half of their lifetime; how many."""
    due = select(assignment.c.device).where(
        assignment.c.expires_at < ctx.clock() + RENEW_S, assignment.c.expires_at > 0
    )
    with ctx.store.write() as db:
        names = list(db.scalars(due.limit(limit)))
        for name in names:
            row = _row(db, name)
            _write(db, ctx, name, row, _orders(row), row.version + 1)
    return len(names)


def renew_now(db: Connection, ctx: Context, name: str) -> wire.Assignment | None:
    """Renew and return the device's assignment; None if it has none."""
    row = _row(db, name)
    if row is None:
        return None
    _write(db, ctx, name, row, _orders(row), row.version + 1)
    message = wire.decode_down("assignment", bytes(_row(db, name).message))
    assert isinstance(message, wire.Assignment)
    return message


def orders_of(db: Connection, name: str) -> list[Order]:
    """Orders in a device's assignment."""
    return list(_orders(_row(db, name)).values())


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
        found = {
            f"{old}-{new}"
            for profile, release in db.execute(query)
            for old, new in _pairs(db, ref, release or "", profile or "")
        }
    return sorted(found)


def raise_floor(db: Connection, ctx: Context, name: str, floor: int) -> None:
    """Raise the version above `floor`, the newest that the device has seen.

    Needed after the database was restored from a backup that is older than the assignment.
    """
    row = _row(db, name)
    if row is not None and row.version < floor:
        _write(db, ctx, name, row, _orders(row), floor + 1)


def _change(db: Connection, ctx: Context, name: str, model: str, order: Order | None) -> int:
    row = _row(db, name)
    orders = _orders(row)
    orders.pop(model, None)
    if order is not None:
        orders[model] = order
    return _write(db, ctx, name, row, orders, row.version + 1 if row else 1)


def _write(
    db: Connection,
    ctx: Context,
    name: str,
    row: Row[Any] | None,
    orders: dict[str, Order],
    version: int,
) -> int:
    """Sign and store the orders, without those of quarantined releases."""
    orders = {k: one for k, one in orders.items() if not quarantine.why_release(db, one.release)}
    now = ctx.clock()
    expires = now + LIFETIME_S
    message = wire.Assignment(
        signed=ctx.signer.sign_orders(name, version, list(orders.values()), now),
        urls=_urls(db, ctx, name, orders, expires),
        **_peers(db, name),
    )
    values: dict[str, Any] = {
        "version": version,
        "orders": msgspec.to_builtins(orders),
        "message": wire.encode(message),
        "signed_at": now,
        "expires_at": expires,
    }
    if row is None:
        db.execute(assignment.insert().values(device=name, **values))
    else:
        db.execute(update(assignment).where(assignment.c.device == name).values(**values))
    return version


def _urls(
    db: Connection, ctx: Context, name: str, orders: dict[str, Order], expires: float
) -> dict[str, str]:
    """sha256 -> URL, of every file that the orders need on this device's profile.

    And "OLD>NEW" -> URL of the delta, for the models that the device has.
    """
    row = db.execute(
        select(device.c.profile, device.c.releases).where(device.c.name == name)
    ).first()
    profile, releases = (row.profile or "", row.releases or {}) if row else ("", {})
    installs = [order for order in orders.values() if not order.removes]
    wanted = set()
    for order in installs:
        wanted.add(order.sha256)
        wanted |= {file.sha256 for file in _files(db, order, profile)}
    urls = download_urls.urls_of(ctx.folder, ctx.settings.network, wanted, expires)
    pairs = {
        f"{old}-{new}": f"{old}>{new}"
        for order in installs
        for old, new in _pairs(db, order.release, releases.get(order.model, ""), profile)
    }
    return urls | {
        pairs[n]: url
        for n, url in download_urls.urls_of(
            ctx.folder, ctx.settings.network, pairs, expires
        ).items()
    }


def _peers(db: Connection, name: str) -> dict[str, dict[str, Any]]:
    """Fields of wire.Assignment: addresses at which the other devices of its site share files, and
    their generations. Empty for a device that does not share."""
    shares = device.c.facts["peer"].as_string()
    row = db.execute(select(device.c.site, shares).where(device.c.name == name)).first()
    if row is None or not row[1]:
        return {}
    query = (
        select(device.c.name, shares, device.c.generation)
        .where(device.c.site == row.site, device.c.state == "enrolled", shares.is_not(None))
        .order_by(device.c.name)
        .limit(PEERS)
    )
    others = [it for it in db.execute(query) if it[0] != name and len(it[1]) <= _LONGEST_ADDRESS]
    found = {"peers": {other: where for other, where, _ in others}}
    generations = {other: generation for other, _, generation in others if generation}
    return found | ({"generations": generations} if generations else {})


def _pairs(db: Connection, ref: str, has: str, profile: str) -> list[tuple[str, str]]:
    """(old, new) of each variant's files of release `ref` for which a device has an older file.

    has   the release that it serves, "" for none
    """
    if not has or has == ref:
        return []
    served = _variants(db, has, profile)
    return [
        (served[key].sha256, file.sha256)
        for key, file in _variants(db, ref, profile).items()
        if key in served and served[key].sha256 != file.sha256 and file.size >= DELTA_FROM
    ]


def _variants(db: Connection, ref: str, profile: str) -> dict[tuple[str, str], manifests.File]:
    """(variant, name of a file) -> file, for a device of `profile`."""
    manifest = _manifest(db, *manifests.parse_release(ref))
    names = manifest.profiles.get(profile, []) if manifest else []
    variants = [manifest.variant(name) for name in names] if manifest else []
    return {(variant.name, file.name): file for variant in variants for file in variant.files}


def _files(db: Connection, order: Order, profile: str) -> list[manifests.File]:
    try:
        manifest = _manifest(db, order.model, order.version)
        return manifest.files_for(profile) if manifest else []
    except BundleError:  # no files for this profile: the device rejects it
        return []


def _manifest(db: Connection, model: str, version: int) -> Manifest | None:
    data = db.scalar(
        select(release.c.manifest).where(release.c.model == model, release.c.version == version)
    )
    try:
        return manifests.parse(bytes(data or b""))
    except BundleError:
        return None


def _orders(row: Row[Any] | None) -> dict[str, Order]:
    return {} if row is None else msgspec.convert(row.orders, dict[str, Order])


def _row(db: Connection, name: str) -> Any:
    return db.execute(select(assignment).where(assignment.c.device == name)).first()
