"""Step 7: kill -9 in the middle of a download and in OBSERVING; nothing lost, nothing twice.

The cuts happen inside step 5's rollout of the retrained release: it is a real update, with a real
download. Their outcome is told in step 7.
"""

import itertools
from pathlib import Path
from typing import Any

from demo.scenario import Station
from demo.world import World
from shoal.bundle import MANIFEST
from shoal.cli.api import JsonObject, at
from shoal.errors import BundleError
from shoal.manifest import parse


class Cuts:
    """The two power cuts. `look` is called while the rollout goes on, and cuts when it is time.

    facts   what was seen at each cut, for step 7
    """

    def __init__(self, world: World, release: str) -> None:
        stable = [s for s in world.scenario.stations if s.ring == "stable"]
        self._world, self._release = world, release
        self._downloading: Station | None = next(s for s in stable if s.max_kbps)
        self._observing: Station | None = max(stable, key=lambda s: s.observe_s)
        self.facts: dict[str, dict[str, Any]] = {}
        world.cuts = self.facts

    def look(self, rollout: str) -> None:
        if self._downloading and self._cut_download(self._downloading, rollout):
            self._downloading = None
        if self._observing and self._cut_observing(self._observing, rollout):
            self._observing = None

    def done(self) -> None:
        """Both cuts were made, or the rollout outran them."""
        story = self._world.story
        story.must(not self._downloading, "the download was over before it could be cut")
        story.must(not self._observing, "OBSERVING was over before it could be cut")

    def _cut_download(self, station: Station, rollout: str) -> bool:
        """Once a file of the bundle is there in part: killed, and looked at again."""
        stage = self._world.agent_folder(station.name) / "models" / self._world.scenario.model
        if not in_part(stage / "stage", station.profile):
            return False
        self._world.processes.kill(station.name)
        left = in_part(stage / "stage", station.profile)
        if left is None:  # it was whole in the very moment: go on, and cut the next file
            self._world.run_agent(station.name)
            return False
        have, whole = left
        self._restart(station, state="DOWNLOADING", bytes_on_disk=have, bytes_of=whole)
        return True

    def _cut_observing(self, station: Station, rollout: str) -> bool:
        if _last_state(self._world, station.name, rollout) != "OBSERVING":
            return False
        self._world.processes.kill(station.name)
        self._restart(station, state="OBSERVING")
        return True

    def _restart(self, station: Station, **facts: Any) -> None:
        at_s = self._world.now()
        self._world.run_agent(station.name)
        self.facts[station.name] = facts | {"killed_at": at_s}
        have, of = facts.get("bytes_on_disk"), facts.get("bytes_of")
        more = f", {have} of {of} bytes on disk" if have else ""
        self._world.story.tell(
            f"[yellow]kill -9[/yellow] {station.name} in {facts['state']}{more}; started again "
            "[dim](step 7)[/dim]"
        )


def check_ledger(world: World) -> None:
    story = world.story
    with story.step(7, "Power cuts: kill -9 in a download and in OBSERVING"):
        for name, facts in world.cuts.items():
            _came_back(world, name, facts)
        ledgers = _settled(world)
        for name, boots in ledgers.items():
            story.tell(
                f"{name}: {sum(b['windows'] for b in boots)} windows, "
                f"{sum(b['received'] for b in boots)} messages, missing 0, overlapping 0"
            )
        story.tell(
            "no window lost, none counted twice",
            windows=sum(b["windows"] for boots in ledgers.values() for b in boots),
            missing=0,
            overlapping=0,
        )


def _came_back(world: World, name: str, facts: dict[str, Any]) -> None:
    """After the kill it went on by itself, and finished: by its own later events."""
    events = [e for e in world.timeline(name) if e["at"] >= facts["killed_at"]]
    finished = [e for e in events if e["state"] == "SUCCEEDED"]
    world.story.must(bool(finished), f"{name} did not finish after it was killed: {events}")
    took = finished[-1]["at"] - facts["killed_at"]
    resumed = _resumed(world, name, events, facts) if "bytes_of" in facts else ""
    if facts["state"] == "OBSERVING":
        committing = [e for e in events if e["state"] == "COMMITTING"]
        world.story.must(bool(committing), f"{name} was past OBSERVING when it was killed")
    updates = [e["state"] for e in reversed(events) if e["rollout"] == finished[-1]["rollout"]]
    states = " → ".join(dict.fromkeys(updates))
    world.story.tell(
        f"{name}, killed in {facts['state']}: {resumed}{states}, {took:.1f} s after the kill",
        **{f"{name} back after s": round(took, 1)},
    )


def _resumed(world: World, name: str, events: list[JsonObject], facts: dict[str, Any]) -> str:
    """What was on disk was not fetched again, by the device's own count."""
    fetched = next(e["facts"]["bytes"] for e in events if e["state"] == "DOWNLOADED")
    missing = facts["bytes_of"] - facts["bytes_on_disk"]
    world.story.must(
        fetched <= missing, f"{name} fetched {fetched} bytes, of which only {missing} were missing"
    )
    return f"{facts['bytes_on_disk']} bytes were kept and {fetched} fetched after; "


def _settled(world: World) -> dict[str, list[JsonObject]]:
    """Each device's ledger, once nothing is on its way; no two of its windows overlap."""
    names = [station.name for station in world.scenario.stations]

    def ledger(name: str) -> list[JsonObject]:
        return list(world.api.items(at("devices", name, "ledger")))

    def holes() -> dict[str, int]:
        found = {name: sum(boot["missing"] for boot in ledger(name)) for name in names}
        return {name: missing for name, missing in found.items() if missing}

    world.story.until("every ledger is without a hole", 45, lambda: not holes(), holes)
    for name in names:
        twice = overlapping(world.windows(name, 0))
        world.story.must(not twice, f"{name}: windows counted twice: {twice[:3]}")
    return {name: ledger(name) for name in names}


def overlapping(windows: list[JsonObject]) -> list[tuple[float, float]]:
    """Starts of windows of one device and model that begin before the one before has ended."""
    spans = sorted((w["start_at"], w["start_at"] + w["window_s"]) for w in windows)
    return [
        (before[0], after[0])
        for before, after in itertools.pairwise(spans)
        if after[0] < before[1] - 1e-3
    ]


def in_part(stage: Path, profile: str) -> tuple[int, int] | None:
    """Bytes of a bundle on disk, and of all of it, while one of its files is there in part.

    The stage's manifest says how large each file shall be; the part of a file is named by its hash.
    None when no file is there in part: before the first, between two, and after the last.
    """
    try:
        manifest = parse((stage / MANIFEST).read_bytes())
        sizes = {path.name: path.stat().st_size for path in stage.iterdir()}
        files = manifest.files_for(profile)
    except (OSError, BundleError):
        return None
    parts = [sizes.get(f"{file.sha256}.part", 0) for file in files]
    whole = sum(file.size for file in files if sizes.get(file.name) == file.size)
    cut = any(0 < part < file.size for part, file in zip(parts, files, strict=True))
    return (whole + sum(parts), sum(file.size for file in files)) if cut else None


def _last_state(world: World, name: str, rollout: str) -> str:
    events = (e for e in world.timeline(name) if e["rollout"] == rollout)
    found = next(events, None)
    return str(found["state"]) if found else ""
