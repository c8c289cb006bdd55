"""Certificate renewal at two thirds of the certificate's life, and updates of the director's root.

Key and certificate are replaced together: both are written to renewed.pem first, durably, and
copied from there; `complete_renewal` finishes a replacement that a power cut interrupted. Until
renewed.pem exists the old pair is in use. The broker session keeps the name from the first key.
"""

import base64
import contextlib
import re
from pathlib import Path
from urllib.parse import quote

import msgspec
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shoal.agent.host.io.folder import CA, CERTIFICATE, DIRECTOR, KEY, RENEWED, SESSION
from shoal.agent.identity.io.enrol import (
    decoded,
    key_pem,
    make_csr,
    pinned,
    read_key,
    request,
)
from shoal.durable import sync, write_durable
from shoal.enrolment import (
    DirectorRoots,
    RenewChallenge,
    RenewRequest,
    RenewResponse,
    fingerprint,
    renewal_message,
)
from shoal.errors import SettingError, StorageError, UntrustedError
from shoal.issuer import is_issued_by
from shoal.mqtt import session_id
from shoal.trust import director_version, follow_roots

#: Share of its life after which a certificate is renewed.
DUE = 2 / 3
#: A fleet that enrolled in one hour renews over this further share of it.
SPREAD = 0.05
_KEY_PEM = re.compile(rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\n", re.DOTALL)


def complete_renewal(folder: Path) -> None:
    """Finish a replacement of key and certificate that a power cut interrupted, if there is one."""
    both = folder / RENEWED
    if not both.exists():
        return
    data = both.read_bytes()
    found = _KEY_PEM.match(data)
    if found is not None:
        write_durable(folder / KEY, found[0], 0o600)
        write_durable(folder / CERTIFICATE, data[found.end() :], 0o600)
    both.unlink()
    sync(folder)


def session_name(folder: Path, device: str) -> str:
    """The MQTT client id, derived from the first key and kept in the folder."""
    path = folder / SESSION
    if not path.exists():
        name = session_id(device, folder / KEY)
        with contextlib.suppress(StorageError):  # until a renewal the key says the same
            write_durable(path, name.encode(), 0o600)
        return name
    return path.read_text()


def life_s(folder: Path) -> tuple[float, float]:
    """Begin and end of the certificate's validity, Unix seconds; SettingError if unreadable."""
    leaf = _certificate(folder)
    return leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()


def renew(folder: Path, controller: str, device: str) -> None:
    """Request a certificate for a new key from `controller`, and replace both.

    Raises DeniedError when refused, LinkError out of reach, UntrustedError for a response that is
    not this device's certificate, OSError when the disk refuses; the old pair stays in use then.
    """
    complete_renewal(folder)
    present, new = read_key(folder / KEY), ec.generate_private_key(ec.SECP256R1())
    csr = make_csr(new, device)
    with urllib3.PoolManager(ca_certs=str(folder / CA)) as pool:
        url = f"{controller}/api/v1/renew"
        challenge = decoded(request(pool, "GET", f"{url}?device={quote(device)}"), RenewChallenge)
        message = renewal_message(challenge.challenge, csr)
        proof = present.sign(message, ec.ECDSA(hashes.SHA256()))
        body = RenewRequest(
            certificate=(folder / CERTIFICATE).read_text(),
            csr=csr,
            challenge=challenge.challenge,
            proof=base64.b64encode(proof).decode(),
        )
        response = decoded(request(pool, "POST", url, msgspec.json.encode(body)), RenewResponse)
    _save(folder, device, new, response)


def refresh_director(folder: Path, controller: str) -> bytes | None:
    """Save the newest root of the director and return it; None when there is no newer one.

    Raises LinkError out of reach, TrustError for a root that its predecessor did not sign.
    """
    trusted = (folder / DIRECTOR).read_bytes()
    with urllib3.PoolManager(ca_certs=str(folder / CA)) as pool:
        url = f"{controller}/api/v1/director-roots?after={director_version(trusted)}"
        found = decoded(request(pool, "GET", url), DirectorRoots)
    if not found.roots:
        return None
    newest = follow_roots(trusted, [text.encode() for text in found.roots])
    write_durable(folder / DIRECTOR, newest)
    return newest


def _save(
    folder: Path, device: str, key: ec.EllipticCurvePrivateKey, response: RenewResponse
) -> None:
    root = x509.load_pem_x509_certificate((folder / CA).read_bytes())
    sha256 = fingerprint(root.public_bytes(serialization.Encoding.DER))
    ca = pinned(response.ca.encode(), sha256)
    _check(response.certificate, device, key, ca)
    session_name(folder, device)
    write_durable(folder / CA, ca)
    write_durable(folder / RENEWED, key_pem(key) + response.certificate.encode(), 0o600)
    complete_renewal(folder)


def _check(pem: str, device: str, key: ec.EllipticCurvePrivateKey, ca: bytes) -> None:
    """Raise UntrustedError unless this is the device's certificate for `key`, by a trusted CA."""
    try:
        leaf = x509.load_pem_x509_certificate(pem.encode())
        ours = _names(leaf) == [device] and leaf.public_key() == key.public_key()
        signed = is_issued_by(leaf, x509.load_pem_x509_certificates(ca))
    except ValueError as error:
        raise UntrustedError(f"the renewed certificate cannot be read: {error}") from error
    if not (ours and signed):
        raise UntrustedError("the renewed certificate is not one for this device and key")


def _names(leaf: x509.Certificate) -> list[str]:
    """Device names in the CN, without the generation of a re-used name (cam-1.2)."""
    found = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return [str(name.value).partition(".")[0] for name in found]


def _certificate(folder: Path) -> x509.Certificate:
    path = folder / CERTIFICATE
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingError(f"{path}: {error}", "enrol this device again") from error
