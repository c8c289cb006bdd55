"""Routes for devices: enrolment, renewal, state, telemetry, decommissioning."""

from typing import Annotated

import msgspec

from shoal.controller.api.routing import Call, Limit, Listing, RequestModel, all_of, route
from shoal.controller.fleet import devices, enrolment, join_tokens, ledger, renewal
from shoal.controller.fleet.records import Device, DeviceEvent, JoinToken, Ledger, Window
from shoal.enrolment import (
    LIMIT,
    DirectorRoots,
    EnrolRequest,
    EnrolResponse,
    RenewChallenge,
    RenewRequest,
    RenewResponse,
)

TAG = "devices"


class DeviceQuery(RequestModel, frozen=True, kw_only=True):
    """Filters of the device list; empty ones match all.

    q        part of name, site, line or a label
    state    enrolled, decommissioned, online or offline
    release  "model@version", or "model" for any version
    problem  only devices with an error
    expiring_s  only devices whose certificate ends within so many seconds, or has ended; 0: all
    silent_s  only devices that have sent nothing for so many seconds; 0: all
    """

    q: str = ""
    site: str = ""
    profile: str = ""
    ring: str = ""
    state: str = ""
    release: str = ""
    problem: bool = False
    expiring_s: Annotated[float, msgspec.Meta(ge=0)] = 0
    silent_s: Annotated[float, msgspec.Meta(ge=0)] = 0
    cursor: str = ""
    limit: Limit = 50


class NewestQuery(RequestModel, frozen=True, kw_only=True):
    """Maximum number of newest entries."""

    limit: Limit = 100


class WindowQuery(RequestModel, frozen=True, kw_only=True):
    """Windows that started at `since` (Unix seconds) or later; the newest `limit`."""

    since: float = 0
    limit: Limit = 200


class NewJoinToken(RequestModel, frozen=True, kw_only=True):
    """A join token for `uses` devices of `site`, in one of `rings`, valid for `ttl_s` seconds."""

    site: str
    rings: list[str] = msgspec.field(default_factory=lambda: ["stable"])
    uses: int = 1
    ttl_s: float = 86_400.0


@route("POST", "/api/v1/enrol", role="", tag=TAG, status=201, limit=LIMIT)
def enrol(call: Call, body: EnrolRequest) -> EnrolResponse:
    """Enrol a device: exchange a join token and certificate request for a certificate."""
    return enrolment.enrol(call.ctx, call.services.authority, body)


class RenewalQuery(RequestModel, frozen=True, kw_only=True):
    """Name of the device that renews."""

    device: str


class NewerQuery(RequestModel, frozen=True, kw_only=True):
    """The version that the device already has."""

    after: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0


@route("GET", "/api/v1/renew", role="", tag=TAG)
def renewal_challenge(call: Call, query: RenewalQuery) -> RenewChallenge:
    """A challenge for a device to sign: valid for one renewal within five minutes."""
    return renewal.challenge(call.ctx, query.device)


@route("POST", "/api/v1/renew", role="", tag=TAG, status=201, limit=LIMIT)
def renew(call: Call, body: RenewRequest) -> RenewResponse:
    """Renew a device's certificate, with proof of possession of its current key."""
    return renewal.renew(call.ctx, call.services.authority, body)


@route("GET", "/api/v1/director-roots", role="", tag=TAG)
def director_roots(call: Call, query: NewerQuery) -> DirectorRoots:
    """Root metadata of the director after version `after`, each signed by the previous one."""
    found = call.ctx.signer.director_roots(query.after)
    return DirectorRoots(roots=[root.decode() for root in found])


@route("GET", "/api/v1/join-tokens", role="operator", tag=TAG)
def list_join_tokens(call: Call) -> Listing[JoinToken]:
    """Join tokens that have not expired."""
    return all_of(join_tokens.list_join_tokens(call.ctx))


@route("POST", "/api/v1/join-tokens", role="operator", tag=TAG, status=201, repeatable=True,
       secret=("secret",))  # fmt: skip
def create_join_token(call: Call, body: NewJoinToken) -> JoinToken:
    """Create a join token; `secret` is shown once, and empty for a repeated Idempotency-Key."""
    pinned, wanted = call.services.authority.root_fingerprint, msgspec.structs.asdict(body)
    return join_tokens.create_join_token(call.ctx, actor=call.by, ca_sha256=pinned, **wanted)


@route("DELETE", "/api/v1/join-tokens/<id>", role="operator", tag=TAG, status=204)
def revoke_join_token(call: Call, id: str) -> None:  # noqa: A002 - the API's word
    """Revoke a join token; devices that enrolled with it stay."""
    join_tokens.revoke_join_token(call.ctx, actor=call.by, id=id)


@route("GET", "/api/v1/devices", role="viewer", tag=TAG)
def list_devices(call: Call, query: DeviceQuery) -> Listing[Device]:
    """Devices by name."""
    return Listing(*devices.list_devices(call.ctx, **msgspec.structs.asdict(query)))


@route("GET", "/api/v1/devices/<device>", role="viewer", tag=TAG)
def get_device(call: Call, device: str) -> Device:
    """One device."""
    return devices.get_device(call.ctx, device)


@route("GET", "/api/v1/devices/<device>/timeline", role="viewer", tag=TAG)
def get_timeline(call: Call, device: str, query: NewestQuery) -> Listing[DeviceEvent]:
    """Events of a device, newest first."""
    return all_of(devices.timeline(call.ctx, device, limit=query.limit))


@route("GET", "/api/v1/devices/<device>/windows", role="viewer", tag=TAG)
def list_windows(call: Call, device: str, query: WindowQuery) -> Listing[Window]:
    """Telemetry windows of a device, newest first."""
    return all_of(devices.windows(call.ctx, device, since=query.since, limit=query.limit))


@route("GET", "/api/v1/devices/<device>/ledger", role="viewer", tag=TAG)
def get_ledger(call: Call, device: str) -> Listing[Ledger]:
    """Messages received from a device's outbox, by boot, and how many are missing."""
    devices.get_device(call.ctx, device)
    return all_of(ledger.ledgers(call.ctx, device))


@route("POST", "/api/v1/devices/<device>/decommission", role="operator", tag=TAG)
def decommission(call: Call, device: str) -> Device:
    """Decommission a device; the same name can enrol again."""
    return enrolment.decommission(call.ctx, actor=call.by, device=device)
