"""A program's way to the agent on the same machine: the Unix socket, arrays in and out."""

import socket
import threading
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import orjson

from shoal.agent.host.io.folder import FOLDER, SOCKET
from shoal.errors import (
    AbsentError,
    InputError,
    LinkError,
    ModelError,
    ShoalError,
)
from shoal.pipeline import RAW
from shoal.sketch import F32

_END, _LARGEST = b"\r\n\r\n", 64 << 20
_ERRORS: dict[int, type[ShoalError]] = {
    400: InputError,
    413: InputError,
    500: ModelError,
    503: LinkError,
}


class Description(NamedTuple):
    """A model in service: its release and variant, its columns, its classes ([] for values)."""

    model: str
    release: str
    variant: str
    features: list[str]
    labels: list[str]


class Client:
    """Asks the agent that runs on this machine. Safe to share between threads.

    model      which; "" for the only one that serves
    folder     the agent's
    timeout_s  that an answer may take

    >>> with Client("lot-codes") as client:                             # doctest: +SKIP
    ...     probabilities = client.infer(rows)

    Updates need nothing of the program: the next answer is the new release's, and `release` says
    whose the last one was. Every method raises LinkError when the agent cannot be reached or has
    too much to do (try again), and AbsentError when nothing serves.
    """

    def __init__(
        self, model: str = "", folder: Path | str = FOLDER, *, timeout_s: float = 10.0
    ) -> None:
        self._path, self._timeout_s = Path(folder) / SOCKET, timeout_s
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self.release = ""
        self._model = model or self._only()

    def infer(self, rows: npt.ArrayLike, *, raw: bool = False) -> F32:
        """Answer rows (n, F) with float32 (n, C): probabilities, or one value each.

        raw   rows are in the plant's units: the release's pipeline makes the model's of them

        Raises InputError for rows that do not fit, ModelError when the runtime fails.
        """
        given = np.ascontiguousarray(rows, "<f4")
        if given.ndim != 2:
            raise InputError(f"rows of shape {given.shape}", "send (rows, features)")
        answer = self._infer_raw(given) if raw else self._infer(given)
        told = orjson.loads(answer.body[: answer.json_bytes])
        self.release = f"{told['model_name']}@{told['model_version']}"
        said = np.frombuffer(answer.body, "<f4", offset=answer.json_bytes)
        return said.reshape(told["outputs"][0]["shape"])

    def describe(self) -> Description:
        """What serves now."""
        told = orjson.loads(self._ask("GET", f"/v2/models/{self._model}").body)
        parameters = told["parameters"]
        return Description(
            model=told["name"],
            release=f"{told['name']}@{told['versions'][0]}",
            variant=parameters["variant"],
            features=parameters["features"],
            labels=parameters["labels"],
        )

    def ready(self) -> bool:
        """Whether the agent is there and a release of the model serves."""
        try:
            self._ask("GET", f"/v2/models/{self._model}/ready")
        except ShoalError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the next call connects anew."""
        with self._lock:
            self._hang_up()

    def _infer(self, given: F32) -> "_Answer":
        """A body that is the tensor and nothing else needs no name and no shape."""
        head = f"/v2/models/{self._model}/infer"
        return self._ask("POST", head, given.tobytes(), "Inference-Header-Content-Length: 0\r\n")

    def _infer_raw(self, given: F32) -> "_Answer":
        size = {"binary_data_size": given.nbytes}
        tensor = {"name": RAW, "shape": given.shape, "datatype": "FP32", "parameters": size}
        head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        length = f"Inference-Header-Content-Length: {len(head)}\r\n"
        path = f"/v2/models/{self._model}/infer"
        return self._ask("POST", path, head + given.tobytes(), length)

    def _only(self) -> str:
        """The one model that serves."""
        models = orjson.loads(self._ask("GET", "/status").body)["models"]
        names = [m["model"] for m in models if m["release"]]
        if len(names) != 1:
            raise AbsentError("single model", ", ".join(names) or "none", "name the one you mean")
        return str(names[0])

    def _ask(self, method: str, path: str, body: bytes = b"", header: str = "") -> "_Answer":
        head = f"{method} {path} HTTP/1.1\r\nHost: agent\r\n{header}Content-Length: {len(body)}"
        request = head.encode() + _END + body
        with self._lock:
            try:
                answer = self._exchange(request)
            except (OSError, ValueError, LookupError) as error:
                self._hang_up()
                why = str(error) or type(error).__name__
                raise LinkError(f"{self._path}: {why}", "is shoal-agent running?") from error
        if answer.status != 200:
            raise _refused(answer, self._model)
        return answer

    def _exchange(self, request: bytes) -> "_Answer":
        """One request, one answer; once more where the agent has hung up on an idle connection."""
        kept = self._connection
        if kept is not None:
            try:
                kept.sendall(request)
                return _read(kept)
            except (BrokenPipeError, ConnectionResetError, _HungUpError):
                self._hang_up()
        made = self._connection = socket.socket(socket.AF_UNIX)
        made.settimeout(self._timeout_s)
        made.connect(str(self._path))
        made.sendall(request)
        return _read(made)

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Answer(NamedTuple):
    """One HTTP answer. json_bytes: of the body, before a tensor's bytes; -1 when it is all JSON."""

    status: int
    body: bytes
    json_bytes: int


class _HungUpError(OSError):
    """The connection ended before the first byte of an answer."""


def _read(connection: socket.socket) -> _Answer:
    data = bytearray()
    while (end := data.find(_END)) < 0:
        _receive(connection, data)
    lines = bytes(data[:end]).decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    size = int(headers["content-length"])
    while len(data) < end + len(_END) + size:
        _receive(connection, data)
    if headers.get("connection") == "close":
        connection.close()
    json_bytes = int(headers.get("inference-header-content-length", -1))
    return _Answer(int(lines[0].split()[1]), bytes(data[end + len(_END) :]), json_bytes)


def _receive(connection: socket.socket, data: bytearray) -> None:
    more = connection.recv(1 << 18)
    if not more:
        raise _HungUpError("the agent hung up") if not data else OSError("the agent hung up")
    data += more
    if len(data) > _LARGEST:
        raise ValueError(f"an answer of more than {_LARGEST} bytes")


def _refused(answer: _Answer, model: str) -> ShoalError:
    try:
        why: Any = orjson.loads(answer.body)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        why = f"HTTP {answer.status}"
    if answer.status == 404:
        return AbsentError("model", model, str(why))
    return _ERRORS.get(answer.status, ModelError)(str(why))
