"""The agent's endpoint against other servers: MLServer, BentoML, FastAPI with onnxruntime as its
guides have it, and as fast as it gets.

And its sketch against whylogs.

Every server answers for the same ONNX file, with the same options of onnxruntime, one worker, no
access log, asked by the same client. Each peer is installed in an environment of its own under
.venv-peers; one that cannot be is left out, and that is said. Only the agent counts and sketches.
"""

import contextlib
import functools
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from bench import clients, devices
from bench.measuring import F64, compare, interleave, quantile_us
from bench.peer import servers
from bench.releases import INPUT, MODEL, make_release, perceptron
from bench.report import Aim, Found, Row
from bench.sketch_peers import WHYLOGS, sketch_against
from shoal.sketch import F32

CLIENTS, FEATURES = 8, 64
#: 602 kB: as many values as one image of 3x224x224 has, as rows of 3072 (images of 3x32x32).
IMAGE = (49, 3_072)
RATE_AIMS = {
    name: Aim(at_least=times, on_ratio=True)
    for name, times in (("mlserver", 10.0), ("fastapi", 4.0))
}


def run(*, quick: bool) -> Found:
    calls, repetitions = (50, 2) if quick else (2_000, 9)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        small = _Side(stack, folder / "small", FEATURES)
        rows, notes = _small(small, calls, repetitions), dict(small.missing)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        large = _Side(stack, folder / "large", IMAGE[1], only=("mlserver",))
        rows += _image(large, max(4, calls // 100), repetitions)
    try:
        rows += sketch_against(WHYLOGS, calls // 2, repetitions)
    except servers.MissingError as error:
        notes["whylogs was left out"] = str(error)
    return Found(rows=rows, notes=notes)


class _Side:
    """The agent and the peers, serving one model of `features` columns. missing: name -> reason."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        folder: Path,
        features: int,
        only: tuple[str, ...] = tuple(servers.PEERS),
    ) -> None:
        graph = perceptron(features)
        folder.mkdir()
        (folder / "model.onnx").write_bytes(graph)
        devices.seed_folder(folder / "agent", make_release(graph, features=features))
        agent = stack.enter_context(devices.running(folder / "agent"))
        self.servers = {"shoal": servers.Server(agent.address(), agent.pid)}
        self.missing: dict[str, str] = {}
        for name in only:
            try:
                started = servers.running(name, folder / "model.onnx", folder)
                self.servers[name] = stack.enter_context(started)
            except servers.MissingError as error:
                self.missing[f"{name} was left out"] = str(error)


class _Crowd(NamedTuple):
    """rate: requests a second; cpu_us: CPU of the server a request; p99_us: of a client's wait."""

    rate: float
    cpu_us: float
    p99_us: float


def _small(side: _Side, calls: int, repetitions: int) -> list[Row]:
    """One row of JSON: latency for one client; requests a second and CPU for eight."""
    row = np.random.default_rng(1).normal(size=(1, FEATURES)).astype(np.float32)
    alone = {
        name: functools.partial(_one, server.address, _request_for(name, row), calls)
        for name, server in side.servers.items()
    }
    crowds = {
        name: functools.partial(_crowd, server, _request_for(name, row), calls)
        for name, server in side.servers.items()
    }
    one, many = interleave(repetitions, alone), interleave(repetitions, crowds)
    rows = []
    for name in [name for name in side.servers if name != "shoal"]:
        for quantile in (0.5, 0.99):
            ours, theirs = (quantile_us(one[n], quantile) for n in ("shoal", name))
            what = f"JSON, 1 client, p{quantile * 100:.0f}"
            rows.append(compare(what, "µs", ours, theirs, against=name))
        for what, unit, field, aim in (
            (f"JSON, {CLIENTS} clients", "requests/s", 0, RATE_AIMS.get(name)),
            ("... p99", "µs", 2, None),
            ("... CPU of the server", "µs/request", 1, None),
        ):
            ours, theirs = ([c[field] for c in many[n]] for n in ("shoal", name))
            rows.append(compare(what, unit, ours, theirs, against=name, aim=aim))
    return rows


def _image(side: _Side, calls: int, repetitions: int) -> list[Row]:
    """A tensor of 602 kB: bytes to the agent; JSON to MLServer, which reads no other over HTTP.

    The mean says what the median hides: every 256 rows the agent counts 3072 columns.
    """
    if "mlserver" not in side.servers:
        return []
    rows = np.random.default_rng(1).normal(size=IMAGE).astype(np.float32)
    ours, theirs = (side.servers[name].address for name in ("shoal", "mlserver"))
    text = clients.infer_request(MODEL, INPUT, rows)
    sides = {
        "bytes": functools.partial(_one, ours, _bytes_request(rows), calls),
        "JSON": functools.partial(_one, ours, text, calls),
        "theirs": functools.partial(_one, theirs, text, calls),
    }
    found, against = interleave(repetitions, sides), "mlserver, JSON"
    made = []
    for kind, of in (("p50", np.median), ("p99", _p99), ("mean", np.mean)):
        ms = {name: [float(of(t)) * 1e3 for t in times] for name, times in found.items()}
        aim = Aim(at_most=round(float(np.median(ms["theirs"])) / 3, 2))
        for how, bound in (("bytes", aim if kind != "p99" else None), ("JSON", None)):
            what = f"602 kB, {how}, {kind}"
            made.append(compare(what, "ms", ms[how], ms["theirs"], against=against, aim=bound))
    return made


def _p99(times: F64) -> float:
    return float(np.quantile(times, 0.99))


def _one(address: tuple[str, int], request: bytes, calls: int) -> F64:
    with devices.connect(address) as connection:
        return clients.one_client(connection, request, calls)


def _crowd(server: servers.Server, request: bytes, calls: int) -> _Crowd:
    with _connections(server.address) as connections:
        before = server.cpu_s()
        took = clients.many_clients(connections, request, calls)
        cpu_us = (server.cpu_s() - before) / calls * 1e6
        return _Crowd(CLIENTS / float(took.mean()), cpu_us, float(np.quantile(took, 0.99)) * 1e6)


@contextlib.contextmanager
def _connections(address: tuple[str, int]) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(devices.connect(address)) for _ in range(CLIENTS)]


def _request_for(name: str, rows: F32) -> bytes:
    """Request of a peer's client."""
    if name in ("shoal", "mlserver"):
        return clients.infer_request(MODEL, INPUT, rows)
    body = orjson.dumps({"rows": rows}, option=orjson.OPT_SERIALIZE_NUMPY)
    return _post("/predict", body, "Content-Type: application/json\r\n")


def _bytes_request(rows: F32) -> bytes:
    size = {"binary_data_size": rows.nbytes}
    shape = list(rows.shape)
    tensor = {"name": INPUT, "shape": shape, "datatype": "FP32", "parameters": size}
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    length = f"Inference-Header-Content-Length: {len(head)}\r\n"
    return _post(f"/v2/models/{MODEL}/infer", head + rows.tobytes(), length)


def _post(path: str, body: bytes, headers: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body
