"""Proof of possession: the sender has the private key of a device's certificate."""

import datetime
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shoal.controller.fleet.certificates import Proven, read_common_name
from shoal.errors import DeniedError, SettingError, ShoalError

_LIMIT = 16_384
_AGAIN = "enrol the device again with a new join token"
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


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
        raise DeniedError("this certificate does not name a device") from error
    return Proven(
        named.device,
        named.generation,
        format(leaf.serial_number, "x"),
        leaf.not_valid_before_utc.timestamp(),
        leaf.not_valid_after_utc.timestamp(),
        key_sha256(leaf.public_key()),
    )


@contextmanager
def translated(error: ShoalError) -> Iterator[None]:
    """Raise `error` for what cryptography raises for unreadable, forged or unsupported data."""
    try:
        yield
    except (
        ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion,
        x509.ExtensionNotFound,
    ) as cause:  # fmt: skip
        raise error from cause


def key_sha256(public: PublicKeyTypes) -> str:
    """SHA-256 of a public key (SubjectPublicKeyInfo, DER), hex."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(public.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def _read(certificate: str) -> x509.Certificate:
    with translated(DeniedError("not a certificate in PEM", _AGAIN)):
        if len(certificate) > _LIMIT:
            raise ValueError("too long")
        return x509.load_pem_x509_certificate(certificate.encode())


def _check_issued(leaf: x509.Certificate, issuer: x509.Certificate, now: float) -> None:
    with translated(DeniedError("this certificate was not issued by this controller's CA", _AGAIN)):
        leaf.verify_directly_issued_by(issuer)
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise DeniedError("this is not a device certificate")
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if not leaf.not_valid_before_utc <= at < leaf.not_valid_after_utc:
        raise DeniedError(
            f"this certificate expired on {leaf.not_valid_after_utc:%Y-%m-%d}", _AGAIN
        )


def _check_proof(leaf: x509.Certificate, proof: bytes, message: bytes) -> None:
    public = leaf.public_key()
    with translated(DeniedError("the proof is not signed by this certificate's key", _AGAIN)):
        if isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(proof, message, ec.ECDSA(hashes.SHA256()))
        elif isinstance(public, rsa.RSAPublicKey):
            public.verify(proof, message, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(proof, message)
        else:
            raise DeniedError("this certificate has an unsupported kind of key")
