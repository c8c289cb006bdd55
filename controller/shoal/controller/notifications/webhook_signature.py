"""Signatures of Standard Webhooks: https://github.com/standard-webhooks/standard-webhooks

The specification, version 1: headers webhook-id, webhook-timestamp (Unix seconds) and
webhook-signature, "v1," and the Base64 of HMAC-SHA256 over "ID.TIMESTAMP.BODY". A secret is
"whsec_" and the Base64 of 24 to 64 bytes.
"""

import base64
import binascii
import hashlib
import hmac

from shoal.errors import InputError

PREFIX = "whsec_"


def headers(secret: str, ident: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Headers that sign `body`.

    >>> headers("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek",
    ...         1614265330, b'{"test": 2432232314}')["webhook-signature"]
    'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE='
    """
    signed = f"{ident}.{timestamp}.".encode() + body
    mac = hmac.new(key(secret), signed, hashlib.sha256).digest()
    return {
        "webhook-id": ident,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": "v1," + base64.b64encode(mac).decode(),
    }


def key(secret: str) -> bytes:
    """Bytes of a secret; InputError, which does not repeat it."""
    try:
        found = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if not secret.startswith(PREFIX) or not 24 <= len(found) <= 64:
        raise InputError("the secret of a webhook", f"{PREFIX} and the Base64 of 24 to 64 bytes")
    return found
