"""The agent's inference against raw `session.run`, in process and over its local endpoint.

In process: the ServedModel that runs requests, with its checks, window and sketches.
Endpoint: a real agent's process, a client that keeps its connection; beside it an asyncio server
that does nothing, to tell what of the distance is not the agent's.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from bench import clients, devices
from bench.measuring import F64, compare, interleave, latencies, mean_us, quantile_us
from bench.releases import INPUT, MODEL, OUTPUT, convolutional, install, make_release, perceptron
from bench.report import Aim, Found, Row
from shoal.agent.host.io.folder import SOCKET
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.serving.io.runtime import OrtLoader
from shoal.agent.serving.io.session import import_ort
from shoal.agent.serving.served_model import ServedModel
from shoal.profile import Profile, profile
from shoal.sketch import F32
from shoal.wire import Health

IN_PROCESS, OVER_ENDPOINT = (Aim(at_most=us, on_difference=True) for us in (20.0, 120.0))
CLIENTS = 8
_RAW = "session.run"


def run(*, quick: bool) -> Found:
    """A small dense model and a convolutional one; 64 values a row."""
    calls, repetitions = (200, 2) if quick else (5_000, 15)
    rows: list[Row] = []
    notes: dict[str, str] = {}
    for name, graph in (("dense", perceptron(64)), ("conv", convolutional())):
        release = make_release(graph, features=64)
        with tempfile.TemporaryDirectory() as folder:
            slots = DiskSlots(Path(folder) / "models")
            install(release, Path(folder) / "models")
            raw = raw_session(slots.path(MODEL, "a") / "fp32.onnx", profile("generic"))
            for batch in (1, 32):
                row = np.random.default_rng(1).normal(size=(batch, 64)).astype(np.float32)
                sides = {"ours": _served(slots, row), "raw": _raw_run(raw, row)}
                rows += _in_process(f"{name}, batch {batch}", sides, calls, repetitions)
            devices.seed_folder(Path(folder) / "agent", release)
            found = _over_endpoint(Path(folder) / "agent", raw, calls, repetitions)
            rows += _endpoint_rows(name, found)
            notes |= _rates(name, found)
    return Found(rows=rows, notes=notes)


def _in_process(
    what: str, sides: Mapping[str, Callable[[], object]], calls: int, repetitions: int
) -> list[Row]:
    found = interleave(repetitions, {n: _timed(call, calls) for n, call in sides.items()})
    aim = IN_PROCESS if what.endswith("batch 1") else None
    kinds: tuple[tuple[str, Callable[[Sequence[F64]], list[float]], Aim | None], ...] = (
        ("p50", lambda times: quantile_us(times, 0.5), aim),
        ("p99", lambda times: quantile_us(times, 0.99), None),
        ("mean", mean_us, aim),
    )
    ours, raw = found["ours"], found["raw"]
    return [
        compare(f"in process: {what}, {kind}", "µs", of(ours), of(raw), against=_RAW, aim=bound)
        for kind, of, bound in kinds
    ]


def _over_endpoint(
    folder: Path, session: object, calls: int, repetitions: int
) -> dict[str, list[F64]]:
    """Latencies of every kind of client, and of `session.run`, per repetition."""
    row = np.random.default_rng(1).normal(size=(1, 64)).astype(np.float32)
    request = clients.infer_request(MODEL, INPUT, row)
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(devices.running(folder)).address()
        mute = stack.enter_context(_mute())

        def open_one(where: tuple[str, int] | Path) -> socket.socket:
            return stack.enter_context(devices.connect(where))

        tcp, unix, nothing = (open_one(where) for where in (address, folder / SOCKET, mute))
        crowd, nobody = ([open_one(w) for _ in range(CLIENTS)] for w in (address, mute))
        return interleave(
            repetitions,
            {
                "raw": _timed(_raw_run(session, row), calls),
                "tcp": lambda: clients.one_client(tcp, request, calls),
                "unix": lambda: clients.one_client(unix, request, calls),
                "mute": lambda: clients.one_client(nothing, request, calls),
                "crowd": lambda: clients.many_clients(crowd, request, calls),
                "mute crowd": lambda: clients.many_clients(nobody, request, calls),
            },
        )


def _endpoint_rows(name: str, found: Mapping[str, list[F64]]) -> list[Row]:
    return [
        compare(
            f"endpoint: {name}, {title}, p{q * 100:.0f}",
            "µs",
            quantile_us(found[side], q),
            quantile_us(found[against], q),
            against=_RAW if against == "raw" else "an asyncio server that does nothing",
            aim=OVER_ENDPOINT if against == "raw" and side != "crowd" and q == 0.5 else None,
        )
        for side, title, against in (
            ("tcp", "1 client", "raw"),
            ("tcp", "1 client", "mute"),
            ("unix", "1 on Unix socket", "raw"),
            ("crowd", f"{CLIENTS} clients", "raw"),
            ("crowd", f"{CLIENTS} clients", "mute crowd"),
        )
        for q in (0.5, 0.99)
    ]


def _rates(name: str, found: Mapping[str, list[F64]]) -> dict[str, str]:
    """Requests a second: by Little's law, clients over the mean latency."""
    rates = {}
    for side, title, together in (("tcp", "1 client", 1), ("crowd", f"{CLIENTS} clients", CLIENTS)):
        rate = float(np.median([together / times.mean() for times in found[side]]))
        rates[f"endpoint: {name}, {title}"] = f"{rate:,.0f} requests/s"
    return rates


def _timed(call: Callable[[], object], calls: int) -> Callable[[], F64]:
    return lambda: latencies(call, calls)


def _served(slots: DiskSlots, row: F32) -> Callable[[], object]:
    slot = slots.found()[0]
    engine = OrtLoader(slots.path).load(slot, profile("generic"))
    serving = ServedModel(MODEL, clock=time.time, timer=time.perf_counter, lock=threading.Lock())
    serving.swap(engine, Health())
    return lambda: serving.infer(row)


def raw_session(path: Path, board: Profile) -> object:
    """With the very options that the agent uses."""
    ort = import_ort()
    options = ort.SessionOptions()
    options.intra_op_num_threads = board.session.intra_op_num_threads
    options.inter_op_num_threads = board.session.inter_op_num_threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _raw_run(session: object, row: F32) -> Callable[[], object]:
    run, wanted, feed = session.run, [OUTPUT], {INPUT: row}  # type: ignore[attr-defined]
    return lambda: run(wanted, feed)


@contextlib.contextmanager
def _mute() -> Iterator[tuple[str, int]]:
    """Address of a server that does nothing, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.loopback"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert process.stdout is not None
    with process:
        yield "127.0.0.1", int(process.stdout.readline())
        process.terminate()
