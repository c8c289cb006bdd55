"""When a device may train: its models are asked little, it is cool, nothing presses on it."""

from collections.abc import Callable, Mapping

from shoal.agent.host.load import Load
from shoal.agent.host.round_limits import Limits
from shoal.agent.serving.served_model import Serving

#: Seconds over which requests are counted; between two looks at the machine.
COUNT_S, LOOK_S = 2.0, 5.0
#: Degrees that a hot device has to cool before it goes on.
COOLER = 3.0


class Quiet:
    """Looked at by the control loop, asked by the trainer's thread.

    quiet_hz   requests a second beyond which the device is busy, where its limits say `idle`
    load       how the machine is
    eased      whether the agent itself has given way to pressure
    """

    def __init__(
        self,
        limits: Limits,
        quiet_hz: float,
        *,
        serving: Mapping[str, Serving],
        load: Callable[[], Load],
        eased: Callable[[], bool],
        monotonic: Callable[[], float],
    ) -> None:
        self._limits, self._quiet_hz = limits, quiet_hz
        self._serving, self._load, self._eased = serving, load, eased
        self._monotonic = monotonic
        self._counted, self._counted_s = 0, monotonic()
        self._looked_s, self._hot = float("-inf"), False
        self.busy, self.celsius = False, None
        self.hold: str = ""

    busy: bool
    celsius: float | None

    def look(self) -> None:
        """Say anew why training has to rest, "" for no reason."""
        now = self._monotonic()
        if now - self._counted_s >= COUNT_S:
            self._count(now)
        if now - self._looked_s >= LOOK_S:
            self._looked_s, found = now, self._load().temp_c
            self.celsius = found if found >= 0 else None
            most = self._limits.celsius - (COOLER if self._hot else 0.0)
            self._hot = self._limits.celsius > 0 and found > most
        reasons = (
            ("busy", self.busy and self._limits.idle),
            ("hot", self._hot),
            ("under pressure", self._eased()),
        )
        self.hold = next((reason for reason, holds in reasons if holds), "")

    def _count(self, now: float) -> None:
        requests = sum(serving.vitals.requests for serving in list(self._serving.values()))
        new = max(0, requests - self._counted)  # fewer than before: another release counts anew
        self.busy = new / (now - self._counted_s) > self._quiet_hz
        self._counted, self._counted_s = requests, now
