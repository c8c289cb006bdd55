"""Messages of device enrolment and certificate renewal over HTTPS."""

import hashlib
import re
from typing import Any, NamedTuple

import msgspec

from shoal.errors import SettingError

LIMIT = 65_536
_TOKEN = re.compile(r"sj1\.([a-z0-9]{8,16})\.([A-Za-z0-9_-]{20,64})\.([0-9a-f]{64})")


class EnrolRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request of a new device for its certificate.

    token    the whole join token
    csr      PEM; its key never leaves the device. The subject is ignored: the name is `device`
    ring     from the device's configuration; the token must allow it
    profile  "" for the one that `facts` match
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
    """Certificate and trust anchors for a new device.

    certificate    PEM chain, CN = device, O = shoal
    ca             PEM bundle that signs broker, controller and artifact server
    broker         mqtts://host:port
    artifacts      https://host:port
    root, director_root   trusted TUF root.json of the image repository and of the director
    notice         text for the installer, e.g. that no model can run on this board
    floor          version of the newest assignment of this name: an older one was its predecessor's
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
    floor: int = 0


class RenewChallenge(msgspec.Struct, frozen=True, kw_only=True):
    """Nonce that a device signs with its present key.

    challenge    valid for one renewal of this device, for some minutes
    """

    challenge: str


class RenewRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request for the next certificate.

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
    """The next certificate (PEM chain), and the present CA bundle of broker and controller."""

    certificate: str
    ca: str


class DirectorRoots(msgspec.Struct, frozen=True, kw_only=True):
    """Root metadata of the director as JSON texts, oldest first, each signed by its predecessor."""

    roots: list[str]


def renewal_message(challenge: str, csr: str) -> bytes:
    """Bytes that the present key signs."""
    return b"shoal renewal v1\n" + challenge.encode() + b"\n" + csr.encode()


class JoinSecret(NamedTuple):
    """Parts of a join token."""

    id: str
    secret: str
    ca_sha256: str


def parse_token(text: str) -> JoinSecret:
    """Parse "sj1.<id>.<secret>.<fingerprint>"; SettingError, without the secret, if invalid."""
    found = _TOKEN.fullmatch(text.strip())
    if not found:
        raise SettingError("join token is not one", "make one with: shoal device token --site SITE")
    return JoinSecret(*found.groups())


def fingerprint(der: bytes) -> str:
    """SHA-256 of a certificate's DER bytes, hex: the join token pins the root CA with it."""
    return hashlib.sha256(der).hexdigest()
