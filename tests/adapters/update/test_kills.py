"""A real agent process is killed at random moments of real updates, again and again.

No broker is needed: the assignment is in the journal, as if received before the power cut, and
reports stay in the outbox. Of four releases three differ by a little training and are downloaded
as deltas; the fourth is another model and is downloaded whole. `make soak` kills 500
times.
"""

import collections
import hashlib
import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from real_agents import Artifacts, Enrolled, Process, enrol
from real_models import mlp, put_release
from shoal import bundle, delta, wire
from shoal.agent.installed.io.journal import SqliteJournal
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.installed.record import Record, Slot
from shoal.agent.telemetry.io.outbox_store import SqliteOutbox
from shoal.agent.update.machine import RESTING
from shoal.orders import Order

CUTS, VERSIONS = 500 if os.environ.get("SHOAL_SOAK") else 16, (1, 2, 3, 4)
#: Longest time between kills, s; includes the agent's start.
LIFE_S, PROFILE = 2.5, "x86-vnni"
#: Suffixes of partial downloads in the stage: a file, a delta, a delta not applied yet.
PARTS = (".part", ".delta", ".whole")


class Site:
    """One device, its artifact server, and releases that are assigned to it in turn."""

    def __init__(self, folder: Path, *, observe_s: float = 0.5, max_kbps: float = 1_200) -> None:
        self.artifacts = Artifacts()
        self.site: Enrolled = enrol(
            folder, artifacts=self.artifacts.url, observe_s=observe_s, max_kbps=max_kbps
        )
        self.artifacts.fetch = self.site.repository.fetch
        self.artifacts.start(self.site.pki)
        self.folder = self.site.folder
        self.deltas: dict[str, str] = {}
        self.orders = [self._release(folder / f"v{version}", version) for version in VERSIONS]
        self._offer_deltas([folder / f"v{version}" / "fp32.onnx" for version in VERSIONS])
        self.attempt = 0

    def _release(self, folder: Path, version: int) -> Order:
        model = mlp(seed=version // 4, hidden=256, layers=2, trained=version).SerializeToString()
        put_release(folder, version=version, models={"fp32": model})
        for path in folder.iterdir():
            data = path.read_bytes()
            self.artifacts.blobs[_sha256(data)] = data
        manifest = (folder / bundle.MANIFEST).read_bytes()
        return self.site.repository.add("release", "parts", version, manifest)

    def _offer_deltas(self, models: list[Path]) -> None:
        for old, new in itertools.permutations([path.read_bytes() for path in models], 2):
            made = delta.make(old, new)
            self.artifacts.blobs[_sha256(made)] = made
            self.deltas[f"{_sha256(old)}>{_sha256(new)}"] = _sha256(made)

    def serve_first(self) -> None:
        """Install the first release as the one in service."""
        order, self.attempt = self.orders[0], 1
        slots = DiskSlots(self.folder / "models")
        shutil.copytree(self.folder.parent / "v1", slots.path("parts", "a"))
        variant = slots.read_manifest("parts", "a").variant("fp32")
        slot = Slot(
            slot="a", model="parts", release="parts@1", path=order.path, sha256=order.sha256,
            variant="fp32", model_sha256=variant.file.sha256, counter=1,
        )  # fmt: skip
        slots.point("parts", slot)
        journal = SqliteJournal(self.folder / "journal.db")
        journal.save(Record(model="parts", serving=slot))
        journal.close()

    def assign(self) -> None:
        """Assign the next release as a new attempt; the agent is not running."""
        order = self.orders[self.attempt % len(self.orders)]
        self.attempt += 1
        order = msgspec.structs.replace(order, rollout="r", attempt=self.attempt)
        signed = self.site.repository.orders("cam-1", self.attempt, [order])
        known = {sha: sha for sha in self.artifacts.blobs} | self.deltas
        urls = {key: f"{self.artifacts.url}/blobs/{sha}" for key, sha in known.items()}
        journal = SqliteJournal(self.folder / "journal.db")
        payload = wire.encode(wire.Assignment(signed=signed, urls=urls))
        journal.save_assignment(payload, journal.floors())
        journal.close()

    def record(self) -> Record | None:
        """The journal's record, after verifying every file of the release in service."""
        journal = SqliteJournal(self.folder / "journal.db")
        assert not journal.lost
        record = journal.records().get("parts")
        journal.close()
        if record and record.serving:
            DiskSlots(self.folder / "models").verify(record.serving, PROFILE)
        return record

    def ended(self) -> str:
        """The state that this attempt ended in, "" while it is under way."""
        record = self.record()
        if record is None or record.order is None or record.order.attempt != self.attempt:
            return ""
        return record.state.name if record.state in RESTING else ""

    def rests(self, process: Process) -> bool:
        """Whether the agent has started this attempt and it has ended."""
        (model,) = process.request("GET", "/status")[1]["models"]
        wanted = f"parts@{self.orders[(self.attempt - 1) % len(self.orders)].version}"
        return model["wanted"] == wanted and model["state"] in {s.value for s in RESTING}

    def parts(self) -> set[str]:
        """Suffixes of the partial downloads in the stage."""
        stage = self.folder / "models" / "parts" / "stage"
        return {path.suffix for path in stage.glob("*")} & set(PARTS)

    def reported_states(self) -> list[str]:
        """The states of this attempt that the outbox holds, in order."""
        return [update.state for update in self.updates()]

    def saved(self) -> bool:
        """Whether an update event of this attempt reports bytes saved by a delta."""
        return any(update.facts.get("saved_by_delta") for update in self.updates())

    def updates(self) -> list[wire.UpdateEvent]:
        """Update events of this attempt in the outbox, in order."""
        outbox = SqliteOutbox(
            self.folder / "outbox.db", limit_bytes=1 << 26, boot_name=lambda: "unused"
        )
        assert not outbox.faults()
        kept = [wire.decode_up(x.kind, x.payload) for x in outbox.after(0, 1_000_000)]
        outbox.close()
        updates = [m for m in kept if isinstance(m, wire.UpdateEvent)]
        return [m for m in updates if m.attempt == self.attempt]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.artifacts.stop()


def finish(site: Site) -> None:
    """Run the agent until the attempt ends; its final state is reported once, after its steps."""
    process = Process(site.folder)
    try:
        process.wait_until()
        process.wait_for(lambda: site.rests(process))
    finally:
        process.end()
    check_end(site)


def state_of(process: Process) -> str:
    """State of the agent's one model, from GET /status."""
    return process.request("GET", "/status")[1]["models"][0]["state"]


def check_end(site: Site) -> None:
    reported, ended = site.reported_states(), site.ended()
    assert ended in ("SUCCEEDED", "FAILED", "ALREADY_INSTALLED")
    assert len(reported) == len(set(reported)), f"reported twice: {reported}"
    assert reported[-1] == ended
    record = site.record()
    if ended == "FAILED":
        assert record.cause == "crash-loop", (record.cause, record.detail)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_wherever_it_is_killed_it_serves_again_and_the_update_ends_and_is_reported_once(
    site: Site,
) -> None:
    chance, ends = random.Random(), list[str]()
    seen, parts, saved = collections.Counter[str](), collections.Counter[str](), 0
    site.assign()
    finish(site)
    site.assign()
    for _ in range(CUTS):
        process = Process(site.folder)
        life = chance.uniform(0.0, LIFE_S)
        try:
            if life > LIFE_S / 4:
                process.wait_until()  # it serves, whatever the last kill left
                time.sleep(life - LIFE_S / 4)
            else:
                time.sleep(life)
        finally:
            process.end(signal.SIGKILL)
        seen[site.record().state.name] += 1
        parts.update(site.parts())
        if site.ended():
            restart_and_report(site)
            ends.append(site.ended())
            saved += site.saved()
            site.assign()
    finish(site)  # on a busy machine it may have been killed too often to get far
    site.assign()
    finish(site)
    ends.append(site.ended())
    print(
        f"{CUTS} kills, found in {dict(seen)}, in a download {dict(parts)}; "
        f"{len(ends)} attempts ended: {dict(collections.Counter(ends))}, {saved} by a delta"
    )
    assert ends[-1] == "SUCCEEDED", "undisturbed it succeeds, whatever was killed before"
    assert saved or parts[".delta"], "deltas were in the path"


def restart_and_report(site: Site) -> None:
    """Killed between journal and outbox: the next start reports the final state."""
    if site.reported_states()[-1:] != [site.ended()]:
        finish(site)
    check_end(site)
