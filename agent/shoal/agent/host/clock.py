"""The device's clock: max(RTC, floor), so that a board without a battery is not in 1970."""

from collections.abc import Callable

from shoal.agent.host.clock_skew import ControllerTime, is_wrong
from shoal.wire import Skew

#: Seconds that a signature may be ahead of a clock that is set from the network.
AHEAD_S = 86_400.0


class DeviceClock:
    """Unix seconds that never run below what a signature has vouched for.

    >>> clock = DeviceClock(wall=lambda: 0.0, monotonic=lambda: 5.0, floor_s=1000.0)
    >>> clock(), clock.synced
    (1000.0, False)

    The controller's time is heard, not signed: it is told of, and never believed.

    A signature is a bound from below, made by a clock that may itself be wrong. Where the machine's
    clock is set from the network, one that lies further ahead than AHEAD_S raises nothing beyond.

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

    def believed(self, signed_s: float) -> float:
        """As much of a signed time as may raise the floor."""
        return min(signed_s, self._wall() + AHEAD_S) if self._disciplined() else signed_s

    def vouch(self, floor_s: float) -> None:
        """Raise the floor; lower values change nothing."""
        if floor_s > self():
            self._floor_s, self._set_at = floor_s, self.monotonic()

    @property
    def skew(self) -> Skew | None:
        """How far it is from the controller's clock; None while that is not known."""
        return self.controller.skew(self(), self.monotonic())

    @property
    def synced(self) -> bool:
        """Whether the machine's own clock is not known to be wrong: behind, or far off."""
        return self._wall() >= self._floor_s and not is_wrong(self.skew)
