"""Work off the control loop, one job at a time."""

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from shoal.errors import RefusedError, ShoalError

_log = logging.getLogger(__name__)

#: Runs a function on another thread, or on the control loop.
Submit = Callable[[Callable[[], None]], None]


class Job:
    """A running job; once it has ended, its value or its error."""

    def __init__(self, name: str) -> None:
        self.name, self.cancelled = name, False
        self.value: Any = None
        self.error: ShoalError | None = None


J = TypeVar("J", bound=Job)


class Worker(Generic[J]):
    """Runs one job at a time: by `spawn` off the control loop, then by `post` on it."""

    def __init__(self, spawn: Submit, post: Submit) -> None:
        self._spawn, self._post = spawn, post
        self.current: J | None = None

    def start(self, job: J, work: Callable[[J], Any], done: Callable[[J], None]) -> None:
        """Run `work` off the control loop, then `done` on it, also when the job was cancelled."""
        self.current = job

        def finish() -> None:
            if self.current is job:
                self.current = None
            done(job)

        def run() -> None:
            _run(job, work)
            self._post(finish)

        self._spawn(run)

    def cancel(self) -> None:
        """Set the stop flag of the running job."""
        if self.current is not None:
            self.current.cancelled = True


def _run(job: J, work: Callable[[J], Any]) -> None:
    """Keep the value or the error of `work`; never raises."""
    try:
        job.value = work(job)
    except ShoalError as error:
        job.error = error
    except Exception as error:  # noqa: BLE001 a bug costs this job, not the device
        _log.exception("%s", job.name)
        job.error = RefusedError(f"{job.name}: {type(error).__name__}: {error}", "agent-bug")
