"""Step 7: kill -9 during a download and in OBSERVING; no window lost or duplicated.

The cuts happen inside step 5's rollout of the retrained release: it is a real update, with a real
download. Step 7 checks their outcome.
"""

import itertools
from pathlib import Path
from typing import Any

from demo.context import Context
from demo.scenario import Station
from shoal.bundle import MANIFEST
from shoal.cli.api import JsonObject, at
from shoal.errors import BundleError
from shoal.manifest import parse


class PowerCuts:
    """Kills two agents during a rollout; `look` is called while it runs.

    facts   device -> state at its kill, for step 7
    """

    def __init__(self, context: Context, release: str) -> None:
        stable = [s for s in context.scenario.stations if s.ring == "stable"]
        self._context, self._release = context, release
        self._downloading: Station | None = next(s for s in stable if s.max_kbps)
        self._observing: Station | None = max(stable, key=lambda s: s.observe_s)
        self.facts: dict[str, dict[str, Any]] = {}
        context.cuts = self.facts

    def look(self, rollout: str) -> None:
        if self._downloading and self._cut_download(self._downloading, rollout):
            self._downloading = None
        if self._observing and self._cut_observing(self._observing, rollout):
            self._observing = None

    def done(self) -> None:
        """Fail if a kill did not happen before the rollout ended."""
        progress = self._context.progress
        progress.check(not self._downloading, "the download was over before it could be cut")
        progress.check(not self._observing, "OBSERVING was over before it could be cut")

    def _cut_download(self, station: Station, rollout: str) -> bool:
        """Kill the agent once a file of the bundle is partial; check that it still is."""
        stage = self._context.agent_folder(station.name) / "models" / self._context.scenario.model
        if not partial_bytes(stage / "stage", station.profile):
            return False
        self._context.processes.kill(station.name)
        left = partial_bytes(stage / "stage", station.profile)
        if left is None:  # completed in that moment: restart, and kill at the next file
            self._context.run_agent(station.name)
            return False
        have, whole = left
        self._restart(station, state="DOWNLOADING", bytes_on_disk=have, bytes_of=whole)
        return True

    def _cut_observing(self, station: Station, rollout: str) -> bool:
        if _last_state(self._context, station.name, rollout) != "OBSERVING":
            return False
        self._context.processes.kill(station.name)
        self._restart(station, state="OBSERVING")
        return True

    def _restart(self, station: Station, **facts: Any) -> None:
        at_s = self._context.now()
        self._context.run_agent(station.name)
        self.facts[station.name] = facts | {"killed_at": at_s}
        have, of = facts.get("bytes_on_disk"), facts.get("bytes_of")
        more = f", {have} of {of} bytes on disk" if have else ""
        self._context.progress.report(
            f"[yellow]kill -9[/yellow] {station.name} in {facts['state']}{more}; started again "
            "[dim](step 7)[/dim]"
        )


def check_ledger(context: Context) -> None:
    progress = context.progress
    with progress.step(7, "Power cuts: kill -9 in a download and in OBSERVING"):
        for name, facts in context.cuts.items():
            _check_recovery(context, name, facts)
        ledgers = _complete_ledgers(context)
        for name, boots in ledgers.items():
            progress.report(
                f"{name}: {sum(b['windows'] for b in boots)} windows, "
                f"{sum(b['received'] for b in boots)} messages, missing 0, overlapping 0"
            )
        progress.report(
            "no window lost, none counted twice",
            windows=sum(b["windows"] for boots in ledgers.values() for b in boots),
            missing=0,
            overlapping=0,
        )


def _check_recovery(context: Context, name: str, facts: dict[str, Any]) -> None:
    """Check by a device's own events that it resumed after the kill, and succeeded."""
    events = [e for e in context.timeline(name) if e["at"] >= facts["killed_at"]]
    finished = [e for e in events if e["state"] == "SUCCEEDED"]
    context.progress.check(bool(finished), f"{name} did not finish after it was killed: {events}")
    took = finished[-1]["at"] - facts["killed_at"]
    resumed = _check_resumed(context, name, events, facts) if "bytes_of" in facts else ""
    if facts["state"] == "OBSERVING":
        committing = [e for e in events if e["state"] == "COMMITTING"]
        context.progress.check(bool(committing), f"{name} was past OBSERVING when it was killed")
    updates = [e["state"] for e in reversed(events) if e["rollout"] == finished[-1]["rollout"]]
    states = " → ".join(dict.fromkeys(updates))
    context.progress.report(
        f"{name}, killed in {facts['state']}: {resumed}{states}, {took:.1f} s after the kill",
        **{f"{name} back after s": round(took, 1)},
    )


def _check_resumed(
    context: Context, name: str, events: list[JsonObject], facts: dict[str, Any]
) -> str:
    """Check by the device's count that bytes on disk were not downloaded again."""
    fetched = next(e["facts"]["bytes"] for e in events if e["state"] == "DOWNLOADED")
    missing = facts["bytes_of"] - facts["bytes_on_disk"]
    context.progress.check(
        fetched <= missing, f"{name} fetched {fetched} bytes, of which only {missing} were missing"
    )
    return f"{facts['bytes_on_disk']} bytes were kept and {fetched} fetched after; "


def _complete_ledgers(context: Context) -> dict[str, list[JsonObject]]:
    """Ledgers of all devices without missing messages; checks that no windows overlap."""
    names = [station.name for station in context.scenario.stations]

    def ledger(name: str) -> list[JsonObject]:
        return list(context.api.items(at("devices", name, "ledger")))

    def holes() -> dict[str, int]:
        found = {name: sum(boot["missing"] for boot in ledger(name)) for name in names}
        return {name: missing for name, missing in found.items() if missing}

    context.progress.wait_for("every ledger is without a hole", 45, lambda: not holes(), holes)
    for name in names:
        twice = overlapping(context.windows(name, 0))
        context.progress.check(not twice, f"{name}: windows counted twice: {twice[:3]}")
    return {name: ledger(name) for name in names}


def overlapping(windows: list[JsonObject]) -> list[tuple[float, float]]:
    """Starts of overlapping windows of one device and model."""
    spans = sorted((w["start_at"], w["start_at"] + w["window_s"]) for w in windows)
    return [
        (before[0], after[0])
        for before, after in itertools.pairwise(spans)
        if after[0] < before[1] - 1e-3
    ]


def partial_bytes(stage: Path, profile: str) -> tuple[int, int] | None:
    """Bytes of a bundle on disk, and its total, while one of its files is partial.

    Sizes are in the stage's manifest; a partial file is named by its hash. None without a partial
    file: before the first, between two, and after the last.
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


def _last_state(context: Context, name: str, rollout: str) -> str:
    events = (e for e in context.timeline(name) if e["rollout"] == rollout)
    found = next(events, None)
    return str(found["state"]) if found else ""
