"""Learns of revocations without an update: fetches release metadata when an assignment names a
later security epoch than the device has seen, and raises floors by what the release's role signed.
"""

from collections.abc import Callable, Mapping

from shoal.agent.host.clock import DeviceClock
from shoal.agent.host.jobs import Job, Submit, Worker
from shoal.agent.installed.floors import Floors
from shoal.agent.update.ports import UpdatePorts
from shoal.epochs import FIRST

#: Seconds until another try when metadata cannot be had, and while it is of an earlier epoch than
#: the director names: its key may be stolen, and its hints cost no more than this.
RETRY_S = 600.0


class EpochJob(Job):
    """One look at the release metadata. named: model -> epoch to look for; floors: at its start."""

    def __init__(self, named: dict[str, int], floors: Floors) -> None:
        super().__init__("security epochs")
        self.named, self.floors = named, floors


class EpochWatch:
    """Follows the epochs that assignments name.

    learned   takes the floors that verified metadata leads to, on the control loop
    """

    def __init__(
        self,
        ports: UpdatePorts,
        clock: DeviceClock,
        post: Submit,
        learned: Callable[[Floors], None],
    ) -> None:
        self._ports, self._clock, self._learned = ports, clock, learned
        self._worker = Worker[EpochJob](ports.spawn, post)
        self._not_before = float("-inf")

    def tick(self, named: Mapping[str, int], floors: Floors) -> None:
        """Start a look where one of the `named` epochs is later than the floor of its model."""
        behind = _later(named, floors)
        now = self._clock.monotonic()
        if not behind or self._worker.current or now < self._not_before:
            return
        self._not_before = now + RETRY_S
        self._worker.start(EpochJob(behind, floors), self._look, self._on_done)

    def stop(self) -> None:
        """Cancel the running look."""
        self._worker.cancel()

    def _look(self, job: EpochJob) -> Floors:
        images, floors = self._ports.images, job.floors
        floors = floors.after(images.refresh(self._clock(), floors.seen))
        for model in job.named:
            floors = floors.of_epoch(model, images.epoch(model))
        return floors

    def _on_done(self, job: EpochJob) -> None:
        """A failed look changes nothing: the next one is due later."""
        if job.error is not None or job.cancelled:
            return
        if not _later(job.named, job.value):
            self._not_before = float("-inf")
        self._learned(job.value)


def _later(named: Mapping[str, int], floors: Floors) -> dict[str, int]:
    """Those of the named epochs that are later than the floor of their model."""
    return {m: epoch for m, epoch in named.items() if epoch > floors.counters.get(m, FIRST)}
