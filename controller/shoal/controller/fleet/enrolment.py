"""Enrolment: a join token and a certificate request for a certificate and the roots of trust."""

import hmac
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from shoal.address import url_of
from shoal.controller.access import audit
from shoal.controller.conditions import device_watch
from shoal.controller.fleet import changed_devices, devices, join_tokens, reported_facts
from shoal.controller.fleet.certificates import DeviceCA, Issued
from shoal.controller.fleet.records import Device
from shoal.controller.host.context import Context
from shoal.controller.store import changes
from shoal.controller.store.rollout_tables import assignment
from shoal.controller.store.tables import device
from shoal.enrolment import EnrolRequest, EnrolResponse, parse_token
from shoal.errors import AbsentError, ConflictError, DeniedError, SettingError
from shoal.profile import Profile, detect, profile
from shoal.topics import check_device

#: A repeated request within so many seconds is a retry after a lost response.
_RETRY_S = 3_600.0


def enrol(ctx: Context, authority: DeviceCA, request: EnrolRequest) -> EnrolResponse:
    """Enrol one device and count one use of its token, in one transaction.

    A device may enrol again under its name with the same key: the response may have been lost, or
    its certificate may have expired. A retry within _RETRY_S does not count as a use.

    A name that was decommissioned gets a certificate of the next generation: the broker admits
    that one and no earlier one.

    SettingError for an invalid request, DeniedError for the token, ConflictError when a device of
    that name is enrolled with another key.
    """
    secret = parse_token(request.token)
    if not hmac.compare_digest(secret.ca_sha256, authority.root_fingerprint):
        raise DeniedError(
            "this join token is from another controller", "enrol at that controller's address"
        )
    matched = _check(request)
    now = ctx.clock()
    with ctx.store.write() as db:
        row = db.execute(select(device).where(device.c.name == request.device)).one_or_none()
        generation = row.generation + (row.state != devices.ENROLLED) if row else 0
        issued = authority.issue_device(request.csr, request.device, now, generation)
        enrolled_at = _enrolled_at(row, issued)
        retry = enrolled_at is not None and now - enrolled_at < _RETRY_S
        token = join_tokens.use(db, ctx, secret, request.ring, retry=retry)
        values = _row(request, matched, token.site, issued, now) | {"generation": generation}
        if enrolled_at is not None:
            values["enrolled_at"] = enrolled_at
        if row is None:
            db.execute(insert(device).values(values))
        else:
            device_watch.forget(db, ctx, row.name)
            db.execute(update(device).where(device.c.name == row.name).values(values))
            if row.state != devices.ENROLLED:
                _forget_orders(db, row.name)
        floor = _newest_version(db, request.device)
        audit.record(
            db, ctx, f"join-token {token.id}", "device.enrol", request.device,
            site=token.site, ring=request.ring, profile=matched.name, serial=issued.serial,
        )  # fmt: skip
        changed_devices.add(db, [request.device], changed_devices.ENROLLED)
        changes.note(db, ctx, "device", request.device)
    return _response(ctx, authority, request.device, token.site, matched, issued, floor)


def decommission(ctx: Context, *, actor: str, device: str) -> Device:
    """Decommission a device: it gets no more assignments, and the broker refuses it.

    AbsentError for an unknown device, ConflictError when it is decommissioned already.
    """
    found = devices.get_device(ctx, device)
    if found.state != devices.ENROLLED:
        raise ConflictError(f"device {device} is {found.state} already")
    with ctx.store.write() as db:
        _decommission(db, device)
        device_watch.forget(db, ctx, device)
        audit.record(db, ctx, actor, "device.decommission", device, site=found.site)
        changed_devices.add(db, [device], changed_devices.DECIDED)
        changes.note(db, ctx, "device", device)
    return devices.get_device(ctx, device)


def _check(request: EnrolRequest) -> Profile:
    check_device(request.device)
    if request.ring not in join_tokens.RINGS:
        raise SettingError(
            f"ring {request.ring!r:.40}", f"use one of: {', '.join(join_tokens.RINGS)}"
        )
    if fault := reported_facts.label_faults(request.line, request.labels):
        raise SettingError(fault, "shorten them in its agent.toml")
    try:
        return profile(request.profile) if request.profile else detect(request.facts)
    except AbsentError as error:
        raise SettingError(str(error)) from error
    except (TypeError, ValueError) as error:
        raise SettingError("facts have the wrong type for profile matching") from error


def _row(
    request: EnrolRequest, matched: Profile, site: str, issued: Issued, now: float
) -> dict[str, Any]:
    return {
        "name": request.device, "site": site, "line": request.line, "labels": request.labels,
        "ring": request.ring, "profile": matched.name, "state": devices.ENROLLED,
        "online": False, "session": "", "enrolled_at": now, "seen_at": 0.0,
        "certificate_serial": issued.serial, "certificate_expires_at": issued.expires_s,
        "key_sha256": issued.key_sha256,
        "agent": "", "endpoint": "", "releases": {}, "variants": {},
        "facts": reported_facts.json_facts(request.facts),
        "error": matched.unsupported, "error_at": now if matched.unsupported else 0.0,
    }  # fmt: skip


def _enrolled_at(row: Row | None, issued: Issued) -> float | None:
    """Time of enrolment of the device in this row, by its key; None when it is not enrolled."""
    if row is None or row.state != devices.ENROLLED:
        return None
    if row.key_sha256 != issued.key_sha256:
        raise ConflictError(
            f"a device {row.name!r} is enrolled already",
            f"choose another name, or first run: shoal device decommission {row.name}",
        )
    return float(row.enrolled_at)


def _decommission(db: Connection, name: str) -> None:
    row = update(device).where(device.c.name == name)
    db.execute(row.values(state=devices.DECOMMISSIONED, online=False))
    _forget_orders(db, name)


def _forget_orders(db: Connection, name: str) -> None:
    """Withdraw a device's assignment: the engine clears the one that the broker retains.

    Its version rises: a device that enrols again under the name accepts none of before.
    """
    mine = update(assignment).where(assignment.c.device == name)
    db.execute(
        mine.values(orders={}, message=b"", expires_at=0.0, version=assignment.c.version + 1)
    )


def _newest_version(db: Connection, name: str) -> int:
    return db.scalar(select(assignment.c.version).where(assignment.c.device == name)) or 0


def _response(
    ctx: Context,
    authority: DeviceCA,
    name: str,
    site: str,
    matched: Profile,
    issued: Issued,
    floor: int,
) -> EnrolResponse:
    network = ctx.settings.network
    host = network.names[0] if network.names else network.host
    return EnrolResponse(
        device=name,
        site=site,
        profile=matched.name,
        certificate=issued.certificate,
        ca=authority.bundle,
        broker=network.broker or url_of("mqtts", host, network.mqtt),
        artifacts=url_of("https", host, network.artifacts),
        root=ctx.signer.root.decode(),
        director_root=ctx.signer.director_root.decode(),
        notice=f"no model can run here: {matched.unsupported}" if matched.unsupported else "",
        floor=floor,
    )
