"""Certificate renewal: a device proves possession of its current key and gets a new certificate.

The device signs a challenge; TLS client authentication is not used, because it does not pass a
reverse proxy. A challenge is bound to the current certificate, so a request cannot be replayed
after its renewal. After a lost response the current certificate, still valid, requests again.
"""

import base64
import binascii
import hashlib
import hmac

from sqlalchemy import Connection, Row, select, update

from shoal.controller.access import audit
from shoal.controller.fleet import devices
from shoal.controller.fleet.certificates import DeviceCA, Proven
from shoal.controller.host.context import Context
from shoal.controller.store import changes
from shoal.controller.store.tables import device
from shoal.enrolment import RenewChallenge, RenewRequest, RenewResponse, renewal_message
from shoal.errors import DeniedError

#: Lifetime of a challenge, and how long before its issue a certificate becomes valid, seconds.
CHALLENGE_S, SKEW_S = 300, 3_600.0
_AGAIN = "enrol the device again with a new join token"


def challenge(ctx: Context, name: str) -> RenewChallenge:
    """Issue a challenge for `name`; for an unknown name too, so that names cannot be probed."""
    with ctx.store.read() as db:
        row = _row(db, name)
    return RenewChallenge(challenge=_make(ctx, name, row, int(ctx.clock()) + CHALLENGE_S))


def renew(ctx: Context, authority: DeviceCA, request: RenewRequest) -> RenewResponse:
    """Issue a certificate for the key in the request's CSR.

    DeniedError unless the current certificate is valid and of an enrolled device, the proof is
    signed by its key, and the challenge is unexpired and unused.
    """
    now = ctx.clock()
    message = renewal_message(request.challenge, request.csr)
    prover = authority.prove(request.certificate, _proof(request.proof), message, now)
    issued = authority.issue_device(request.csr, prover.device, now, prover.generation)
    with ctx.store.write() as db:
        row = _row(db, prover.device)
        _check(ctx, request.challenge, prover, row)
        db.execute(
            update(device)
            .where(device.c.name == prover.device)
            .values(
                certificate_serial=issued.serial,
                certificate_expires_at=issued.expires_s,
                key_sha256=issued.key_sha256,
            )
        )
        audit.record(
            db, ctx, f"device {prover.device}", "device.renew", prover.device, serial=issued.serial
        )
        changes.note(db, ctx, "device", prover.device)
    return RenewResponse(certificate=issued.certificate, ca=authority.bundle)


def _check(ctx: Context, given: str, prover: Proven, row: Row | None) -> None:
    if row is None or row.state != devices.ENROLLED:
        raise DeniedError(f"device {prover.device} is not enrolled", _AGAIN)
    if prover.generation != row.generation or prover.begins_s + SKEW_S < int(row.enrolled_at):
        raise DeniedError("this certificate is from an earlier enrolment", _AGAIN)
    until = given.partition(".")[0]
    fresh = until.isdecimal() and len(until) < 12 and int(until) > ctx.clock()
    if not fresh or not hmac.compare_digest(
        _make(ctx, prover.device, row, int(until)).encode(), given.encode()
    ):
        raise DeniedError(
            "this challenge is used, expired or for another device", "request a new one"
        )


def _make(ctx: Context, name: str, row: Row | None, until: int) -> str:
    """Expiry and a MAC that binds it to the device's current certificate."""
    key = (ctx.folder / "keys" / "capability.key").read_bytes()
    serial = row.certificate_serial if row else ""
    bound = f"shoal renewal challenge v1\n{name}\n{serial}\n{until}".encode()
    return f"{until}.{hmac.new(key, bound, hashlib.sha256).hexdigest()}"


def _row(db: Connection, name: str) -> Row | None:
    columns = ("state", "enrolled_at", "certificate_serial", "generation")
    query = select(*(device.c[column] for column in columns))
    return db.execute(query.where(device.c.name == name)).one_or_none()


def _proof(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DeniedError("the proof is not base64") from error
