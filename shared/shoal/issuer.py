"""Issuer check of X.509 certificates."""

from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import InvalidSignature


def is_issued_by(leaf: x509.Certificate, authorities: Iterable[x509.Certificate]) -> bool:
    """Whether one of `authorities` issued and signed `leaf`.

    Checks neither validity times nor key usage.
    """
    return any(_signed(leaf, one) for one in authorities)


def _signed(leaf: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
