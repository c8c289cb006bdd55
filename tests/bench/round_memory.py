"""`python -m bench.round_memory DEVICES SIZE STRATEGY`: one whole round at a controller that is
alone in this process, and how much memory it took at most. Prints JSON.

The real runner of a round, its database and its files; devices are their messages, made one at a
time. Needs Linux: the peak of resident memory is reset when the round begins.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from bench.controllers import add_devices, make_controller
from bench.round_tasks import TASK, add_task, set_online
from shoal import topics, wire
from shoal.controller.federated.io.round_files import RoundFiles
from shoal.controller.federated.rounds import rounds
from shoal.controller.federated.rounds.runner import RoundRunner
from shoal.federated.chunks import Chunk, cut
from shoal.federated.compression import compress
from shoal.federated.messages import Contribution, Join, Piece
from shoal.federated.noise import Draws
from shoal.federated.plan import Compression

INT8 = Compression(kind="int8")


def main(devices: int, size: int, strategy: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        ctx = make_controller(Path(name) / "controller")
        names = [f"d{i:03}" for i in range(devices)]
        add_devices(ctx, names)
        set_online(ctx)
        add_task(ctx, b"graph", np.zeros(size, np.float32), names, strategy, INT8)
        calls: list[tuple[str, wire.RoundCall]] = []
        post = lambda device, call: calls.append((device, call))  # noqa: E731
        runner = RoundRunner(ctx, RoundFiles(Path(name) / "rounds"), post)
        rounds.start(ctx, actor="bench", task=TASK, rounds=1)
        base = np.random.default_rng(0).normal(size=size).astype(np.float32) * 1e-3
        base = base[: 1 << 16]  # the devices' own memory is not what is measured
        runner.step()
        attempt = calls[0][1].attempt
        runner.receive([_said(device, attempt, Join()) for device in names])
        Path("/proc/self/clear_refs").write_text("5")
        before, began = _status("VmRSS"), time.perf_counter()
        runner.step()
        for number, device in enumerate(names):
            for piece in _in_a_child(partial(_pieces, base, size, number)):
                runner.receive([_said(device, attempt, Piece(chunk=piece))])
        runner.step()
        found = rounds.list_rounds(ctx, task=TASK)[0]
        print(
            json.dumps(
                {
                    "state": found.state,
                    "reason": found.reason,
                    "before": before,
                    "peak": _status("VmHWM"),
                    "seconds": time.perf_counter() - began,
                }
            )
        )


def _pieces(base: np.ndarray, size: int, number: int) -> Iterator[Chunk]:
    """An update of its own, int8, in the pieces that a device sends, one at a time.

    It is made in a process of its own, whose memory is not the controller's.
    """
    delta = np.resize(np.roll(base, number), size)
    update = compress(delta, INT8, Draws(number.to_bytes(32)))
    whole = msgspec.msgpack.encode(Contribution(update=update, examples=100, loss=1.0))
    yield from cut(whole)


def _in_a_child(pieces: Callable[[], Iterator[Chunk]]) -> Iterator[Chunk]:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with os.fdopen(write, "wb") as pipe:
            for piece in pieces():
                data = msgspec.msgpack.encode(piece)
                pipe.write(len(data).to_bytes(4) + data)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        while head := pipe.read(4):
            yield msgspec.msgpack.decode(pipe.read(int.from_bytes(head)), type=Chunk)
    os.waitpid(child, 0)


def _said(device: str, attempt: bytes, said: Join | Piece) -> tuple[str, bytes]:
    answer = wire.RoundAnswer(
        device=device, boot="b", seq=0, sent_s=time.time(), attempt=attempt, said=said
    )
    return topics.up(device, "round"), wire.encode(answer)


def _status(field: str) -> float:
    """2**20 bytes."""
    text = Path("/proc/self/status").read_text()
    [line] = [line for line in text.splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
