"""An update of one device, from its assignment to SUCCEEDED, against fetching the same files.

A whole controller (`shoal-controller serve`), a real agent that joined by token, and one rollout a
repetition, each of a release with new weights. The observation period (observe_s) is 0: it is a
setting, not a cost. Raw: urllib3 fetches the same files from the same artifact
server and hashes them; for the probe, a process that imports onnxruntime, opens the model and runs
it once. Afterwards, the agent's memory, and its CPU time when idle.
"""

import contextlib
import hashlib
import itertools
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import urllib3

from bench import brokers, controllers, devices
from bench.footprint import RSS, Print, bare, cpu_s
from bench.ingest import ended
from bench.measuring import compare, seconds
from bench.releases import BIG, MODEL, SMALL, Release, make_release, perceptron
from bench.report import Aim, Found, Row
from shoal import topics, wire
from shoal.agent.host.io import config
from shoal.agent.host.io.folder import CA, MODELS, SETTINGS
from shoal.controller.fleet import join_tokens
from shoal.controller.fleet.io.ca import Authority
from shoal.controller.host.context import Context
from shoal.controller.releases import download_urls
from shoal.controller.rollouts import rollouts
from shoal.controller.rollouts.records import RolloutPlan, StagePlan

DEVICE = "cam-1"
FEATURES = 64
_EVENTS, _ORDERS = topics.up("+", "event"), topics.down("+", "assignment")
_BARE = "urllib3 fetches and hashes the same files"
_PROCESS = "a process: import onnxruntime, session, run"
CYCLE, IDLE_PERCENT = Aim(at_most=3.0, on_ratio=True), 0.3
_GONE = {"FAILED", "REJECTED", "TIMED_OUT", "CANCELED"}


class Cycle(NamedTuple):
    """One update. states: seconds in each, by the device's clock; files, metadata: bytes fetched.

    waited_s   from the order to start the rollout until the broker had the assignment
    """

    waited_s: float
    took_s: float
    states: dict[str, float]
    files: int
    metadata: int


def run(*, quick: bool) -> Found:
    """A small model, and one of 5 MB."""
    repetitions, idle_s = (1, 1.0) if quick else (9, 60.0)
    rows: list[Row] = []
    notes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, running_rig(Path(folder)) as rig:
        for name, hidden in (("small", SMALL), ("5 MB", BIG)):
            cycles: list[Cycle] = []
            fetches: list[float] = []
            processes: list[Print] = []
            rig.cycle(hidden)
            for _ in range(repetitions):
                cycles.append(rig.cycle(hidden))
                fetches.append(rig.fetch())
                processes.append(bare(rig.model))
            rows += _rows(name, cycles, fetches, rig.size)
            rows += _beside_a_process(name, cycles, processes, rig)
            notes |= _where_the_time_goes(name, cycles)
        idle = _idle_percent(rig.device.pid, idle_s)
        notes[f"CPU in {idle_s:g} s without a request"] = (
            f"{idle:.2f} % of a core (aim ≤ {IDLE_PERCENT:g})"
        )
    return Found(rows=rows, notes=notes)


def _rows(name: str, cycles: Sequence[Cycle], raw: Sequence[float], size: int) -> list[Row]:
    bytes_ = [cycle.files + cycle.metadata for cycle in cycles]
    rest = [cycle.took_s - cycle.states["PROBING"] for cycle in cycles]
    return [
        compare(f"{name}: assignment to SUCCEEDED", "s", [c.took_s for c in cycles], raw,
                against=_BARE, aim=CYCLE),
        compare(f"{name}: without the probe", "s", rest, raw, against=_BARE),
        compare(f"{name}: of that, DOWNLOADING", "s", [c.states["DOWNLOADING"] for c in cycles],
                raw, against=_BARE),
        compare(f"{name}: bytes fetched", "kB", [b / 1e3 for b in bytes_],
                [size / 1e3] * len(cycles), against="size of the files and the manifest"),
    ]  # fmt: skip


def _beside_a_process(
    name: str, cycles: Sequence[Cycle], raw: Sequence[Print], rig: "Rig"
) -> list[Row]:
    """The probe, which is a process, and the memory of the serving agent."""
    probes, starts = [c.states["PROBING"] for c in cycles], [p.wall_s for p in raw]
    held = _at_rest(rig.device.pid)
    what = f"{name}: resident memory of the agent after {len(cycles) + 1} updates"
    return [
        compare(f"{name}: the probe", "s", probes, starts, against=_PROCESS),
        compare(what, "MB", [held] * len(raw), [p.rss for p in raw], against=_PROCESS, aim=RSS),
    ]


def _at_rest(pid: int) -> float:
    """Resident memory (2**20 bytes) once it is stable: an update releases some after its end.

    TimeoutError when it never does.
    """
    end, before = time.monotonic() + brokers.PATIENCE_S, 0.0
    while time.monotonic() < end:
        now = devices.resident_mb(pid)["rss"]
        if abs(now - before) < 0.1:
            return now
        before = now
        time.sleep(1)
    raise TimeoutError(f"the memory of process {pid} does not become stable")


def _idle_percent(pid: int, for_s: float) -> float:
    """CPU of an idle process, percent of a core."""
    began, before = time.monotonic(), cpu_s(pid)
    time.sleep(for_s)
    return (cpu_s(pid) - before) / (time.monotonic() - began) * 100


def _where_the_time_goes(name: str, cycles: Sequence[Cycle]) -> dict[str, str]:
    states = {
        state: float(np.median([cycle.states.get(state, 0.0) for cycle in cycles]))
        for state in cycles[0].states
    }
    longest = sorted(states.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{state} {s * 1e3:.0f} ms" for state, s in longest if s >= 0.0005)
    waited = float(np.median([cycle.waited_s for cycle in cycles]))
    return {
        f"{name}: time in each state": shares,
        f"{name}: from rollout start to the assignment": f"{waited * 1e3:.0f} ms",
    }


class Rig:
    """A controller, a device, and the messages between them.

    size   bytes of the last release: its files and its manifest
    """

    def __init__(self, ctx: Context, received: "queue.Queue[tuple[float, str, bytes]]") -> None:
        self.ctx, self._received = ctx, received
        self.device: devices.Device
        self._version, self.size = 0, 0
        self._release: Release | None = None

    def cycle(self, hidden: tuple[int, ...]) -> Cycle:
        """Make a release with new weights, roll it out; TimeoutError, RuntimeError if it fails."""
        self._version += 1
        graph = perceptron(FEATURES, hidden, seed=self._version)
        release = make_release(graph, features=FEATURES, version=self._version)
        ref = controllers.add_release(self.ctx, release)
        self._release, self.size = release, release.size
        began = time.monotonic()
        plan = RolloutPlan(release=ref, stages=[StagePlan(name="all")])
        rollout = rollouts.start(self.ctx, actor=controllers.ACTOR, plan=plan)
        assigned, done, events = self._follow(rollout.id)
        self._finish(rollout.id)
        states = {
            event.state: after.sent_s - event.sent_s for event, after in itertools.pairwise(events)
        }
        (fetched,) = [event for event in events if event.state == "DOWNLOADED"]
        files = int(fetched.facts["bytes"])
        return Cycle(
            assigned - began, done - assigned, states, files + len(release.data), self._metadata()
        )

    @property
    def model(self) -> Path:
        """The ONNX file that the device serves."""
        return self.device.folder / MODELS / MODEL / "current" / "fp32.onnx"

    def fetch(self) -> float:
        """Seconds to fetch and hash the last release's files, over a new connection."""
        release = self._release
        assert release is not None
        wanted = [release.data, *release.files.values()]
        key, base = download_urls.read_key(self.ctx.folder), self._artifacts()
        digests = [hashlib.sha256(data).hexdigest() for data in wanted]
        urls = [download_urls.make_url(base, key, sha, time.time() + 600) for sha in digests]

        def all_of_them() -> None:
            with urllib3.PoolManager(ca_certs=str(self.device.folder / CA)) as pool:
                for url, digest in zip(urls, digests, strict=True):
                    data = pool.request("GET", url).data
                    if hashlib.sha256(data).hexdigest() != digest:
                        raise RuntimeError(f"{url.partition('?')[0]} has other content")

        return seconds(all_of_them)

    def _follow(self, rollout: str) -> tuple[float, float, list[wire.UpdateEvent]]:
        """Times of the assignment and the end, and the events between, without duplicates."""
        assigned, events = 0.0, dict[int, wire.UpdateEvent]()
        while True:
            try:
                at, topic, payload = self._received.get(timeout=brokers.PATIENCE_S)
            except queue.Empty:
                states = [event.state for event in events.values()]
                raise TimeoutError(f"the update stopped after {states}") from None
            if topic.endswith("assignment"):
                assigned = assigned or at
                continue
            event = wire.decode_up("event", payload)
            if not isinstance(event, wire.UpdateEvent) or event.rollout != rollout:
                continue
            events[event.seq] = event
            if event.state in _GONE:
                raise RuntimeError(f"{event.state}: {event.cause}: {event.detail}")
            if event.state == "SUCCEEDED":
                return assigned, at, [events[seq] for seq in sorted(events)]

    def _finish(self, rollout: str) -> None:
        """Wait until the rollout is finished on the controller, and drop queued messages."""
        end = time.monotonic() + brokers.PATIENCE_S
        while rollouts.get_rollout(self.ctx, rollout).state != "FINISHED":
            if time.monotonic() > end:
                raise TimeoutError(f"{rollout} does not finish")
            time.sleep(0.05)
        while not self._received.empty():
            self._received.get_nowait()

    def _metadata(self) -> int:
        """Bytes of the TUF metadata that changes with a release: what a device downloads again."""
        folder = self.ctx.signer.metadata_folder
        newest = {name: _newest(folder, name) for name in ("snapshot", f"release-{MODEL}")}
        return sum(path.stat().st_size for path in (folder / "timestamp.json", *newest.values()))

    def _artifacts(self) -> str:
        network = self.ctx.settings.network
        return f"https://localhost:{network.artifacts}"


@contextlib.contextmanager
def running_rig(folder: Path) -> Iterator[Rig]:
    """Controller and device while they run."""
    ctx = controllers.make_controller(folder / "controller")
    received: queue.Queue[tuple[float, str, bytes]] = queue.Queue()
    rig = Rig(ctx, received)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_serving(ctx, folder / "controller.log"))
        stack.enter_context(
            brokers.connected(
                ctx.folder / "pki", ctx.settings.network.mqtt, "bench-watch", [_EVENTS, _ORDERS],
                lambda topic, payload: received.put((time.monotonic(), topic, payload)),
            )
        )  # fmt: skip
        _enrol(ctx, folder / "device")
        rig.device = stack.enter_context(devices.running(folder / "device"))
        _await_online(ctx)
        yield rig


@contextlib.contextmanager
def _serving(ctx: Context, log: Path) -> Iterator[None]:
    """`shoal-controller serve`, once it says that it is ready; TimeoutError."""
    argv = [sys.executable, "-m", "shoal.controller", "serve", "--folder", str(ctx.folder)]
    with log.open("wb") as out, ended(subprocess.Popen(argv, stdout=out, stderr=out)):
        end = time.monotonic() + brokers.PATIENCE_S
        while b"ready: https://" not in log.read_bytes():
            if time.monotonic() > end:
                raise TimeoutError(log.read_text()[-2_000:])
            time.sleep(0.05)
        yield


def _enrol(ctx: Context, folder: Path) -> None:
    """Join by token, as an installer would; then no watch over new releases."""
    token = join_tokens.create_join_token(
        ctx,
        actor=controllers.ACTOR,
        ca_sha256=Authority.open(ctx.folder / "pki").root_fingerprint,
        site="here",
        rings=["stable"],
    )
    url = f"https://localhost:{ctx.settings.network.port}"
    subprocess.run(
        [sys.executable, "-m", "shoal.agent", "enroll", "--folder", str(folder),
         "--controller", url, "--token", token.secret, "--name", DEVICE, "--profile", "generic"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    joined = config.load(folder)
    hurried = msgspec.structs.replace(joined, update=config.Update(observe_s=0.0))
    (folder / SETTINGS).write_text(config.dump(hurried))


def _await_online(ctx: Context) -> None:
    end = time.monotonic() + brokers.PATIENCE_S
    while not controllers.is_online(ctx, DEVICE):
        if time.monotonic() > end:
            raise TimeoutError(f"{DEVICE} does not come online")
        time.sleep(0.05)


def _newest(folder: Path, role: str) -> Path:
    """The metadata file of `role` with the highest version in its name."""
    found = [path for path in folder.glob(f"*{role}.json") if path.stem.endswith(role)]
    return max(found, key=lambda path: int(path.stem.partition(".")[0] or 0))
