"""How a device joins: a token for a certificate, once, over HTTPS."""

import hashlib
import re
from typing import Any, NamedTuple

import msgspec

from shoal.errors import SettingError

LIMIT = 65_536
_TOKEN = re.compile(r"sj1\.([a-z0-9]{8,16})\.([A-Za-z0-9_-]{20,64})\.([0-9a-f]{64})")


class EnrolRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a new device asks for.

    token    the join token, whole
    csr      PEM; its key never leaves the device. The subject is ignored: the name is `device`
    ring     as the device's own configuration says; the token must allow it
    profile  "" for the one that `facts` fit
    """

    token: str
    csr: str
    device: str
    ring: str = "stable"
    profile: str = ""
    line: str = ""
    labels: dict[str, str] = {}
    facts: dict[str, Any] = {}


class EnrolResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What it gets.

    certificate    PEM chain, CN = device, O = shoal
    ca             PEM bundle that signs broker, controller and artifact server
    broker         mqtts://host:port
    artifacts      https://host:port
    root, director_root   trusted TUF root.json of the image repository and of the director
    notice         what the installer should read now, e.g. that no model can run on this board
    """

    device: str
    site: str
    profile: str
    certificate: str
    ca: str
    broker: str
    artifacts: str
    root: str
    director_root: str
    notice: str = ""


class RenewChallenge(msgspec.Struct, frozen=True, kw_only=True):
    """What a device signs to show that it has the key of its certificate.

    challenge    good for one renewal of this device, and for some minutes
    """

    challenge: str


class RenewRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A device asks for its next certificate.

    certificate  the present one, PEM; not expired
    csr          PEM, of the next key
    challenge    as given by GET /api/v1/renew
    proof        base64, by the present key over `renewal_message`
    """

    certificate: str
    csr: str
    challenge: str
    proof: str


class RenewResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The next certificate, PEM chain, and the bundle that signs broker and controller by now."""

    certificate: str
    ca: str


class DirectorRoots(msgspec.Struct, frozen=True, kw_only=True):
    """Root metadata of the director, each signed by the one before; JSON texts, oldest first."""

    roots: list[str]


def renewal_message(challenge: str, csr: str) -> bytes:
    """What the present key signs."""
    return b"shoal renewal v1\n" + challenge.encode() + b"\n" + csr.encode()


class JoinSecret(NamedTuple):
    """A join token taken apart."""

    id: str
    secret: str
    ca_sha256: str


def parse_token(text: str) -> JoinSecret:
    """Take "sj1.<id>.<secret>.<fingerprint>" apart; SettingError (no secret in it) if none."""
    found = _TOKEN.fullmatch(text.strip())
    if not found:
        raise SettingError("join token is not one", "make one with: shoal device token --site SITE")
    return JoinSecret(*found.groups())


def fingerprint(der: bytes) -> str:
    """SHA-256 of a certificate's DER bytes, hex: what the join token pins the root CA by."""
    return hashlib.sha256(der).hexdigest()
