"""Base class of sources and sinks with a server: connect, serve, reconnect after a pause."""

import abc
import collections
import logging
import threading

from shoal.agent.feeds.frames import FeedHealth, Prediction
from shoal.agent.feeds.io.interface import Context, Tally
from shoal.agent.host.faults import Fault
from shoal.errors import ShoalError

FIRST_S = 1.0
#: Seconds after which a connection counts as stable: the next pause starts from FIRST_S again.
STABLE_S = 10.0
_log = logging.getLogger(__name__)


class ReconnectingFeed(abc.ABC):
    """Runs `serve` repeatedly, with pauses of full jitter: uniform(0, min(retry_s, 2^n)).

    tally   counters; `serve` calls tally.came_up() once it is connected
    """

    def __init__(self, context: Context, retry_s: float) -> None:
        self.context, self.tally = context, Tally(context)
        self._retry_s = retry_s

    @abc.abstractmethod
    def serve(self, stopping: threading.Event) -> None:
        """Run one connection until `stopping`; raise any error that ends it earlier."""

    def health(self) -> FeedHealth:
        """State and counters."""
        return self.tally.health()

    def run(self, stopping: threading.Event) -> None:
        """Serve until `stopping` is set; never raises."""
        attempt = 0
        while not stopping.is_set():
            began = self.context.monotonic()
            why = self._once(stopping)
            if stopping.is_set():
                break
            lasted = self.context.monotonic() - self.tally.up_since
            is_stable = self.tally.up_since >= began and lasted > STABLE_S
            attempt = 0 if is_stable else attempt + 1
            self._report_failure(why)
            longest = min(self._retry_s, FIRST_S * 2 ** min(attempt, 16))
            stopping.wait(self.context.random.uniform(0, longest))
        self.tally.went_down("stopped")

    def _once(self, stopping: threading.Event) -> str:
        try:
            self.serve(stopping)
        except Exception as error:  # noqa: BLE001 - whatever it is, the feed reconnects
            return explain(error)
        return "the connection ended"

    def _report_failure(self, why: str) -> None:
        self.tally.went_down(why)
        context = self.context
        _log.warning("%s %s: %s", context.kind, context.name, why)
        context.fault(Fault("feed-down", f"{context.kind} {context.name!r}: {why}"))


class QueuedSink(ReconnectingFeed):
    """Base of sinks whose `serve` takes predictions from a queue; beyond its limit the oldest go.

    _queue   made by the subclass, with its limit
    """

    _queue: collections.deque[Prediction]

    def write(self, prediction: Prediction) -> None:
        """Queue one; the oldest is dropped beyond the limit."""
        self.tally.dropped += len(self._queue) == self._queue.maxlen
        self._queue.append(prediction)
        self.tally.count += 1

    def health(self) -> FeedHealth:
        """State and counters."""
        self.tally.waiting = len(self._queue)
        return super().health()


def explain(error: BaseException) -> str:
    """One sentence on why a connection failed or ended."""
    if isinstance(error, ShoalError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no response in time; is the server running, and the address right?"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"
