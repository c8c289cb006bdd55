"""Verification of another device's signature by its certificate.

A device signs its advert and its vote with the key of its certificate, which is in the advert. The
only trust anchor is the device CA.
"""

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shoal.errors import UntrustedError
from shoal.issuer import is_issued_by

#: Longest certificate in DER, bytes: an advert is sent to every neighbour.
LONGEST = 4096


def check_signature(
    certificate: bytes,
    authorities: Sequence[x509.Certificate],
    device: str,
    signature: bytes,
    message: bytes,
    now_s: float,
) -> None:
    """Raise UntrustedError unless `device` signed `message` with its certificate's key.

    certificate   DER, from the advert
    authorities   certificates of the device CA, from enrolment
    now_s         Unix seconds
    """
    leaf = _read(certificate, device)
    _check_validity(leaf, authorities, device, now_s)
    if _device_of(leaf) != device:
        raise UntrustedError(f"the certificate in the advert of {device} is another device's")
    try:
        _verify(leaf, signature, message)
    except (InvalidSignature, ValueError) as error:
        raise UntrustedError(f"not signed by {device}") from error


def _read(certificate: bytes, device: str) -> x509.Certificate:
    if len(certificate) > LONGEST:
        raise UntrustedError(f"certificate of {device}: {len(certificate)} bytes")
    try:
        return x509.load_der_x509_certificate(certificate)
    except (ValueError, x509.InvalidVersion) as error:
        raise UntrustedError(f"certificate of {device} cannot be read: {error}") from error


def _check_validity(
    leaf: x509.Certificate, authorities: Sequence[x509.Certificate], device: str, now_s: float
) -> None:
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise UntrustedError(f"certificate of {device} is not valid now", "is the clock right?")
    if not is_issued_by(leaf, authorities) or not _is_client(leaf):
        raise UntrustedError(f"certificate of {device} is not of this fleet's device CA")


def _is_client(leaf: x509.Certificate) -> bool:
    """Whether it is a client certificate: only devices have these."""
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage


def _device_of(leaf: x509.Certificate) -> str:
    """CN without the generation of a reused name: "cam-a.2" is cam-a."""
    names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value).partition(".")[0] if len(names) == 1 else ""


def _verify(leaf: x509.Certificate, signature: bytes, message: bytes) -> None:
    key = leaf.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    elif isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, message)
    else:
        raise ValueError("unsupported kind of key")
