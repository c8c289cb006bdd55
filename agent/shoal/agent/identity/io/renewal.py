"""The next certificate, by itself, at two thirds of the life of the present one.

Key and certificate change together: both lie in renewed.pem first, durable, and are copied from
there; `settle` ends what a power cut interrupted. Until renewed.pem is there the old pair holds.
The broker's session keeps its name, which was made from the first key.
"""

import base64
import re
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shoal.agent.host.io.folder import CA, CERTIFICATE, DIRECTOR, KEY, RENEWED, SESSION
from shoal.agent.identity.io.enrol import key_pem, make_csr, pinned
from shoal.agent.identity.io.requests import request
from shoal.durable import sync, write_durable
from shoal.enrolment import (
    DirectorRoots,
    RenewChallenge,
    RenewRequest,
    RenewResponse,
    fingerprint,
    renewal_message,
)
from shoal.errors import LinkError, SettingError, UntrustedError
from shoal.issuer import is_issued_by
from shoal.mqtt import session_id
from shoal.trust import director_version, follow_roots

#: Share of its life after which a certificate is renewed.
DUE = 2 / 3
_KEY_PEM = re.compile(rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\n", re.DOTALL)
_T = TypeVar("_T")


def settle(folder: Path) -> None:
    """End a replacement of key and certificate that the power cut; nothing when there is none."""
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
    """The MQTT client id: kept in the folder from the first key on, whatever key comes after."""
    path = folder / SESSION
    if not path.exists():
        write_durable(path, session_id(device, folder / KEY).encode(), 0o600)
    return path.read_text()


def life_s(folder: Path) -> tuple[float, float]:
    """From when until when the present certificate is valid, Unix seconds; SettingError."""
    leaf = _certificate(folder)
    return leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()


def renew(folder: Path, controller: str, device: str) -> None:
    """Ask `controller` for the next certificate, over a new key, and put both in place.

    Raises DeniedError refused, LinkError out of reach, UntrustedError for an answer that is not
    our certificate, OSError when the disk refuses; the old pair holds then.
    """
    settle(folder)
    present, new = _key(folder), ec.generate_private_key(ec.SECP256R1())
    csr = make_csr(new, device)
    with urllib3.PoolManager(ca_certs=str(folder / CA)) as pool:
        ask = f"{controller}/api/v1/renew"
        given = _read(request(pool, "GET", f"{ask}?device={quote(device)}"), RenewChallenge)
        message = renewal_message(given.challenge, csr)
        proof = present.sign(message, ec.ECDSA(hashes.SHA256()))
        body = RenewRequest(
            certificate=(folder / CERTIFICATE).read_text(),
            csr=csr,
            challenge=given.challenge,
            proof=base64.b64encode(proof).decode(),
        )
        answer = _read(request(pool, "POST", ask, msgspec.json.encode(body)), RenewResponse)
    _keep(folder, device, new, answer)


def refresh_director(folder: Path, controller: str) -> bytes | None:
    """Follow the director's roots to the newest, and keep it; None when there is no newer.

    Raises LinkError out of reach, TrustError for a root that the one before did not sign.
    """
    trusted = (folder / DIRECTOR).read_bytes()
    with urllib3.PoolManager(ca_certs=str(folder / CA)) as pool:
        ask = f"{controller}/api/v1/director-roots?after={director_version(trusted)}"
        told = _read(request(pool, "GET", ask), DirectorRoots)
    if not told.roots:
        return None
    newest = follow_roots(trusted, [text.encode() for text in told.roots])
    write_durable(folder / DIRECTOR, newest)
    return newest


def _keep(
    folder: Path, device: str, key: ec.EllipticCurvePrivateKey, answer: RenewResponse
) -> None:
    root = x509.load_pem_x509_certificate((folder / CA).read_bytes())
    sha256 = fingerprint(root.public_bytes(serialization.Encoding.DER))
    ca = pinned(answer.ca.encode(), sha256)
    _check(answer.certificate, device, key, ca)
    session_name(folder, device)
    write_durable(folder / CA, ca)
    write_durable(folder / RENEWED, key_pem(key) + answer.certificate.encode(), 0o600)
    settle(folder)


def _check(pem: str, device: str, key: ec.EllipticCurvePrivateKey, ca: bytes) -> None:
    """Raise UntrustedError unless this is a certificate of ours, over `key`, by a CA we trust."""
    try:
        leaf = x509.load_pem_x509_certificate(pem.encode())
        ours = _names(leaf) == [device] and leaf.public_key() == key.public_key()
        signed = is_issued_by(leaf, x509.load_pem_x509_certificates(ca))
    except ValueError as error:
        raise UntrustedError(f"the renewed certificate cannot be read: {error}") from error
    if not (ours and signed):
        raise UntrustedError("the renewed certificate is not one for this device and key")


def _names(leaf: x509.Certificate) -> list[str]:
    """Whom it is for: its CN, without the generation of a name that was taken again (cam-1.2)."""
    found = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return [str(name.value).partition(".")[0] for name in found]


def _certificate(folder: Path) -> x509.Certificate:
    path = folder / CERTIFICATE
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingError(f"{path}: {error}", "enrol this device again") from error


def _key(folder: Path) -> ec.EllipticCurvePrivateKey:
    path = folder / KEY
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise SettingError(f"{path}: {error}", "enrol this device again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SettingError(f"{path} is no EC key", "move it away and enrol again")
    return key


def _read(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LinkError(f"the controller's answer cannot be read: {error}") from error
