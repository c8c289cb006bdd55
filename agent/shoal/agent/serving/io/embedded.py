"""SDK `Session`: the device's model in a program's own process, still with sketches.

The program loads the release that the agent has verified and installed (`models/<model>/current`),
follows its swaps, and writes windows to the spool, which the agent sends to the controller
(window_spool.py).
"""

import atexit
import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from shoal.agent.host.io.facts import read_facts
from shoal.agent.host.io.folder import FOLDER, MODELS, SPOOL
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.installed.ports import Slots
from shoal.agent.installed.record import Slot
from shoal.agent.serving.engine import Loader
from shoal.agent.serving.io.row_spool import LabelledRowWriter
from shoal.agent.serving.io.runtime import OrtLoader
from shoal.agent.serving.io.session_reports import SessionReportWriter
from shoal.agent.serving.io.window_spool import WindowSpool
from shoal.agent.serving.sequences import Step
from shoal.agent.serving.served_model import ServedModel
from shoal.agent.serving.session_reports import SessionReport
from shoal.errors import AbsentError, ShoalError
from shoal.profile import Profile, detect, profile
from shoal.sketch import F32
from shoal.tensors import Array
from shoal.wire import Health, WindowReport

_log = logging.getLogger(__name__)


class Session:
    """One model in this process. Safe to share between threads.

    model      name; "" for the only one on the device
    folder     the agent's; its files must be readable, its spool/ writable
    window_s   length of a window
    look_s     seconds between two checks for a new release

    >>> with Session("lot-codes") as session:                           # doctest: +SKIP
    ...     probabilities = session.infer(rows)

    Raises AbsentError when the device has no such model, BundleError when its files are damaged.
    """

    def __init__(
        self,
        model: str = "",
        folder: Path | str = FOLDER,
        *,
        window_s: float = 60.0,
        look_s: float = 1.0,
    ) -> None:
        folder = Path(folder)
        slots, device_profile = DiskSlots(folder / MODELS), _profile(folder)
        self._serving = ServedModel(
            model or _only(slots),
            clock=time.time,
            timer=time.perf_counter,
            lock=threading.Lock(),
        )
        self._follower = Follower(
            self._serving, slots=slots, loader=OrtLoader(slots.path), profile=device_profile
        )
        self._spool, self._window_s, self._look_s = WindowSpool(folder / SPOOL), window_s, look_s
        self._reports = SessionReportWriter(folder / SPOOL)
        self._labelled = LabelledRowWriter(folder / SPOOL) if _collects_rows(folder) else None
        try:
            self._write_window(self._follower.refresh())
        finally:
            self._reports.write(self._follower.report())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="shoal-session", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def release(self) -> str:
        """The release that serves."""
        engine = self._serving.engine
        return engine.manifest.release if engine else ""

    def infer(self, rows: F32, truth: F32 | None = None, *, raw: bool = False) -> F32:
        """Outputs float32 (n, C) of rows float32 (n, F): probabilities, or one value each.

        truth   (n,) true class index or value, where it is known already; for the accuracy
        raw     rows are in the plant's units and go through the release's pipeline first

        Raises InputError for rows that do not fit, ModelError when the runtime fails.
        """
        engine = self._serving.engine
        outputs = self._serving.infer(rows, truth, raw=raw)
        if self._labelled is not None and engine is not None and truth is not None:
            ready = engine.raw.table(rows) if raw and engine.raw is not None else rows
            self._labelled.add(engine, ready, truth)
        return outputs

    def infer_tensors(
        self,
        inputs: Mapping[str, npt.ArrayLike],
        outputs: Sequence[str] = (),
        *,
        sequence: str | int | None = None,
        start: bool = False,
        end: bool = False,
    ) -> dict[str, Array]:
        """Outputs by name of inputs by name, of any datatype; see Client.infer_tensors.

        Raises ConflictError for a sequence whose release is no longer loaded, else as `infer`.
        """
        arrays = {name: np.asarray(array) for name, array in inputs.items()}
        step = Step(sequence, start, end) if sequence is not None else None
        return self._serving.infer_tensors(arrays, outputs, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write the open window and unload the model; called at program exit at the latest."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        atexit.unregister(self.close)
        self._reports.close()
        self._write_window(self._serving.swap(None, Health()))
        self._write_rows()
        self._serving.retire()

    def _watch(self) -> None:
        end = time.monotonic() + self._window_s
        while not self._ended.wait(self._look_s):
            try:
                self._write_window(self._follower.refresh())
                if time.monotonic() >= end:
                    end += self._window_s
                    self._write_window(self._serving.collect(Health()))
            except ShoalError as error:
                _log.warning("%s", error)
            self._reports.write(self._follower.report())
            self._write_rows()

    def _write_rows(self) -> None:
        if self._labelled is not None:
            self._labelled.write(f"{time.time_ns() // 1000:017d}-{secrets.token_hex(8)}")

    def _write_window(self, report: WindowReport | None) -> None:
        if report is None or not (report.rows or report.errors):
            return
        try:
            self._spool.put(report, secrets.token_hex(8))
        except ShoalError as error:
            _log.warning("a window of %s is lost: %s", report.release, error)


class Follower:
    """Makes a ServedModel serve the release that the device's `current` link points at."""

    def __init__(
        self, serving: ServedModel, *, slots: Slots, loader: Loader, profile: Profile
    ) -> None:
        self._serving, self._slots, self._loader = serving, slots, loader
        self._profile = profile
        self._refused: Slot | None = None
        self._why = ""

    def refresh(self) -> WindowReport | None:
        """Swap if the link has moved, or is gone with the model; the window that this closed.

        Raises ShoalError, once, when the new release fails to load: the old one still serves.
        """
        current = next((s for s in self._slots.found() if s.model == self._serving.model), None)
        engine = self._serving.engine
        if current is None and engine is not None and not self._slots.pointed(engine.slot.model):
            return self._unload()
        if current is None or current == self._refused or (engine and _same(engine.slot, current)):
            return None
        try:
            self._slots.verify(current, self._profile.name)
            closed = self._serving.swap(self._loader.load(current, self._profile), Health())
        except ShoalError as error:
            self._refused, self._why = current, str(error)
            raise
        self._refused, self._why = None, ""
        self._serving.retire()  # unlike the agent, a program never rolls back to the old engine
        self._loader.trim()
        return closed

    def _unload(self) -> WindowReport | None:
        """Serve nothing: the model was removed from the device."""
        closed = self._serving.swap(None, Health())
        self._serving.retire()
        self._loader.trim()
        return closed

    def report(self) -> SessionReport:
        """The state of this session, for the agent that observes the release."""
        engine = self._serving.engine
        return SessionReport(
            model=self._serving.model,
            sha256=engine.slot.sha256 if engine else "",
            vitals=self._serving.vitals,
            before=self._serving.before,
            refused=self._refused.sha256 if self._refused else "",
            why=self._why,
        )


def _same(one: Slot, other: Slot) -> bool:
    """Whether two slots are the same bytes in the same place."""
    return (one.slot, one.sha256, one.variant) == (other.slot, other.sha256, other.variant)


def _only(slots: DiskSlots) -> str:
    names = [slot.model for slot in slots.found()]
    if len(names) != 1:
        raise AbsentError("single model", ", ".join(names) or "none", "name the one you mean")
    return names[0]


def _collects_rows(folder: Path) -> bool:
    """Whether the agent collects labelled rows for federated learning."""
    from shoal.agent.host.io.config import load

    learning = load(folder).learning
    return learning.enabled and learning.keep != "nothing"


def _profile(folder: Path) -> Profile:
    """The profile in the agent's settings, else the detected one."""
    from shoal.agent.host.io.config import load

    named = load(folder).device.profile
    return profile(named) if named else detect(read_facts())
