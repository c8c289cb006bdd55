"""The device's model in a program's own process: onnxruntime's speed, and sketches all the same.

The program reads what the agent has verified and installed (`models/<model>/current`), follows its
swaps, and counts what it sees in windows, which reach the controller through the agent (spool.py).
"""

import atexit
import logging
import secrets
import threading
import time
from pathlib import Path
from typing import Self

from shoal.agent.host.io.facts import read_facts
from shoal.agent.host.io.folder import FOLDER, MODELS, SPOOL
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.installed.ports import Slots
from shoal.agent.installed.record import Slot
from shoal.agent.serving.engine import Loader
from shoal.agent.serving.io.row_spool import Giving
from shoal.agent.serving.io.runtime import OrtLoader
from shoal.agent.serving.io.session_reports import SessionReportWriter
from shoal.agent.serving.io.window_spool import Spool
from shoal.agent.serving.served_model import Serving
from shoal.agent.serving.session_reports import SessionReport
from shoal.errors import AbsentError, ShoalError
from shoal.profile import Profile, detect, profile
from shoal.sketch import F32
from shoal.wire import Health, WindowReport

_log = logging.getLogger(__name__)


class Session:
    """One model in this process. Safe to share between threads.

    model      which; "" for the only one on the device
    folder     the agent's; its files must be readable, its spool/ writable
    window_s   length of a window
    look_s     seconds between two looks for a new release

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
        slots, board = DiskSlots(folder / MODELS), _profile(folder)
        self._serving = Serving(
            model or _only(slots),
            clock=time.time,
            timer=time.perf_counter,
            lock=threading.Lock(),
        )
        self._follower = Follower(
            self._serving, slots=slots, loader=OrtLoader(slots.path), profile=board
        )
        self._spool, self._window_s, self._look_s = Spool(folder / SPOOL), window_s, look_s
        self._witness = SessionReportWriter(folder / SPOOL)
        self._giving = Giving(folder / SPOOL) if _keeps(folder) else None
        try:
            self._hand_over(self._follower.look())
        finally:
            self._witness.tell(self._follower.account())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="shoal-session", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def release(self) -> str:
        """Whose answers the next ones are."""
        engine = self._serving.engine
        return engine.manifest.release if engine else ""

    def infer(self, rows: F32, truth: F32 | None = None, *, raw: bool = False) -> F32:
        """Answer float32 (n, F) with float32 (n, C): probabilities, or one value each.

        truth   (n,) true class index or value, where it is known already: it makes accuracy
        raw     rows are in the plant's units: the release's pipeline makes the model's of them

        Raises InputError for rows that do not fit, ModelError when the runtime fails.
        """
        engine = self._serving.engine
        said = self._serving.infer(rows, truth, raw=raw)
        if self._giving is not None and engine is not None and truth is not None:
            ready = engine.raw.table(rows) if raw and engine.raw is not None else rows
            self._giving.add(engine, ready, truth)
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hand over the open window and let go of the model; at the program's end at the latest."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        atexit.unregister(self.close)
        self._witness.close()
        self._hand_over(self._serving.swap(None, Health()))
        self._give()
        self._serving.retire()

    def _watch(self) -> None:
        end = time.monotonic() + self._window_s
        while not self._ended.wait(self._look_s):
            try:
                self._hand_over(self._follower.look())
                if time.monotonic() >= end:
                    end += self._window_s
                    self._hand_over(self._serving.collect(Health()))
            except ShoalError as error:
                _log.warning("%s", error)
            self._witness.tell(self._follower.account())
            self._give()

    def _give(self) -> None:
        if self._giving is not None:
            self._giving.hand_over(f"{time.time_ns() // 1000:017d}-{secrets.token_hex(8)}")

    def _hand_over(self, report: WindowReport | None) -> None:
        if report is None or not (report.rows or report.errors):
            return
        try:
            self._spool.put(report, secrets.token_hex(8))
        except ShoalError as error:
            _log.warning("a window of %s is lost: %s", report.release, error)


class Follower:
    """Makes a Serving serve what the device's link points at; `look` when it may have changed."""

    def __init__(self, serving: Serving, *, slots: Slots, loader: Loader, profile: Profile) -> None:
        self._serving, self._slots, self._loader = serving, slots, loader
        self._profile = profile
        self._refused: Slot | None = None
        self._why = ""

    def look(self) -> WindowReport | None:
        """Swap if the link has moved; the window that this closed.

        Raises ShoalError, once, when the new release cannot be loaded: the old one serves on.
        """
        there = next((s for s in self._slots.found() if s.model == self._serving.model), None)
        engine = self._serving.engine
        if there is None or there == self._refused or (engine and _same(engine.slot, there)):
            return None
        try:
            self._slots.verify(there, self._profile.name)
            closed = self._serving.swap(self._loader.load(there, self._profile), Health())
        except ShoalError as error:
            self._refused, self._why = there, str(error)
            raise
        self._refused, self._why = None, ""
        self._serving.retire()  # the agent keeps the old one warm; a program need not
        self._loader.trim()
        return closed

    def account(self) -> SessionReport:
        """What was seen of the release that serves, for the agent that observes it."""
        engine = self._serving.engine
        return SessionReport(
            model=self._serving.model,
            sha256=engine.slot.sha256 if engine else "",
            vitals=self._serving.vitals,
            before=self._serving.before,
            refused=self._refused.sha256 if self._refused else "",
            why=self._why,
        )


def _same(mine: Slot, there: Slot) -> bool:
    """Whether a slot holds the same bytes in the same place as before."""
    return (mine.slot, mine.sha256, mine.variant) == (there.slot, there.sha256, there.variant)


def _only(slots: DiskSlots) -> str:
    names = [slot.model for slot in slots.found()]
    if len(names) != 1:
        raise AbsentError("single model", ", ".join(names) or "none", "name the one you mean")
    return names[0]


def _keeps(folder: Path) -> bool:
    """Whether the agent learns from rows that come with their truth."""
    from shoal.agent.host.io.config import load

    learning = load(folder).learning
    return learning.enabled and learning.keep != "nothing"


def _profile(folder: Path) -> Profile:
    """As the agent's settings say, or found out."""
    from shoal.agent.host.io.config import load

    named = load(folder).device.profile
    return profile(named) if named else detect(read_facts())
