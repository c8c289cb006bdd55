"""Periodic maintenance: renewal of the certificate and updates of the director's root."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from shoal.agent.host.faults import Fault, ended
from shoal.agent.host.ports import Random
from shoal.agent.identity.io import renewal
from shoal.errors import LinkError, ShoalError

_log = logging.getLogger(__name__)

#: Seconds between two checks, and until the next try after a failure.
CHECK_S, RETRY_S = 86_400.0, 3_600.0
#: Seconds between two looks at the certificate, which ask nobody: the clock may have been set.
LOOK_S = RETRY_S
#: With so few days left, a renewal that fails is critical.
_URGENT_S = 10 * 86_400.0


class Upkeep(threading.Thread):
    """Runs the checks on a thread of its own.

    clock     the device's, Unix seconds
    on_fault  receives failures
    on_root   receives a new root of the director
    """

    def __init__(
        self,
        folder: Path,
        controller: str,
        device: str,
        *,
        clock: Callable[[], float],
        random: Random,
        on_fault: Callable[[Fault], None],
        on_root: Callable[[bytes], None],
    ) -> None:
        super().__init__(name="upkeep", daemon=True)
        self._folder, self._controller, self._device = folder, controller, device
        self._clock, self._random, self._on_fault, self._on_root = clock, random, on_fault, on_root
        self._share = renewal.DUE + renewal.SPREAD * random.random()
        self._ending, self._failed = threading.Event(), set[str]()

    def finish(self) -> None:
        """End the thread without waiting for a running request."""
        self._ending.set()

    def run(self) -> None:
        delay = 60.0 * self._random.random()
        while not self._ending.wait(min(delay, LOOK_S)):
            delay -= LOOK_S
            if delay <= 0 or self._is_due():
                delay = self.check()

    def _is_due(self) -> bool:
        """Whether the certificate is to be renewed: also once a wrong clock has been set."""
        try:
            begin, end = renewal.life_s(self._folder)
        except ShoalError:
            return False
        return self._clock() >= begin + self._share * (end - begin)

    def check(self) -> float:
        """Renew what is due; seconds until the next check."""
        passed = [
            self._succeeds(self._renew, "certificate"),
            self._succeeds(self._follow, "director"),
        ]
        pause = CHECK_S if all(passed) else RETRY_S
        return pause * (0.5 + self._random.random() / 2)

    def _renew(self) -> None:
        renewal.life_s(self._folder)  # raises for a certificate that cannot be read
        if not self._is_due():
            return
        renewal.renew(self._folder, self._controller, self._device)
        _log.info("the certificate was renewed")

    def _follow(self) -> None:
        newest = renewal.refresh_director(self._folder, self._controller)
        if newest is not None:
            _log.info("the director has a new root")
            self._on_root(newest)

    def _succeeds(self, work: Callable[[], None], cause: str) -> bool:
        try:
            work()
        except (ShoalError, OSError) as error:
            self._on_fault(Fault(cause, str(error), self._severity(cause, error)))
            self._failed.add(cause)
            return False
        if cause in self._failed:
            self._failed.discard(cause)
            self._on_fault(ended(cause))
        return True

    def _severity(self, cause: str, error: Exception) -> str:
        """Info while the controller is out of reach and there is time."""
        if cause == "certificate" and self._left_s() < _URGENT_S:
            return "critical"
        return "info" if isinstance(error, LinkError) else "warning"

    def _left_s(self) -> float:
        try:
            return renewal.life_s(self._folder)[1] - self._clock()
        except ShoalError:
            return 0.0
