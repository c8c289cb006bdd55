"""HTTPS requests to the controller; refusals and unreadable responses as errors."""

from typing import TYPE_CHECKING, TypeVar

import msgspec

from shoal.enrolment import LIMIT
from shoal.errors import DeniedError, LinkError
from shoal.validation_errors import decode_errors_as

if TYPE_CHECKING:
    from urllib3 import PoolManager

_TIMEOUT_S = 20.0
_T = TypeVar("_T")


def request(pool: "PoolManager", method: str, url: str, body: bytes | None = None) -> bytes:
    """The body of the response. DeniedError when refused, LinkError out of reach."""
    import urllib3

    headers = {"Content-Type": "application/json"} if body else {}
    try:
        response = pool.request(
            method,
            url,
            body=body,
            headers=headers,
            timeout=_TIMEOUT_S,
            retries=False,
            preload_content=False,
        )
        data = response.read(16 * LIMIT + 1)
        response.close()
    except urllib3.exceptions.HTTPError as error:
        raise LinkError(f"{url}: {error}", "is the controller running there?") from error
    if response.status >= 400:
        raise _refusal(url, response.status, data)
    return data


def decoded(data: bytes, kind: type[_T]) -> _T:
    """The controller's response; LinkError when it cannot be read."""
    with decode_errors_as(lambda e: LinkError(f"the controller's response cannot be read: {e}")):
        return msgspec.json.decode(data, type=kind)


def _refusal(url: str, status: int, body: bytes) -> DeniedError | LinkError:
    try:
        problem = msgspec.json.decode(body)
        why = str(problem.get("detail") or problem.get("title"))
    except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError):
        why = f"HTTP {status}"
    kind = DeniedError if status < 500 else LinkError
    return kind(f"{url} refused: {why}")
