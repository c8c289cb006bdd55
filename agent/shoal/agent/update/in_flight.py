"""What is under way for one model; nothing here need survive the power failing."""

from shoal.agent.installed.record import Record
from shoal.agent.update.acceptance import Watch
from shoal.agent.update.machine import Effect


class Job:
    """One effect under way. For which record: an outcome for an older one is not heard."""

    def __init__(self, effect: Effect, record: Record) -> None:
        self.effect, self.record, self.stopped = effect, record, False


class Lane:
    """One model's: the effect that waits, the one that runs, and what is watched meanwhile.

    not_before and the watch are timed by a clock that nobody sets.
    """

    def __init__(self) -> None:
        self.pending: Effect | None = None
        self.job: Job | None = None
        self.tries = 0
        self.not_before = float("-inf")
        self.watch: Watch | None = None

    @property
    def rests(self) -> bool:
        """Whether nothing waits or runs."""
        return self.job is None and self.pending is None
