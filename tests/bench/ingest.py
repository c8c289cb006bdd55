"""Windows a second from the broker into the database, and through monitoring, against bare paho.

Real brokers (one a side, of the same kind), the real engine in its own process. The receiver is
stopped (SIGSTOP) while the windows are published, so that only ingest is timed: from SIGCONT to
the last ack or until monitoring has seen the last window (ours), or to the last message (bare
paho). No burst begins before monitoring has seen the one before: that rate is sustained.
"""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from bench import brokers, controllers
from bench.measuring import compare, interleave, seconds
from bench.releases import MODEL, Release, make_release, perceptron
from bench.report import Found, Row
from shoal import topics, wire
from shoal.controller.host.context import Context
from shoal.controller.ingest.ingest import ingest
from shoal.controller.monitoring import drift_monitor
from shoal.sketch import Latency, References, Sketch

#: Windows of each device stored before: its baseline is complete, as on any day but the first.
BEFORE = 13
#: Patience with monitoring.
MONITORING_S = 300.0
_ACKS = topics.down("+", "ack")
Message = tuple[str, bytes]


def run(*, quick: bool) -> Found:
    """Windows of 8 and of 64 features, from a thousand devices."""
    windows, fleet, repetitions = (200, 20, 1) if quick else (3_000, 300, 7)
    rows: list[Row] = []
    notes: dict[str, str] = {}
    for features in (8,) if quick else (8, 64):
        release = make_release(perceptron(features), features=features)
        with tempfile.TemporaryDirectory() as folder:
            made = Windows(release, fleet)
            ctx = _make(Path(folder), made)
            drift_monitor.evaluate_all(ctx, drift_monitor.DriftMemory(512))
            rows += _end_to_end(ctx, Path(folder), made, windows, repetitions)
        with tempfile.TemporaryDirectory() as folder:
            made = Windows(release, fleet)
            ctx = _make(Path(folder), made)
            rows += _alone(ctx, Path(folder), made, windows, repetitions)
        notes[f"a window of {features} features"] = f"{made.size} bytes for 900 rows"
    return Found(rows=rows, notes=notes)


class Windows:
    """Windows of 900 rows in the order in which devices would send them.

    size   of one, in bytes
    """

    def __init__(self, release: Release, devices: int) -> None:
        self.release, self.names = release, [f"cam-{i:04}" for i in range(devices)]
        self.features = features = len(release.manifest.features)
        self._drawn, self._began_s = 0, time.time() - 86_400
        references = msgspec.json.decode(release.files["reference.json"], type=References)
        rng = np.random.default_rng(3)
        inputs, outputs = Sketch(references.inputs), Sketch(references.outputs)
        inputs.update(rng.normal(size=(900, features)).astype(np.float32))
        outputs.update(rng.random(size=(900, 2)).astype(np.float32))
        latency = Latency()
        latency.add(100e-6, 900)
        self._template = wire.WindowReport(
            device="", boot="", seq=0, sent_s=0.0, model=MODEL, release=release.manifest.release,
            reference=references.id, window_start_s=0.0, window_s=60.0, rows=900,
            latency=latency.trimmed(), inputs=inputs.to_bytes(), outputs=outputs.to_bytes(),
            labelled=900, correct=870, health=wire.Health(rss_mb=80.0, cpu_pct=4.0),
        )  # fmt: skip
        self.size = len(wire.encode(self._template))

    def draw(self, count: int) -> list[Message]:
        """The next `count` windows, distributed over the devices."""
        numbers = range(self._drawn, self._drawn + count)
        self._drawn += count
        return [self._one(*divmod(number, len(self.names))) for number in numbers]

    def _one(self, turn: int, device: int) -> Message:
        name, start_s = self.names[device], self._began_s + 60.0 * turn
        report = msgspec.structs.replace(
            self._template,
            device=name,
            boot="boot",
            seq=turn + 1,
            sent_s=start_s + 60.0,
            window_start_s=start_s,
        )
        return topics.up(name, "window"), wire.encode(report)


def _make(folder: Path, made: Windows) -> Context:
    """A controller with BEFORE windows of every device."""
    ctx = controllers.make_controller(folder / "controller", baseline_windows=BEFORE - 1)
    controllers.add_release(ctx, made.release)
    controllers.add_devices(ctx, made.names)
    for batch in _cut(made.draw(BEFORE * len(made.names)), 500):
        ingest(ctx, batch)
    return ctx


# ---------------------------------------------------------------------------- end to end


def _end_to_end(
    ctx: Context, folder: Path, made: Windows, windows: int, repetitions: int
) -> list[Row]:
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(_engine(folder, ctx))
        receiver = stack.enter_context(_receiver(folder, ctx))
        found = interleave(
            repetitions,
            {
                "ours": lambda: engine(made.draw(windows), True),
                "raw": lambda: Taken(receiver(made.draw(windows))),
            },
        )
        one = interleave(
            4 * repetitions,
            {
                "ours": lambda: engine(made.draw(1), False).acked_s,
                "raw": lambda: receiver(made.draw(1)),
            },
        )
    title = f"end to end, {made.features} features"
    rate = {side: [windows / took.acked_s for took in times] for side, times in found.items()}
    seen = [windows / took.seen_s for took in found["ours"]]
    wait = {side: [s * 1e3 for s in times] for side, times in one.items()}
    limit = "bare paho receives the same messages"
    return [
        compare(f"{title}, monitored", "windows/s", seen, rate["raw"], against=limit),
        compare(f"{title}, acknowledged", "windows/s", rate["ours"], rate["raw"], against=limit),
        compare(f"{title}, one alone", "ms", wait["ours"], wait["raw"], against=limit),
    ]


class Taken(NamedTuple):
    """Seconds from the engine's going on to the last ack, and until monitoring had seen all.

    seen_s is 0 where nobody waited for it.
    """

    acked_s: float
    seen_s: float = 0.0


@contextlib.contextmanager
def _engine(folder: Path, ctx: Context) -> Iterator[Callable[[list[Message], bool], Taken]]:
    """The real engine; call: how long it took these messages, and monitoring if True."""
    pki, port = ctx.folder / "pki", ctx.settings.network.mqtt
    acks, begun = Acks(), threading.Event()

    def hear(topic: str, payload: bytes) -> None:
        if topic == topics.BUDGET:
            begun.set()
        else:
            acks.hear(payload)

    argv = [sys.executable, "-m", "shoal.controller", "engine", "--folder", str(ctx.folder)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(brokers.running(folder / "broker", pki, port))
        client = stack.enter_context(
            brokers.connected(pki, port, "bench-fleet", [_ACKS, topics.BUDGET], hear)
        )
        log = stack.enter_context((folder / "engine.log").open("wb"))
        process = stack.enter_context(ended(subprocess.Popen(argv, stdout=log, stderr=log)))
        if not begun.wait(brokers.PATIENCE_S):
            raise TimeoutError((folder / "engine.log").read_text()[-2_000:])

        def take(messages: list[Message], monitored: bool) -> Taken:
            with _stopped(process.pid):
                acks.expect(len(messages))
                brokers.publish_all(client, messages)
                began = time.monotonic()
            acked = acks.complete()
            return Taken(acked - began, _seen(ctx) - began if monitored else 0.0)

        yield take


def _seen(ctx: Context) -> float:
    """Monotonic seconds when monitoring has seen every window that is stored; TimeoutError."""
    last, patience = ctx.store.windows.last(), time.monotonic() + MONITORING_S
    while time.monotonic() < patience:
        with ctx.store.read() as db:
            if drift_monitor._position(db) >= last:
                return time.monotonic()
        time.sleep(0.02)
    raise TimeoutError(f"monitoring has not seen window {last} in {MONITORING_S:g} s")


@contextlib.contextmanager
def _receiver(folder: Path, ctx: Context) -> Iterator[Callable[[list[Message]], float]]:
    """Bare paho on a broker of its own; call: seconds from its going on to the last message."""
    pki, (port,) = ctx.folder / "pki", brokers.free_ports(1)
    with contextlib.ExitStack() as stack:
        stack.enter_context(brokers.running(folder / "other", pki, port))
        client = stack.enter_context(brokers.connected(pki, port, "bench-fleet"))
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.receiver", str(pki), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        stack.enter_context(ended(process))
        asking, answering = process.stdin, process.stdout
        assert asking is not None
        assert answering is not None
        answering.readline()

        def take(messages: list[Message]) -> float:
            with _stopped(process.pid):
                asking.write(b"%d\n" % len(messages))
                asking.flush()
                brokers.publish_all(client, messages)
                began = time.monotonic()
            return float(answering.readline()) - began

        yield take


class Acks:
    """Sequence numbers that came back."""

    def __init__(self) -> None:
        self._left = 0
        self._news = threading.Condition()

    def expect(self, count: int) -> None:
        self._left = count

    def hear(self, payload: bytes) -> None:
        ack = wire.decode_down("ack", payload)
        assert isinstance(ack, wire.Ack)
        with self._news:
            self._left -= len(ack.seqs)
            self._news.notify()

    def complete(self) -> float:
        """Monotonic seconds when the last one came; TimeoutError."""
        with self._news:
            if not self._news.wait_for(lambda: self._left <= 0, brokers.PATIENCE_S):
                raise TimeoutError(f"{self._left} windows were not acked")
            return time.monotonic()


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """A process stands still meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def ended(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is ended afterwards, by its pid."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ---------------------------------------------------------------------------- the database alone


def _alone(ctx: Context, folder: Path, made: Windows, windows: int, reps: int) -> list[Row]:
    """`ingest` without a broker, against sqlite3 putting the same bytes into one table."""
    database = _table(folder / "raw.db")
    rows = []
    for batch in (1, 500):
        count = min(windows, 50 * batch)

        def ours(count: int = count, batch: int = batch) -> float:
            batches = _cut(made.draw(count), batch)
            return count / seconds(lambda: [ingest(ctx, one) for one in batches])

        def raw(count: int = count, batch: int = batch) -> float:
            batches = _cut(made.draw(count), batch)
            return count / seconds(lambda: _insert(database, batches))

        found = interleave(reps, {"ours": ours, "raw": raw})
        what = f"ingest alone, {made.features} features, batch {batch}"
        limit = "sqlite3 keeps the same bytes (WAL, synchronous FULL)"
        rows.append(compare(what, "windows/s", found["ours"], found["raw"], against=limit))
    return rows


def _table(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    for statement in (
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "CREATE TABLE kept (id INTEGER PRIMARY KEY, topic TEXT, payload BLOB)",
    ):
        database.execute(statement).close()
    return database


def _insert(database: sqlite3.Connection, batches: Sequence[Sequence[Message]]) -> None:
    for batch in batches:
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT INTO kept (topic, payload) VALUES (?, ?)", batch)
        database.execute("COMMIT")


def _cut(messages: list[Message], size: int) -> list[list[Message]]:
    return [messages[i : i + size] for i in range(0, len(messages), size)]
