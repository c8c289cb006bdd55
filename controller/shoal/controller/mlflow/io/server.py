"""The REST API of an MLflow server, by httpx: https://mlflow.org/docs/latest/rest-api.html

Answers are bounded, redirects are not followed: credentials go to the configured server only.
"""

import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from shoal.controller.host.settings import Mlflow
from shoal.controller.mlflow import registry
from shoal.controller.mlflow.registry import Reference, Version
from shoal.errors import AbsentError, DeniedError, InputError, LinkError, ModelError, SettingError

#: Seconds that one answer, and one download, may take; bytes of an answer.
TIMEOUT_S, DOWNLOAD_S, ANSWER = 20.0, 900.0, 8 << 20
_API, _ARTIFACTS = "/api/2.0/mlflow/", "/api/2.0/mlflow-artifacts/artifacts"
_BLOCK = 1 << 16
#: Files of a model that are listed, and folders that are looked into.
_MOST_FILES, _DEEPEST = 500, 3


class Server:
    """One MLflow server, shared between threads. Nothing is read or sent until it is used."""

    def __init__(self, settings: Mlflow, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._client: httpx.Client | None = None

    @property
    def url(self) -> str:
        return self._settings.url.rstrip("/")

    def alias_version(self, reference: Reference) -> str:
        """The version that an alias names, in one call."""
        return str(self._find(reference)["version"])

    def version_of(self, reference: Reference) -> Version:
        """The version that a reference names, where its files are, and the run that logged it."""
        name = reference.name
        one = self._find(reference)
        number, run_id = str(one["version"]), str(one.get("run_id") or "")
        where = self.call(
            "GET", "model-versions/get-download-uri", {"name": name, "version": number}
        )
        return Version(
            name=name,
            version=number,
            source=self._resolved(str(where.get("artifact_uri") or one.get("source") or "")),
            run_id=run_id,
            tags=registry.bounded_tags(one.get("tags")),
            run_tags=self._run_tags(run_id),
        )

    def call(self, method: str, path: str, body: Mapping[str, Any]) -> Any:
        """One call of the API, its answer decoded. body: of a GET, the query."""
        sent = {"params": dict(body)} if method == "GET" else {"json": dict(body)}
        with self._request(method, _API + path, **sent) as answer:
            return _decoded(_read(answer, ANSWER, path), path)

    def list_files(self, source: str) -> dict[str, int]:
        """Files of a proxied source -> their size in bytes, by their path below it."""
        found: dict[str, int] = {}
        folders = [("", 0)]
        while folders:
            below, depth = folders.pop()
            whole = "/".join(filter(None, (source, below)))
            with self._request("GET", _ARTIFACTS, params={"path": whole}) as answer:
                listed = _decoded(_read(answer, ANSWER, whole), whole)
            for one in listed.get("files") or []:
                name = "/".join(filter(None, (below, str(one.get("path", "")).rpartition("/")[2])))
                if not registry.is_plain_path(name):
                    raise ModelError(f"MLflow lists a file {name[:80]!r}", "log the model again")
                if one.get("is_dir") and depth < _DEEPEST:
                    folders.append((name, depth + 1))
                elif not one.get("is_dir"):
                    found[name] = int(one.get("file_size") or 0)
            if len(found) + len(folders) > _MOST_FILES:
                raise ModelError(
                    f"{source} has more than {_MOST_FILES} files", "log fewer beside it"
                )
        return found

    def read_file(self, source: str, name: str, limit: int) -> bytes:
        """A small file of a proxied source; ModelError for one over `limit` bytes."""
        with self._request("GET", _file(source, name)) as answer:
            return _read(answer, limit, name)

    def download(self, source: str, name: str, to: BinaryIO, limit: int) -> int:
        """Write a file of a proxied source, and return its size; ModelError over `limit` bytes."""
        size, until = 0, time.monotonic() + DOWNLOAD_S
        with self._request("GET", _file(source, name)) as answer:
            for block in _blocks(answer):
                size += len(block)
                _check_size(size, limit, name)
                if time.monotonic() > until:
                    raise LinkError(f"{name} takes more than {DOWNLOAD_S:g} s", "see MLflow's link")
                to.write(block)
        return size

    def _find(self, reference: Reference) -> dict[str, Any]:
        query = {"name": reference.name}
        try:
            if reference.alias:
                query["alias"] = reference.alias
                found = self.call("GET", "registered-models/alias", query)
            else:
                query["version"] = reference.version
                found = self.call("GET", "model-versions/get", query)
        except (AbsentError, InputError) as error:  # an unknown alias is a 400
            kind = "alias" if reference.alias else "version"
            raise AbsentError(
                f"{kind} in MLflow at {self.url}",
                f"mlflow:{reference}",
                "list them in its registry",
            ) from error
        one: dict[str, Any] = found["model_version"]
        return one

    def _resolved(self, uri: str) -> str:
        """The artifacts of a logged model, which MLflow 3 names models:/m-ID."""
        parts = urlsplit(uri)
        if parts.scheme != registry.LOGGED:
            return uri
        found = self.call("GET", f"logged-models/{quote(parts.path.strip('/'), safe='')}", {})
        return str(found["model"]["info"]["artifact_uri"])

    def _run_tags(self, run_id: str) -> dict[str, str]:
        if not run_id:
            return {}
        try:
            found = self.call("GET", "runs/get", {"run_id": run_id})
        except AbsentError:
            return {}  # deleted since: the version is still whole
        return registry.bounded_tags(found["run"]["data"].get("tags"))

    @contextmanager
    def _request(self, method: str, path: str, **more: Any) -> Iterator[httpx.Response]:
        """A streamed answer that is a success; every other one is raised."""
        try:
            with self._open().stream(method, self.url + path, **more) as answer:
                if answer.status_code != 200:
                    _refuse(answer, self.url)
                yield answer
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise LinkError(
                f"MLflow at {self.url}: {type(error).__name__}: {error!s:.200}",
                "check url under [mlflow] in controller.toml, and that the server runs",
            ) from error

    def _open(self) -> httpx.Client:
        if self._client is None:
            settings = self._settings
            if not settings.url:
                raise SettingError(
                    "no MLflow server is configured",
                    'set url = "https://..." under [mlflow] in controller.toml (docs/mlflow.md)',
                )
            self._client = httpx.Client(
                timeout=TIMEOUT_S,
                follow_redirects=False,
                trust_env=False,
                headers={"User-Agent": "shoal", **self._bearer()},
                auth=self._password(),
                verify=self._verify(),
            )
        return self._client

    def _bearer(self) -> dict[str, str]:
        token = self._secret("token_file", self._settings.token_file)
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _password(self) -> httpx.BasicAuth | None:
        if not self._settings.user:
            return None
        password = self._secret("password_file", self._settings.password_file)
        return httpx.BasicAuth(self._settings.user, password)

    def _secret(self, setting: str, name: str) -> str:
        if not name:
            return ""
        path = self._folder / name  # an absolute path stays what it is
        try:
            return path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(
                f"mlflow.{setting}: {path}: {error}", "write the secret into it, mode 0600"
            ) from error

    def _verify(self) -> Any:
        if not self._settings.ca_file:
            return True
        try:
            return ssl.create_default_context(cafile=self._folder / self._settings.ca_file)
        except OSError as error:
            raise SettingError(
                f"mlflow.ca_file: {self._settings.ca_file}: {error}", "name a PEM file of a CA"
            ) from error


def _file(source: str, name: str) -> str:
    return f"{_ARTIFACTS}/{quote(f'{source}/{name}')}"


def _refuse(answer: httpx.Response, url: str) -> None:
    """Raise what a status other than 200 means."""
    status = answer.status_code
    if int(answer.headers.get("content-length") or ANSWER) < ANSWER:
        answer.read()
    reported = _reported(answer)
    message = (
        f"MLflow at {url} answered {status}: {reported}"
        if reported
        else f"MLflow at {url} answered {status}"
    )
    if status == 404:
        raise AbsentError("MLflow object", reported or "as asked for", "look in MLflow's registry")
    if status in (401, 403):
        raise DeniedError(
            message,
            "check token_file, or user and password_file, under [mlflow]; a server that runs as "
            "another host needs --allowed-hosts",
            signed_in=True,
        )
    if status in (408, 429) or status >= 500:
        raise LinkError(message, "it is tried again")
    raise InputError(message, "see the MLflow server's log")


def _reported(answer: httpx.Response) -> str:
    try:
        found = msgspec.json.decode(answer.content)
        return str(found.get("message", ""))[:300] if isinstance(found, dict) else ""
    except (msgspec.DecodeError, httpx.ResponseNotRead):
        return ""


def _blocks(answer: httpx.Response) -> Iterator[bytes]:
    yield from answer.iter_bytes(_BLOCK)


def _read(answer: httpx.Response, limit: int, name: str) -> bytes:
    found = bytearray()
    for block in _blocks(answer):
        found += block
        _check_size(len(found), limit, name)
    return bytes(found)


def _check_size(size: int, limit: int, name: str) -> None:
    if size > limit:
        raise ModelError(f"MLflow's {name} has more than {limit} bytes", "that is not read")


def _decoded(data: bytes, path: str) -> Any:
    try:
        return msgspec.json.decode(data or b"{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise LinkError(
            f"MLflow's answer to {path} is not JSON: {error}", "is url MLflow's?"
        ) from error
