"""A device joins: token and certificate request in, certificate and roots of trust out."""

import hmac
from typing import Any, Protocol

from sqlalchemy import Connection, insert, select, update

from shoal.controller.access import audit
from shoal.controller.fleet import devices, join_tokens
from shoal.controller.fleet.records import Device
from shoal.controller.host.context import Context
from shoal.controller.store import changes
from shoal.controller.store.tables import assignment, device
from shoal.enrolment import EnrolRequest, EnrolResponse, parse_token
from shoal.errors import AbsentError, ConflictError, DeniedError, SettingError
from shoal.profile import Profile, detect, profile
from shoal.topics import check_device

_MOST_LABELS, _LONGEST = 32, 63
#: Seconds in which a device whose answer was lost asks again.
_LOST_ANSWER_S = 3_600.0


class Issued(Protocol):
    """A certificate just made: PEM chain, serial in hex, Unix seconds, SHA-256 of its key."""

    @property
    def certificate(self) -> str: ...
    @property
    def serial(self) -> str: ...
    @property
    def expires_s(self) -> float: ...
    @property
    def key_sha256(self) -> str: ...


class Authority(Protocol):
    """The device CA. `bundle`: PEM that all trust; `root_fingerprint`: SHA-256 that tokens pin."""

    @property
    def bundle(self) -> str: ...
    @property
    def root_fingerprint(self) -> str: ...
    def issue_device(self, csr: str, device: str, now: float, generation: int) -> Issued: ...


def enrol(ctx: Context, authority: Authority, request: EnrolRequest) -> EnrolResponse:
    """Enrol one device and take one use of its token; all or nothing.

    The same key may enrol again under its name: its answer may have been lost, or its certificate
    have expired. Soon after the first time that takes no further use.

    A name that was decommissioned gets a certificate of the next generation: the broker lets in
    that one and none of before.

    SettingError for what cannot be read or named so, DeniedError for the token, ConflictError when
    a device of that name is enrolled with another key.
    """
    joining_secret = parse_token(request.token)
    if not hmac.compare_digest(joining_secret.ca_sha256, authority.root_fingerprint):
        raise DeniedError("this join token is of another controller", "use that one's address")
    board = _check(request)
    now = ctx.clock()
    with ctx.store.write() as db:
        generation = _generation(db, request.device)
        issued = authority.issue_device(request.csr, request.device, now, generation)
        again = _enrolled(db, request.device, issued)
        repeated = again is not None and now - again < _LOST_ANSWER_S
        token = join_tokens.spend(db, ctx, joining_secret, request.ring, repeated=repeated)
        values = _row(request, board, token.site, issued, now) | {"generation": generation}
        if again is not None:
            values["enrolled_at"] = again
        _keep(db, request.device, values)
        audit.record(
            db, ctx, f"join-token {token.id}", "device.enrol", request.device,
            site=token.site, ring=request.ring, profile=board.name, serial=issued.serial,
        )  # fmt: skip
        changes.note(db, ctx, "device", request.device)
    return _response(ctx, authority, request.device, token.site, board, issued)


def decommission(ctx: Context, *, actor: str, device: str) -> Device:
    """Take a device out for good: no more assignments, and the broker lets it in no more.

    AbsentError when there is none such, ConflictError when it is out already.
    """
    found = devices.get_device(ctx, device)
    if found.state != devices.ENROLLED:
        raise ConflictError(f"device {device} is {found.state} already")
    with ctx.store.write() as db:
        _end(db, device)
        audit.record(db, ctx, actor, "device.decommission", device, site=found.site)
        changes.note(db, ctx, "device", device)
    return devices.get_device(ctx, device)


def _check(request: EnrolRequest) -> Profile:
    check_device(request.device)
    if request.ring not in join_tokens.RINGS:
        raise SettingError(
            f"ring {request.ring!r:.40}", f"use one of: {', '.join(join_tokens.RINGS)}"
        )
    texts = [request.line, *request.labels, *request.labels.values()]
    if len(request.labels) > _MOST_LABELS or any(len(text) > _LONGEST for text in texts):
        raise SettingError("line and labels", f"up to {_MOST_LABELS}, of {_LONGEST} characters")
    try:
        return profile(request.profile) if request.profile else detect(request.facts)
    except AbsentError as error:
        raise SettingError(str(error)) from error
    except (TypeError, ValueError) as error:
        raise SettingError("facts are not of the kind that profiles match on") from error


def _row(
    request: EnrolRequest, board: Profile, site: str, issued: Issued, now: float
) -> dict[str, Any]:
    return {
        "name": request.device, "site": site, "line": request.line, "labels": request.labels,
        "ring": request.ring, "profile": board.name, "state": devices.ENROLLED,
        "online": False, "session": "", "enrolled_at": now, "seen_at": 0.0,
        "certificate_serial": issued.serial, "certificate_expires_at": issued.expires_s,
        "key_sha256": issued.key_sha256,
        "agent": "", "endpoint": "", "releases": {}, "variants": {}, "facts": request.facts,
        "error": board.unsupported, "error_at": now if board.unsupported else 0.0,
    }  # fmt: skip


def _generation(db: Connection, name: str) -> int:
    """Of the certificate to be made: how often this name was decommissioned."""
    query = select(device.c.state, device.c.generation).where(device.c.name == name)
    row = db.execute(query).one_or_none()
    if row is None:
        return 0
    return int(row.generation) + (row.state != devices.ENROLLED)


def _enrolled(db: Connection, name: str, issued: Issued) -> float | None:
    """When the device of this name and key was enrolled; None when it is not."""
    columns = (device.c.state, device.c.key_sha256, device.c.enrolled_at)
    row = db.execute(select(*columns).where(device.c.name == name)).one_or_none()
    if row is None or row.state != devices.ENROLLED:
        return None
    if row.key_sha256 != issued.key_sha256:
        raise ConflictError(
            f"a device {name!r} is enrolled already",
            f"choose another name, or first: shoal device decommission {name}",
        )
    return float(row.enrolled_at)


def _keep(db: Connection, name: str, values: dict[str, Any]) -> None:
    state = db.scalar(select(device.c.state).where(device.c.name == name))
    if state is None:
        db.execute(insert(device).values(values))
    else:
        db.execute(update(device).where(device.c.name == name).values(values))


def _end(db: Connection, name: str) -> None:
    gone = update(device).where(device.c.name == name)
    db.execute(gone.values(state=devices.DECOMMISSIONED, online=False))
    # The version stays: a device enrolled anew must not be sent a lower one than it has seen.
    db.execute(
        update(assignment)
        .where(assignment.c.device == name)
        .values(orders={}, sent_version=assignment.c.version)
    )


def _response(
    ctx: Context, authority: Authority, name: str, site: str, board: Profile, issued: Issued
) -> EnrolResponse:
    network = ctx.settings.network
    host = network.names[0] if network.names else network.host
    return EnrolResponse(
        device=name,
        site=site,
        profile=board.name,
        certificate=issued.certificate,
        ca=authority.bundle,
        broker=network.broker or f"mqtts://{host}:{network.mqtt}",
        artifacts=f"https://{host}:{network.artifacts}",
        root=ctx.signer.root.decode(),
        director_root=ctx.signer.director_root.decode(),
        notice=f"no model can run here: {board.unsupported}" if board.unsupported else "",
    )
