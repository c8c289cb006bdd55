"""Download URLs: signed links that grant one artifact until they expire (capability URLs).

HMAC-SHA256 over digest and expiry, so that the artifact server needs no database and a presigned
S3 URL can take its place (DESIGN section 10).
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

from shoal.address import url_of
from shoal.controller.host.settings import Network
from shoal.errors import DeniedError, SettingError

KEY_BYTES = 32
_CONTEXT = "shoal artifact capability v1"
_NAME = re.compile(r"[0-9a-f]{64}(?:-[0-9a-f]{64})?")
_EXPIRY = re.compile(r"[0-9]{1,12}")


def make_url(base: str, key: bytes, sha256: str, expires_s: float) -> str:
    """URL below `base` at which the artifact server serves `sha256` until `expires_s` (Unix).

    "OLD-NEW", two of them, is the delta from OLD to NEW (shoal.delta).

    >>> make_url("https://shoal:8444/", b"k", "0" * 64, 1700000000.9)[:99]
    'https://shoal:8444/blobs/0000000000000000000000000000000000000000000000000000000000000000?exp=17000'
    """
    expires = str(int(expires_s))
    return f"{base.rstrip('/')}/blobs/{sha256}?exp={expires}&sig={_sign(key, sha256, expires)}"


def urls_of(
    folder: Path, network: Network, artifacts: Iterable[str], until_s: float
) -> dict[str, str]:
    """sha256 -> URL that is valid until `until_s`, Unix seconds; SettingError without the key.

    folder, network   of the controller
    """
    host = network.names[0] if network.names else network.host
    base, key = url_of("https", host, network.artifacts), read_key(folder)
    return {sha: make_url(base, key, sha, until_s) for sha in sorted(artifacts)}


def read_key(folder: Path) -> bytes:
    """The key that signs download URLs; SettingError if it is missing or too short."""
    path = folder / "keys" / "capability.key"
    try:
        key = path.read_bytes()
    except OSError as error:
        raise SettingError(f"no {path}", "run: shoal-controller init") from error
    if len(key) < KEY_BYTES:
        raise SettingError(f"{path}: {len(key)} bytes, {KEY_BYTES} needed")
    return key


def check(key: bytes, sha256: str, expires: str, signature: str, now_s: float) -> None:
    """Raise DeniedError unless `signature` is valid for this digest and expiry, and not expired.

    expires and signature are the text of the query. The signature is checked first, in constant
    time: only a URL that was once valid is reported as expired.
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
