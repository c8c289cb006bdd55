"""SDK `Client`: inference by the agent on the same machine, over its Unix socket."""

import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import orjson

from shoal.agent.host.io.folder import FOLDER, SOCKET
from shoal.errors import (
    AbsentError,
    ConflictError,
    InputError,
    LinkError,
    ModelError,
    ShoalError,
)
from shoal.pipeline import RAW
from shoal.sketch import F32
from shoal.tensors import ALIGNMENT, Array, Named, datatype_of, from_bytes, to_bytes

Bytes = bytes | memoryview
_END, _LARGEST = b"\r\n\r\n", 64 << 20
#: Bytes of a body up to which a request is sent at once: the agent knows its header again then.
JOINED = 64 << 10
_ERRORS: dict[int, type[ShoalError]] = {
    400: InputError,
    409: ConflictError,
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
    """Connection to the agent on this machine. Safe to share between threads.

    model      name; "" for the only one that serves
    folder     the agent's
    timeout_s  of a response

    >>> with Client("lot-codes") as client:                             # doctest: +SKIP
    ...     probabilities = client.infer(rows)

    An update needs nothing of the program: the next response is of the new release, and `release`
    is the release of the last response. Every method raises LinkError when the agent cannot be
    reached or is overloaded (try again), and AbsentError when nothing serves.
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
        """Outputs float32 (n, C) of rows (n, F): probabilities, or one value each.

        raw   rows are in the plant's units and go through the release's pipeline first

        Raises InputError for rows that do not fit, and for a release that takes tensors;
        ModelError when the runtime fails.
        """
        given = np.ascontiguousarray(rows, "<f4")
        if given.ndim != 2:
            raise InputError(f"rows of shape {given.shape}", "send (rows, features)")
        response = self._infer_raw(given) if raw else self._infer(given)
        head = orjson.loads(response.body[: response.json_bytes])
        self.release = f"{head['model_name']}@{head['model_version']}"
        if "parameters" in head:  # the bytes happened to fit its one tensor
            raise InputError(f"{self.release} takes tensors, not rows", "use infer_tensors")
        outputs = np.frombuffer(response.body, "<f4", offset=response.json_bytes)
        return outputs.reshape(head["outputs"][0]["shape"])

    def infer_tensors(
        self,
        inputs: Mapping[str, npt.ArrayLike],
        outputs: Sequence[str] = (),
        *,
        sequence: str | int | None = None,
        start: bool = False,
        end: bool = False,
    ) -> dict[str, Array]:
        """Outputs by name of inputs by name; arrays of the model's own datatypes.

        outputs      names; empty for all
        sequence     id of a stream, for a recurrent model: the agent keeps the states between its
                     steps. start: this is its first step; end: its last one

        Strings are arrays of str or of objects. Raises InputError for inputs that do not fit and
        for a sequence that is not open, ConflictError for a sequence whose release is no longer
        loaded, ModelError when the runtime fails.
        """
        arrays = {name: np.asarray(array) for name, array in inputs.items()}
        head, parts = tensor_request(arrays, outputs, sequence, start, end)
        length = f"Inference-Header-Content-Length: {len(head)}\r\n"
        path = f"/v2/models/{self._model}/infer"
        response = self._request("POST", path, head, *parts, header=length)
        found = orjson.loads(response.body[: response.json_bytes])
        self.release = f"{found['model_name']}@{found['model_version']}"
        return tensors_of(found["outputs"], response.body, response.json_bytes)

    def describe(self) -> Description:
        """The release that serves."""
        found = orjson.loads(self._request("GET", f"/v2/models/{self._model}").body)
        parameters = found["parameters"]
        return Description(
            model=found["name"],
            release=f"{found['name']}@{found['versions'][0]}",
            variant=parameters["variant"],
            features=parameters["features"],
            labels=parameters["labels"],
        )

    def ready(self) -> bool:
        """Whether the agent runs and a release of the model serves."""
        try:
            self._request("GET", f"/v2/models/{self._model}/ready")
        except ShoalError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        with self._lock:
            self._disconnect()

    def _infer(self, given: F32) -> "_Response":
        """A binary request without JSON: the body is the tensor."""
        path = f"/v2/models/{self._model}/infer"
        no_json = "Inference-Header-Content-Length: 0\r\n"
        return self._request("POST", path, _bytes_of(given), header=no_json)

    def _infer_raw(self, given: F32) -> "_Response":
        size = {"binary_data_size": given.nbytes}
        tensor = {"name": RAW, "shape": given.shape, "datatype": "FP32", "parameters": size}
        head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        length = f"Inference-Header-Content-Length: {len(head)}\r\n"
        path = f"/v2/models/{self._model}/infer"
        return self._request("POST", path, head, _bytes_of(given), header=length)

    def _only(self) -> str:
        """Name of the only model that serves."""
        models = orjson.loads(self._request("GET", "/status").body)["models"]
        names = [m["model"] for m in models if m["release"]]
        if len(names) != 1:
            raise AbsentError("single model", ", ".join(names) or "none", "name the one you mean")
        return str(names[0])

    def _request(self, method: str, path: str, *body: Bytes, header: str = "") -> "_Response":
        """body: its parts, `header`: lines of the head, each with its end."""
        size = sum(map(len, body))
        head = f"{method} {path} HTTP/1.1\r\nHost: agent\r\n{header}Content-Length: {size}"
        request: list[Bytes] = [head.encode() + _END, *body]
        if size < JOINED:
            request = [b"".join(request)]
        with self._lock:
            try:
                response = self._exchange(request)
            except (OSError, ValueError, LookupError) as error:
                self._disconnect()
                why = str(error) or type(error).__name__
                raise LinkError(f"{self._path}: {why}", "is shoal-agent running?") from error
        if response.status != 200:
            raise _error(response, self._model)
        return response

    def _exchange(self, request: Sequence[Bytes]) -> "_Response":
        """Send a request, read the response; reconnect if the agent closed an idle connection."""
        open_already = self._connection
        if open_already is not None:
            try:
                _send(open_already, request)
                return _read(open_already)
            except (BrokenPipeError, ConnectionResetError, _DisconnectedError):
                self._disconnect()
        made = self._connection = socket.socket(socket.AF_UNIX)
        made.settimeout(self._timeout_s)
        made.connect(str(self._path))
        _send(made, request)
        return _read(made)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Response(NamedTuple):
    """One HTTP response. json_bytes: of the body, before a tensor's bytes; -1 when all is JSON."""

    status: int
    body: memoryview
    json_bytes: int


class _DisconnectedError(OSError):
    """The connection ended before the first byte of a response."""


def tensor_request(
    arrays: Named, outputs: Sequence[str], sequence: str | int | None, start: bool, end: bool
) -> tuple[bytes, list[Bytes]]:
    """A binary request: its JSON, and the bytes of each array, without a copy where that can be.

    The JSON ends at a multiple of ALIGNMENT, so that the first array is read without a copy.
    """
    parts = [_bytes_of(array) for array in arrays.values()]
    tensors = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": datatype_of(array),
            "parameters": {"binary_data_size": len(part)},
        }
        for (name, array), part in zip(arrays.items(), parts, strict=True)
    ]
    parameters: dict[str, Any] = {"binary_data_output": True}
    if sequence is not None:
        parameters |= {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
    asked = {"inputs": tensors, "parameters": parameters}
    if outputs:
        asked["outputs"] = [{"name": name} for name in outputs]
    head = orjson.dumps(asked)
    return head + b" " * (-len(head) % ALIGNMENT), parts


def _bytes_of(array: Array) -> Bytes:
    if array.dtype.kind in "OSU" or not array.dtype.isnative:
        return to_bytes(array)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def tensors_of(outputs: list[dict[str, Any]], body: Bytes, at: int) -> dict[str, Array]:
    """The arrays of a binary response whose JSON ends at byte `at`."""
    found: dict[str, Array] = {}
    for output in outputs:
        size = output["parameters"]["binary_data_size"]
        data = memoryview(body)[at : at + size]
        found[output["name"]] = from_bytes(output["datatype"], output["shape"], data)
        at += size
    return found


def _send(connection: socket.socket, parts: Sequence[Bytes]) -> None:
    for part in parts:
        connection.sendall(part)


def _read(connection: socket.socket) -> _Response:
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
    return _Response(int(lines[0].split()[1]), memoryview(data)[end + len(_END) :], json_bytes)


def _receive(connection: socket.socket, data: bytearray) -> None:
    more = connection.recv(1 << 18)
    if not more:
        closed = "the agent closed the connection"
        raise OSError(closed) if data else _DisconnectedError(closed)
    data += more
    if len(data) > _LARGEST:
        raise ValueError(f"a response of more than {_LARGEST} bytes")


def _error(response: _Response, model: str) -> ShoalError:
    try:
        why: Any = orjson.loads(response.body)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        why = f"HTTP {response.status}"
    if response.status == 404:
        return AbsentError("model", model, str(why))
    return _ERRORS.get(response.status, ModelError)(str(why))
