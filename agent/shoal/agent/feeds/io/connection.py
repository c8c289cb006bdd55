"""What every source and sink with a server shares: connect, serve, break, wait, connect again."""

import abc
import logging
import threading

from shoal.agent.feeds.frames import FeedHealth
from shoal.agent.feeds.io.interface import Context, Tally
from shoal.agent.host.faults import Fault
from shoal.errors import ShoalError

FIRST_S = 1.0
#: A connection that lasted so long was a good one: the next pause starts small again.
SETTLED_S = 10.0
_log = logging.getLogger(__name__)


class Connecting(abc.ABC):
    """Runs `serve` again and again, with pauses of full jitter: uniform(0, min(retry_s, 2^n)).

    tally   counts; `serve` calls tally.came_up() once it is connected
    """

    def __init__(self, context: Context, retry_s: float) -> None:
        self.context, self.tally = context, Tally(context)
        self._retry_s = retry_s

    @abc.abstractmethod
    def serve(self, stopping: threading.Event) -> None:
        """One connection, from its beginning until `stopping`; raise whatever ends it earlier."""

    def health(self) -> FeedHealth:
        """How it is doing."""
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
            settled = self.tally.up_since >= began and lasted > SETTLED_S
            attempt = 0 if settled else attempt + 1
            self._complain(why)
            longest = min(self._retry_s, FIRST_S * 2 ** min(attempt, 16))
            stopping.wait(self.context.random.uniform(0, longest))
        self.tally.went_down("stopped")

    def _once(self, stopping: threading.Event) -> str:
        try:
            self.serve(stopping)
        except Exception as error:  # noqa: BLE001 - whatever it is, the feed must come back
            return explain(error)
        return "the connection ended"

    def _complain(self, why: str) -> None:
        self.tally.went_down(why)
        context = self.context
        _log.warning("%s %s: %s", context.kind, context.name, why)
        context.fault(Fault("feed-down", f"{context.kind} {context.name!r}: {why}"))


def explain(error: BaseException) -> str:
    """One sentence on why a connection could not be made, or ended."""
    if isinstance(error, ShoalError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time; is the server running, and the address right?"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"
