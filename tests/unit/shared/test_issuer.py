"""Who issued a certificate: by the signature, not by the name."""

import datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from shoal.issuer import is_issued_by

BEGAN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def certificate(name: str, issuer: str, key: Any, by: Any) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(BEGAN)
        .not_valid_after(BEGAN + datetime.timedelta(days=1))
    )
    return builder.sign(by, hashes.SHA256() if isinstance(by, ec.EllipticCurvePrivateKey) else None)


KEY, OTHER, ODD = (
    ec.generate_private_key(ec.SECP256R1()),
    ec.generate_private_key(ec.SECP256R1()),
    ed25519.Ed25519PrivateKey.generate(),
)
CA = certificate("ca", "ca", KEY, KEY)
LEAF = certificate("cam-1", "ca", OTHER, KEY)


@pytest.mark.parametrize(
    ("authorities", "issued"),
    [
        ([CA], True),
        ([certificate("old", "old", OTHER, OTHER), CA], True),
        ([certificate("ca", "ca", OTHER, OTHER)], False),  # its name, another key
        ([certificate("ca", "ca", ODD, ODD)], False),  # its name, a key of another kind
        ([certificate("another", "another", KEY, KEY)], False),  # its key, another name
        ([], False),
    ],
)
def test_a_certificate_verifies_against_its_issuer_alone(
    authorities: list[x509.Certificate], issued: bool
) -> None:
    assert is_issued_by(LEAF, authorities) is issued
