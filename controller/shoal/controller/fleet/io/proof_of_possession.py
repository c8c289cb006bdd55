"""Proof that somebody has the key of a device's certificate: what a renewal rests on."""

import datetime
import hashlib
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shoal.controller.fleet.certificates import read_common_name
from shoal.errors import DeniedError, SettingError

_LIMIT = 16_384
_AGAIN = "enrol the device again with a new join token"


class Proven(NamedTuple):
    """A device that has the key of its certificate. begins_s, ends_s: of its life, Unix.

    generation   which enrolment of the name the certificate is of
    key_sha256   of the public key in it, hex
    """

    device: str
    generation: int
    serial: str
    begins_s: float
    ends_s: float
    key_sha256: str


def prove(
    issuer: x509.Certificate, certificate: str, proof: bytes, message: bytes, now: float | None
) -> Proven:
    """See ca.Authority.prove."""
    leaf = _read(certificate)
    _check_issued(leaf, issuer, leaf.not_valid_before_utc.timestamp() if now is None else now)
    _check_proof(leaf, proof, message)
    names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    try:
        named = read_common_name(str(names[0].value) if names else "")
    except SettingError as error:
        raise DeniedError("this certificate names no device") from error
    return Proven(
        named.device,
        named.generation,
        format(leaf.serial_number, "x"),
        leaf.not_valid_before_utc.timestamp(),
        leaf.not_valid_after_utc.timestamp(),
        _key_sha256(leaf),
    )


def key_sha256(
    public: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey,
) -> str:
    """SHA-256 of a public key (SubjectPublicKeyInfo, DER), hex."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(public.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def _key_sha256(leaf: x509.Certificate) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    der = leaf.public_key().public_bytes(serialization.Encoding.DER, form)
    return hashlib.sha256(der).hexdigest()


def _read(certificate: str) -> x509.Certificate:
    try:
        if len(certificate) > _LIMIT:
            raise ValueError("too long")
        return x509.load_pem_x509_certificate(certificate.encode())
    except (ValueError, x509.InvalidVersion) as error:
        raise DeniedError("this is no certificate in PEM", _AGAIN) from error


def _check_issued(leaf: x509.Certificate, issuer: x509.Certificate, now: float) -> None:
    try:
        leaf.verify_directly_issued_by(issuer)
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
        raise DeniedError("this certificate is not of this controller's CA", _AGAIN) from error
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise DeniedError("this is no device's certificate")
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if not leaf.not_valid_before_utc <= at < leaf.not_valid_after_utc:
        raise DeniedError(f"this certificate ended {leaf.not_valid_after_utc:%Y-%m-%d}", _AGAIN)


def _check_proof(leaf: x509.Certificate, proof: bytes, message: bytes) -> None:
    try:
        public = leaf.public_key()
        if isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(proof, message, ec.ECDSA(hashes.SHA256()))
        elif isinstance(public, rsa.RSAPublicKey):
            public.verify(proof, message, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(proof, message)
        else:
            raise DeniedError("this certificate has a key of an unfit kind")
    except (InvalidSignature, UnsupportedAlgorithm) as error:
        raise DeniedError("the proof is not by the key of this certificate", _AGAIN) from error
