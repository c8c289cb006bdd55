"""Threads of the agent's process: one for the control loop, one for each job."""

import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)


class ControlThread(threading.Thread):
    """Runs the control loop: `begin`, then `tick` until `finish`, then `end`.

    awake        set by whoever has work for the next tick
    on_failure   called when the core raises: a bug, after which only a new process is safe
    """

    def __init__(
        self,
        *,
        begin: Callable[[], None],
        tick: Callable[[], float],
        end: Callable[[], None],
        on_failure: Callable[[], None],
        awake: threading.Event,
    ) -> None:
        super().__init__(name="control", daemon=True)
        self._begin, self._tick, self._end, self._on_failure = begin, tick, end, on_failure
        self._awake, self._ending = awake, threading.Event()
        self.begun, self.failed = threading.Event(), False

    def finish(self, patience_s: float) -> None:
        """End cleanly, and wait so long for it."""
        self._ending.set()
        self._awake.set()
        if self.is_alive():
            self.join(patience_s)

    def run(self) -> None:
        try:
            self._begin()
            self.begun.set()
            while not self._ending.is_set():
                self._awake.clear()
                idle = self._tick()
                if idle > 0:
                    self._awake.wait(idle)
            self._end()
        except Exception:  # noqa: BLE001 the process ends with the control loop
            _log.exception("the control loop failed")
            self.failed = True
            self.begun.set()
            self._on_failure()


class Jobs:
    """Runs each job on a thread of its own."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def spawn(self, job: Callable[[], None]) -> None:
        self._threads = [t for t in self._threads if t.is_alive()]
        thread = threading.Thread(target=job, name="effect", daemon=True)
        self._threads.append(thread)
        thread.start()

    def finish(self, patience_s: float) -> None:
        """Wait so long for all running jobs, which were cancelled before."""
        end = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
