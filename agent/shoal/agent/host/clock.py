"""The device's clock: max(RTC, floor), for boards whose RTC has no battery."""

from collections.abc import Callable

from shoal.agent.host.clock_skew import ControllerTime, describe, is_wrong
from shoal.wire import Skew

#: Seconds that a signature may be ahead of a clock that is set from the network.
AHEAD_S = 86_400.0


class DeviceClock:
    """Unix seconds, never below the newest signed time.

    >>> clock = DeviceClock(wall=lambda: 0.0, monotonic=lambda: 5.0, floor_s=1000.0)
    >>> clock(), clock.synced
    (1000.0, False)

    Controller time is unauthenticated: it is used to report clock skew, never to set the clock.

    A signed time is a lower bound, from a clock that may itself be wrong. Where the machine's clock
    is set from the network, signed times raise the floor by at most AHEAD_S beyond it.

    wall, monotonic   where the seconds come from
    floor_s           known lower bound when the clock is made
    disciplined       whether the machine's clock is set from the network (NTP)
    """

    def __init__(
        self,
        *,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        floor_s: float = 0.0,
        disciplined: Callable[[], bool] = lambda: False,
    ) -> None:
        self._wall, self.monotonic, self._disciplined = wall, monotonic, disciplined
        self.controller = ControllerTime()
        self._floor_s, self._set_at = floor_s, monotonic()

    def __call__(self) -> float:
        return max(self._wall(), self._floor_s + self.monotonic() - self._set_at)

    def clamp(self, signed_s: float) -> float:
        """A signed time, limited to what may raise the floor."""
        return min(signed_s, self._wall() + AHEAD_S) if self._disciplined() else signed_s

    def raise_floor(self, floor_s: float) -> None:
        """Raise the floor; lower values have no effect."""
        if floor_s > self():
            self._floor_s, self._set_at = floor_s, self.monotonic()

    @property
    def skew(self) -> Skew | None:
        """Difference from the controller's clock; None while it is unknown."""
        return self.controller.skew(self(), self.monotonic())

    def corrected(self) -> float:
        """Unix seconds by the controller's clock where the skew is known, else by this one.

        For times of day and earliest times. Signatures are judged by this machine's clock alone.
        """
        skew = self.skew
        return self() - (skew.skew_s if skew is not None else 0.0)

    def is_past(self, deadline_s: float) -> bool | None:
        """Whether the controller's clock shows more than `deadline_s`; None where that is unknown.

        Unknown is what a clock says that neither the controller nor the network has checked.
        """
        skew = self.skew
        if skew is not None:
            return self() - skew.skew_s - skew.error_s > deadline_s
        if self._disciplined():
            return self() > deadline_s
        return None

    @property
    def fault(self) -> str:
        """How far the clock is known to be wrong, as a sentence; "" while it is not."""
        skew = self.skew
        wrong = skew is not None and is_wrong(skew)
        return f"this device's clock is {describe(skew)} the controller's" if skew and wrong else ""

    @property
    def synced(self) -> bool:
        """Whether the machine's clock is neither below the floor nor known to be far off."""
        return self._wall() >= self._floor_s and not is_wrong(self.skew)
