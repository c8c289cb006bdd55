"""Capability URLs: who holds one may fetch that one artifact until it expires, and nothing else.

HMAC-SHA256 over digest and expiry, so that the artifact server needs no database and a signed S3
URL can take its place (DESIGN section 10).
"""

import hashlib
import hmac
import re

from shoal.errors import DeniedError

KEY_BYTES = 32
_CONTEXT = "shoal artifact capability v1"
_NAME = re.compile(r"[0-9a-f]{64}(?:-[0-9a-f]{64})?")
_EXPIRY = re.compile(r"[0-9]{1,12}")


def make_url(base: str, key: bytes, sha256: str, expires_s: float) -> str:
    """URL below `base` under which the artifact server gives `sha256` until `expires_s` (Unix).

    "OLD-NEW", two of them, is what NEW differs by from OLD (shoal.delta).

    >>> make_url("https://shoal:8444/", b"k", "0" * 64, 1700000000.9)[:99]
    'https://shoal:8444/blobs/0000000000000000000000000000000000000000000000000000000000000000?exp=17000'
    """
    expires = str(int(expires_s))
    return f"{base.rstrip('/')}/blobs/{sha256}?exp={expires}&sig={_sign(key, sha256, expires)}"


def check(key: bytes, sha256: str, expires: str, signature: str, now_s: float) -> None:
    """Raise DeniedError unless `signature` is ours for this digest and expiry, not yet past.

    expires and signature are the query's own text. The signature is looked at first, in constant
    time, so that "expired" is only ever told of a URL that was once good.
    """
    well_formed = bool(_NAME.fullmatch(sha256) and _EXPIRY.fullmatch(expires))
    ours = _sign(key, sha256, expires).encode()
    if not (hmac.compare_digest(ours, signature.encode(errors="replace")) and well_formed):
        raise DeniedError("this address is not signed by the controller", "ask for a new one")
    if now_s >= int(expires):
        raise DeniedError("this address has expired", "ask for a new one", expired_at=int(expires))


def _sign(key: bytes, sha256: str, expires: str) -> str:
    message = f"{_CONTEXT}\n{sha256}\n{expires}".encode(errors="replace")
    return hmac.new(key, message, hashlib.sha256).hexdigest()
