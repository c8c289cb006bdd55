"""HTTP client of the controller's API: JSON in, JSON out, problems as exceptions."""

import ssl
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Self
from urllib.parse import quote

import httpx
import msgspec

from shoal.cli.account import Account, trust
from shoal.cli.exit_codes import ProblemError
from shoal.errors import LinkError

PREFIX = "/api/v1"
#: Long reads: the controller responds to train and publish only after it is durable.
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)

JsonObject = dict[str, Any]


def at(*parts: str) -> str:
    """URL path of a resource under the API's prefix.

    >>> at("releases", "lot-codes@3", "publish")
    '/api/v1/releases/lot-codes@3/publish'
    """
    return "/".join([PREFIX, *(quote(part, safe="@:") for part in parts)])


class Api:
    """An authenticated connection.

    >>> with Api(account) as api: api.get(at("fleet"))     # doctest: +SKIP

    Every call raises exit_codes.ProblemError when the controller refuses, LinkError when it cannot
    be reached or its CA is not the pinned one.
    """

    def __init__(
        self,
        account: Account,
        *,
        trust_environment: bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"authorization": f"Bearer {account.token}"} if account.token else {}
        self.url = account.url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers | {"accept": "application/json"},
            verify=trust(account),
            timeout=_TIMEOUT,
            trust_env=trust_environment,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        """Decoded JSON of a GET; empty query values are omitted."""
        return self._send("GET", path, params=_non_empty(query))

    def items(self, path: str, *, most: int = 0, **query: Any) -> Iterator[JsonObject]:
        """Items of a paged list, `most` of them; 0 for all."""
        cursor, seen = "", 0
        while True:
            page = self.get(path, **query, cursor=cursor)
            for item in page["items"]:
                yield item
                seen += 1
                if most and seen == most:
                    return
            cursor = page.get("page", {}).get("next", "")
            if not cursor:
                return

    def post(self, path: str, body: Any = None, wait_s: float = 0.0) -> Any:
        """Decoded JSON of a POST, sent with an Idempotency-Key.

        wait_s   seconds to wait for the response; 0 for as long as of every other request
        """
        more = {"timeout": httpx.Timeout(wait_s, connect=10.0)} if wait_s else {}
        content = msgspec.json.encode({} if body is None else body)
        headers = {"content-type": "application/json", "idempotency-key": uuid.uuid4().hex}
        return self._send("POST", path, content=content, headers=headers, **more)

    def put(self, path: str, body: Any) -> Any:
        headers = {"content-type": "application/json"}
        return self._send("PUT", path, content=msgspec.json.encode(body), headers=headers)

    def upload(
        self, path: str, files: Mapping[str, Any], fields: Mapping[str, str], wait_s: float = 60.0
    ) -> Any:
        """Send files (field -> (name, open file)) and fields as multipart/form-data.

        wait_s   seconds to wait for the response once it is sent
        """
        return self._send(
            "POST",
            path,
            files=files,
            data=_non_empty(fields),
            headers={"idempotency-key": uuid.uuid4().hex},
            timeout=httpx.Timeout(wait_s, connect=10.0),
        )

    def delete(self, path: str, **query: Any) -> Any:
        return self._send("DELETE", path, params=query)

    def download(self, path: str, target: BinaryIO, **query: Any) -> None:
        """Write the body of a GET to `target` as it arrives."""
        try:
            with self._http.stream("GET", path, params=_non_empty(query)) as response:
                if not response.is_success:
                    response.read()
                    raise ProblemError(response.status_code, _problem(response))
                target.writelines(response.iter_bytes())
        except httpx.TransportError as error:
            raise unreachable(self.url, error) from error

    def response(self, path: str) -> httpx.Response:
        """The raw response of GET `path`, whatever its status: for doctor and /ca.pem."""
        return self._request("GET", path)

    def _send(self, method: str, path: str, **more: Any) -> Any:
        response = self._request(method, path, **more)
        if response.is_success:
            return _json(response) if response.content else None
        raise ProblemError(response.status_code, _problem(response))

    def _request(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **more)
        except httpx.TransportError as error:
            raise unreachable(self.url, error) from error
        except httpx.InvalidURL as error:
            raise LinkError(f"{self.url!r} is no controller URL: {error}") from error


def _non_empty(query: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value not in ("", None, ())}


def _json(response: httpx.Response) -> Any:
    try:
        return msgspec.json.decode(response.content)
    except msgspec.DecodeError as error:
        raise LinkError(
            f"{response.url} did not return JSON", "is this a Shoal controller?"
        ) from error


def _problem(response: httpx.Response) -> JsonObject:
    try:
        body = msgspec.json.decode(response.content, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError):
        body = {"detail": f"HTTP {response.status_code}: {response.text[:200]}"}
    return body


def unreachable(url: str, error: httpx.TransportError) -> LinkError:
    """Why a request failed, with the hint that fits the cause."""
    if isinstance(error.__cause__, ssl.SSLCertVerificationError) or "CERTIFICATE" in str(error):
        return LinkError(
            f"{url} has no certificate of the pinned CA ({error})",
            "if the controller was reinstalled: shoal login; otherwise suspect interception",
        )
    if isinstance(error, httpx.UnsupportedProtocol):
        return LinkError(f"{url!r} is no controller URL", "write it as https://HOST:8443")
    what = "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error)
    if "Name or service not known" in what or "name resolution" in what:
        return LinkError(f"{url}: unknown host", "is its name right, and does DNS resolve it?")
    return LinkError(f"{url}: {what}", "is shoal-controller serve running there?")
