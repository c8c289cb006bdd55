"""A site downloads a release once: real agents, one of them killed, and a malicious peer."""

import hashlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ports import free_port
from real_agents import Artifacts, Enrolled, Process, enrol
from real_models import mlp, put_release
from shoal import bundle, wire
from shoal.agent.host.io.config import Peers
from shoal.agent.installed.io.journal import SqliteJournal, read_records
from shoal.agent.installed.record import State
from shoal.agent.peers.io.server import DownloadState, PeerServer, PieceStore
from shoal.agent.peers.policy import ranked
from shoal.agent.telemetry.io.outbox_store import SqliteOutbox
from shoal.manifest import PIECE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

NAMES, CORRUPT = [f"cam-{n}" for n in range(1, 6)], "cam-9"
TIMEOUT_S = 150.0


class CorruptStore(PieceStore):
    """Returns every piece with wrong bytes."""

    def read(self, piece):
        data = super().read(piece)
        return None if data is None else data[::-1]


class Site:
    """Five devices of one site, an artifact server far away, and a malicious device."""

    def __init__(self, parent: Path) -> None:
        self.artifacts, self.parent = Artifacts(), parent
        self.ports = {name: free_port() for name in [*NAMES, CORRUPT]}
        self.devices: dict[str, Enrolled] = {}
        for name in [*NAMES, CORRUPT]:
            self.devices[name] = enrol(
                parent, name=name, beside=next(iter(self.devices.values()), None),
                artifacts=self.artifacts.url, observe_s=0.5, max_kbps=24_000,
                peers=Peers(enabled=True, host="127.0.0.1", port=self.ports[name]),
            )  # fmt: skip
        first = self.devices[NAMES[0]]
        self.repository = first.repository
        self.artifacts.fetch = self.repository.fetch
        self.artifacts.start(first.pki)
        self.release(parent / "release")
        self.corrupt_peer = PeerServer(
            self.devices[CORRUPT].folder, ("127.0.0.1", self.ports[CORRUPT]),
            store=CorruptStore(self.stock(parent), time.monotonic), state=DownloadState(),
            allowed=lambda: NAMES, max_kbps=0, sleep=time.sleep,
        )  # fmt: skip
        self.processes: dict[str, Process] = {}

    def release(self, folder: Path) -> None:
        model = mlp(hidden=1280, layers=2).SerializeToString()
        put_release(folder, version=1, models={"fp32": model})
        for path in folder.iterdir():
            data = path.read_bytes()
            self.artifacts.blobs[hashlib.sha256(data).hexdigest()] = data
        data = (folder / bundle.MANIFEST).read_bytes()
        self.order = self.repository.add("release", "parts", 1, data)
        self.file = bundle.read_manifest(folder).variant("fp32").file

    def stock(self, parent: Path) -> Path:
        """A models/ folder that has the release."""
        slot = parent / "stock" / "parts" / "a"
        slot.mkdir(parents=True)
        for path in (parent / "release").iterdir():
            (slot / path.name).write_bytes(path.read_bytes())
        return parent / "stock"

    def assign(self) -> None:
        """Store the assignment in each device's journal; the agents are not running."""
        urls = {sha: f"{self.artifacts.url}/blobs/{sha}" for sha in self.artifacts.blobs}
        for name in NAMES:
            order = msgspec.structs.replace(self.order, rollout="r", attempt=1)
            signed = self.repository.orders(name, 1, [order])
            peers = {n: f"localhost:{p}" for n, p in self.ports.items() if n != name}
            message = wire.Assignment(signed=signed, urls=urls, peers=peers)
            journal = SqliteJournal(self.folder(name) / "journal.db")
            journal.save_assignment(wire.encode(message), journal.floors())
            journal.close()

    def folder(self, name: str) -> Path:
        return self.devices[name].folder

    def start(self, name: str) -> None:
        self.processes[name] = Process(self.folder(name))

    def state(self, name: str) -> State:
        record = read_records(self.folder(name) / "journal.db").get("parts")
        return record.state if record else State.IDLE

    def wait(self, condition, name: str = "") -> None:
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < end, f"{name}: {[self.state(n) for n in NAMES]}"
            time.sleep(0.02)

    def faults(self, name: str) -> list[str]:
        """Causes of the faults in the device's outbox."""
        outbox = SqliteOutbox(self.folder(name) / "outbox.db", limit_bytes=2**24, boot_name=str)
        messages = [wire.decode_up(it.kind, it.payload) for it in outbox.after(0, 1_000)]
        outbox.close()
        return [it.cause for it in messages if isinstance(it, wire.FaultEvent)]

    def end(self) -> None:
        for process in self.processes.values():
            process.end()
        self.corrupt_peer.finish()
        self.artifacts.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.end()


def test_a_site_of_five_downloads_a_release_once_though_one_is_killed_and_one_sends_corrupt_pieces(
    site: Site,
) -> None:
    site.corrupt_peer.start()
    site.assign()
    order = [name for name in ranked(site.file.sha256, [*NAMES, CORRUPT]) if name != CORRUPT]
    victim, sha256 = order[0], site.file.sha256
    site.artifacts.hold_at[sha256] = 2 * PIECE
    site.start(victim)
    site.wait(lambda: site.artifacts.sent_of.get(sha256, 0) >= 2 * PIECE, "the first pieces")
    for name in order[1:]:
        site.start(name)
        site.processes[name].wait_until("/v2/health/live")
    site.processes[victim].end(signal.SIGKILL)
    site.artifacts.resume.set()
    for name in order[1:]:
        site.wait(lambda n=name: site.state(n) is State.SUCCEEDED, name)
    site.start(victim)
    site.wait(lambda: site.state(victim) is State.SUCCEEDED, victim)
    for name in NAMES:
        site.processes[name].end()

    size, sent = site.file.size, site.artifacts.sent_of[sha256]
    assert len(site.file.chunks) >= 6
    # Downloaded again: the two pieces of the killed device, and the one that was on its way to it.
    assert size <= sent <= size + 3 * PIECE, sent / size
    assert any("peer-lied" in site.faults(name) for name in NAMES)
    assert all("peer-untrusted" not in site.faults(name) for name in NAMES)
