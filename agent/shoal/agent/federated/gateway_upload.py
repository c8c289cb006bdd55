"""A contribution's way up: directly, or by way of the site's gateway, which sums before the WAN.

The controller says the way with every Start, and says it again: without one, everybody sends
directly. Whoever cannot reach its gateway does so at once. All of this is in memory: after a start
the controller says it once more, and what was handed over is on the gateway's disk.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from shoal.agent.federated.ports import CONTRIBUTION, SITE, Gathered, LearningPorts
from shoal.agent.federated.round_jobs import Done, Job, Kind
from shoal.agent.host.faults import Fault
from shoal.agent.installed.round_record import Part, Saved, State
from shoal.errors import LinkError, ShoalError, UntrustedError
from shoal.federated.messages import Way

_log = logging.getLogger(__name__)

#: Seconds until a gateway that is not ready yet is asked again; how often one out of reach is.
AGAIN_S, TRIES = 1.0, 3
#: Bytes of a contribution beside 12 for each number, 4 of them in theta.
_AROUND = 65_536

Begin = Callable[[Kind, bytes, Callable[[Job], Any], Any], None]


class Up(NamedTuple):
    """What goes up: a file in the sandbox."""

    name: str
    saved: Saved


class Handover:
    """Of one try of a round.

    begin   a job: kind, attempt, work, and what it is an answer to
    """

    def __init__(
        self, device: str, own: LearningPorts, clock: Callable[[], float], begin: Begin,
        fault: Callable[[Fault], None],
    ) -> None:  # fmt: skip
        self._device, self._own, self._clock = device, own, clock
        self._begin, self._fault = begin, fault
        self.forget()

    def forget(self) -> None:
        """The try is over."""
        self._way: Way | None = None
        self._sum: Gathered | None = None
        self._given = self._alone = self._waits = False
        self._again_s, self._tries = 0.0, 1
        if self._own.door is not None:
            self._own.door.shut()

    def told(self, part: Part, way: Way | None) -> None:
        """The way, as the controller says now; of a gateway that the signed plan names."""
        if way is not None and way.gateway not in part.config.plan.gateways.values():
            way = None
        self._way, self._given = way, False
        if way is None:
            self._shut()
        elif way.gateway == self._device and not self._alone:
            self._listen(part, way)

    def takes(self, part: Part) -> bool:
        """Whether the contribution goes, or waits to go, by this way: then nothing goes up now."""
        self._waits, way = False, self._way
        if way is None or self._alone:
            return False
        if way.gateway == self._device:
            return self._sum is None and self._gathers(part, way)
        self._waits = not self._given
        if self._waits and self._clock() >= self._again_s:
            self._begin(Kind.HAND, part.attempt, lambda job: self._hand(part, way), way)
        return True

    def due(self) -> bool:
        """Whether `takes` is to be asked again."""
        return self._waits

    def up(self, part: Part) -> Up:
        """What goes up now: the site's sum once it is made, or this device's own."""
        assert part.contribution is not None
        return Up(SITE, self._sum.saved) if self._sum else Up(CONTRIBUTION, part.contribution)

    def ended(self, part: Part, done: Done) -> bool:
        """A job of `takes` ended: whether that changes what goes up."""
        if part.attempt != done.job.attempt or part.state is not State.SENT:
            return False
        if self._way is None or self._alone:
            return False
        if isinstance(done.error, LinkError) and self._tries < TRIES:
            self._tries += 1
            self._again_s = self._clock() + AGAIN_S
        elif done.error is not None:
            _log.warning("the update goes up directly: %s", done.error)
            if isinstance(done.error, UntrustedError):
                self._fault(Fault("peer-untrusted", str(done.error)))
            self._alone = True
            self._shut()
        elif done.job.kind is Kind.SUM:
            self._sum = self._fitting(done.result)
        else:
            self._given = bool(done.result)
            self._again_s = self._clock() + AGAIN_S
        return True

    def _listen(self, part: Part, way: Way) -> None:
        door = self._own.door
        try:
            if door is None:
                raise UntrustedError("the plan names this device, and its [gateway] is not enabled")
            members = {name: way.generation_of(name) for name in way.members}
            door.open(part.attempt, members, 3 * part.config.theta.length + _AROUND)
        except ShoalError as error:
            self._fault(Fault("no-gateway", f"this site sends directly: {error}"))
            self._alone = True
        self._sum = self._fitting(self._sum)

    def _fitting(self, made: Gathered | None) -> Gathered | None:
        """None, to be made anew, when somebody in it has sent directly meanwhile."""
        fits = made and self._way and made.members <= {*self._way.members}
        return made if fits else None

    def _gathers(self, part: Part, way: Way) -> bool:
        door = self._own.door
        assert door is not None  # else it is alone
        others = {*way.members} - {self._device}
        came = door.came() & others
        if came != others and self._clock() < way.close_s:
            self._waits = True
            return True
        if not came:
            return False
        size, members = part.config.theta.length // 4, {*came, self._device}
        self._waits = True
        self._begin(
            Kind.SUM,
            part.attempt,
            lambda job: door.gather(part.attempt, members, size, way.most),
            way,
        )
        return True

    def _hand(self, part: Part, way: Way) -> bool:
        assert part.contribution is not None
        data = self._own.sandbox.piece(part.attempt, 0, part.contribution.length)
        return self._own.hand(way, part.attempt, data)

    def _shut(self) -> None:
        self._sum = None
        if self._own.door is not None:
            self._own.door.shut()
