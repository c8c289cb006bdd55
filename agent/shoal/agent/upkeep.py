"""What has to be done once in many days: renew the certificate, follow the director's roots."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from shoal.agent.host.faults import Fault
from shoal.agent.host.randomness import Random
from shoal.agent.identity.io import renewal
from shoal.errors import LinkError, ShoalError

_log = logging.getLogger(__name__)

#: Seconds between two looks, and until the next try after a failure.
LOOK_S, RETRY_S = 86_400.0, 3_600.0
#: A fleet that enrolled in one hour renews over this share of a certificate's life.
SPREAD = 0.05
#: With so few days left, a renewal that fails is critical.
_URGENT_S = 10 * 86_400.0


class Upkeep(threading.Thread):
    """A thread that sleeps nearly always.

    clock    Unix seconds, the device's
    fault    told what fails
    rooted   told the director's new root
    """

    def __init__(
        self,
        folder: Path,
        controller: str,
        device: str,
        *,
        clock: Callable[[], float],
        random: Random,
        fault: Callable[[Fault], None],
        rooted: Callable[[bytes], None],
    ) -> None:
        super().__init__(name="upkeep", daemon=True)
        self._folder, self._controller, self._device = folder, controller, device
        self._clock, self._random, self._fault, self._rooted = clock, random, fault, rooted
        self._share = renewal.DUE + SPREAD * random.random()
        self._ending = threading.Event()

    def finish(self) -> None:
        """End it; a request under way is let go."""
        self._ending.set()

    def run(self) -> None:
        delay = 60.0 * self._random.random()
        while not self._ending.wait(delay):
            delay = self.look()

    def look(self) -> float:
        """Do what is due; seconds until the next look."""
        passed = [self._tried(self._renew, "certificate"), self._tried(self._follow, "director")]
        pause = LOOK_S if all(passed) else RETRY_S
        return pause * (0.5 + self._random.random() / 2)

    def _renew(self) -> None:
        begin, end = renewal.life_s(self._folder)
        if self._clock() < begin + self._share * (end - begin):
            return
        renewal.renew(self._folder, self._controller, self._device)
        _log.info("the certificate was renewed")

    def _follow(self) -> None:
        newest = renewal.refresh_director(self._folder, self._controller)
        if newest is not None:
            _log.info("the director has a new root")
            self._rooted(newest)

    def _tried(self, work: Callable[[], None], cause: str) -> bool:
        try:
            work()
        except (ShoalError, OSError) as error:
            self._fault(Fault(cause, str(error), self._severity(cause, error)))
            return False
        return True

    def _severity(self, cause: str, error: Exception) -> str:
        """A controller out of reach is worth no word while there is time."""
        if cause == "certificate" and self._left_s() < _URGENT_S:
            return "critical"
        return "info" if isinstance(error, LinkError) else "warning"

    def _left_s(self) -> float:
        try:
            return renewal.life_s(self._folder)[1] - self._clock()
        except ShoalError:
            return 0.0
