"""Shared state of a demo: folder, processes, progress, and the signed-in API client."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from demo.processes import Processes
from demo.progress import Progress
from demo.scenario import Scenario
from shoal.cli.api import Api, JsonObject, at
from shoal.cli.waiting import is_over, progress_line

#: Largest page of the API; a device of the demo has fewer events, and fewer windows.
_MOST = 500


class Context:
    """State shared by the steps.

    api, url, user, password   set by step 1
    good                       release that every device should serve, "model@version"
    cuts                       device -> state at its kill, for step 7
    """

    api: Api
    url = user = password = good = ""

    def __init__(
        self,
        folder: Path,
        scenario: Scenario,
        processes: Processes,
        progress: Progress,
        now: Callable[[], float],
        timer: Callable[[], float],
    ) -> None:
        self.folder, self.scenario, self.processes, self.progress = (
            folder,
            scenario,
            processes,
            progress,
        )
        self.now, self.timer = now, timer
        self.cuts: dict[str, dict[str, Any]] = {}

    # -- where things are

    @property
    def controller_folder(self) -> Path:
        return self.folder / "controller"

    def agent_folder(self, station: str) -> Path:
        return self.folder / "agents" / station

    def csv(self, station: str) -> Path:
        return self.folder / "streams" / f"{station}.csv"

    # -- processes

    def serve(self) -> None:
        folder = str(self.controller_folder)
        self.processes.start("controller", "shoal.controller", "serve", "--folder", folder)

    def run_agent(self, station: str) -> None:
        folder = str(self.agent_folder(station))
        self.processes.start(station, "shoal.agent", "run", "--folder", folder)

    # -- API requests

    def device(self, station: str) -> JsonObject:
        found: JsonObject = self.api.get(at("devices", station))
        return found

    def serving(self, station: str) -> str:
        """The release that serves on a station, as the controller knows it."""
        release: str = self.device(station)["releases"].get(self.scenario.model, "")
        return release

    def timeline(self, station: str) -> list[JsonObject]:
        """Newest first."""
        return list(self.api.items(at("devices", station, "timeline"), limit=_MOST))

    def rollout(self, id_: str) -> JsonObject:
        found: JsonObject = self.api.get(at("rollouts", id_))
        return found

    def rollout_devices(self, id_: str) -> dict[str, JsonObject]:
        found = self.api.items(at("rollouts", id_, "devices"))
        return {device["device"]: device for device in found}

    def windows(self, station: str, since: float) -> list[JsonObject]:
        """Windows of a station that began after `since`."""
        found: list[JsonObject] = list(
            self.api.items(at("devices", station, "windows"), since=since, limit=_MOST)
        )
        return found

    def accuracy(self, *, site: str, since: float, release: str = "") -> JsonObject:
        """Accuracy from labels at a site, over the windows that began after `since`.

        From the windows: the performance of a site is kept by whole hours.
        """
        found = [
            window
            for station in self.scenario.stations
            if station.site == site
            for window in self.windows(station.name, since)
            if window["model"] == self.scenario.model and release in ("", window["release"])
        ]
        labelled, correct = (sum(w[name] for w in found) for name in ("labelled", "correct"))
        p50 = [window["p50_us"] for window in found if window["rows"]]
        return {
            "labelled": labelled,
            "accuracy": correct / labelled if labelled else None,
            "p50_us": statistics.median(p50) if p50 else None,
        }

    # -- waiting

    def finish(self, operation: JsonObject, seconds: float = 120) -> JsonObject:
        """Wait for an operation; FailedError unless it succeeds."""

        def look() -> JsonObject | None:
            seen: JsonObject = self.api.get(at("operations", operation["id"]))
            return seen if is_over(seen) else None

        def seen() -> str:
            return progress_line(self.api.get(at("operations", operation["id"])))

        what = f"{operation['kind']} {operation['subject']}"
        ended = self.progress.wait_for(what, seconds, look, seen)
        self.progress.check(ended["state"] == "succeeded", f"{what} failed: {ended['error']}")
        return ended

    def save(self, **more: Any) -> Path:
        """Write demo.json: results of the steps and their numbers."""
        path = self.folder / "demo.json"
        whole = {
            "scenario": self.scenario.title,
            "model": self.scenario.model,
            "seconds": round(self.progress.seconds, 1),
            "steps": self.progress.steps,
            **more,
        }
        path.write_bytes(msgspec.json.format(msgspec.json.encode(whole)))
        return path
