"""The queue of devices' messages: a turn for each device, each within its budget.

The link's thread puts messages in, ingest takes batches out, one message a device in each turn. So
a device that sends a thousand messages delays another one's by one message, not by a thousand.
"""

import collections
import threading
from collections.abc import Callable

from shoal.controller.ingest.message_budgets import Excess, MessageBudgets, Rates
from shoal.wire import LIMIT

#: Messages and bytes in memory; beyond, only devices with nothing queued may add one.
MOST_MESSAGES, MOST_BYTES = 20_000, 64 << 20
#: Rounds have budgets of their own: updates come in many pieces, bounded in bytes by their queue.
_ROUND_RATES = Rates(messages_s=400.0, bytes_s=float(1 << 30))
Message = tuple[str, bytes]


class Intake:
    """Queue of messages by device, bounded in messages and bytes.

    bell    set when a device is to be cut off: `take_excess` says which
    rates   of telemetry, for each device
    """

    def __init__(self, rates: Rates, monotonic: Callable[[], float]) -> None:
        self.bell = threading.Event()
        self._budgets = MessageBudgets(rates, monotonic)
        self._round_budgets = MessageBudgets(_ROUND_RATES, monotonic)
        self._monotonic = monotonic
        self._queues: dict[str, collections.deque[tuple[str, bytes, float]]] = {}
        self._turns: collections.deque[str] = collections.deque()
        self._messages = self._bytes = 0
        self._waited_s = 0.0
        self._news = threading.Condition()

    def put(self, topic: str, payload: bytes) -> bool:
        """Queue a message; False, and it is counted, where its device is over its budget."""
        device, kind = _parts(topic)
        size = len(payload)
        with self._news:
            if size > LIMIT.get(kind, 0):
                self._budgets.refuse(device, size, garbage=True)
                self._ring(self._budgets)
                return False
            if not self._budgets.admit(device, size):
                self._ring(self._budgets)
                return False
            queue = self._queues.get(device)
            full = self._messages >= MOST_MESSAGES or self._bytes + size > MOST_BYTES
            if full and queue:
                self._budgets.refuse(device, size, garbage=False)
                return False
            if queue is None:
                queue = self._queues[device] = collections.deque()
                self._turns.append(device)
            queue.append((topic, payload, self._monotonic()))
            self._messages += 1
            self._bytes += size
            self._news.notify()
            return True

    def admit_round(self, topic: str, payload: bytes) -> bool:
        """Whether a message of a round, which has a queue of its own, is within its budget."""
        with self._news:
            admitted = self._round_budgets.admit(_parts(topic)[0], len(payload))
            if not admitted:
                self._ring(self._round_budgets)
            return admitted

    def charge(self, device: str) -> None:
        """Take the price of one message more: ingest has refused it as garbage."""
        with self._news:
            self._budgets.charge(device, 0)

    @property
    def waiting(self) -> int:
        """Messages in the queue."""
        return self._messages

    @property
    def waited_s(self) -> float:
        """How long the message waited that was taken last; 0 while none waits."""
        return self._waited_s if self._messages else 0.0

    def take(self, most: int, timeout_s: float = 0.0) -> list[Message]:
        """Up to `most` messages, a device's in their order; waits `timeout_s` for the first."""
        with self._news:
            if not self._turns and timeout_s > 0:
                self._news.wait_for(lambda: bool(self._turns), timeout_s)
            taken: list[Message] = []
            while self._turns and len(taken) < most:
                taken.append(self._next())
            return taken

    def take_excess(self) -> list[Excess]:
        """What was refused since the last call."""
        with self._news:
            self.bell.clear()
            return [*self._budgets.take_excess(), *self._round_budgets.take_excess()]

    def _next(self) -> Message:
        device = self._turns.popleft()
        queue = self._queues[device]
        topic, payload, came_at = queue.popleft()
        self._waited_s = self._monotonic() - came_at
        if queue:
            self._turns.append(device)
        else:
            del self._queues[device]
        self._messages -= 1
        self._bytes -= len(payload)
        return topic, payload

    def _ring(self, budgets: MessageBudgets) -> None:
        if not self.bell.is_set() and budgets.to_cut:
            self.bell.set()


def _parts(topic: str) -> tuple[str, str]:
    """Device and kind of an upward topic; ("", "") for another one."""
    parts = topic.split("/")
    return (parts[2], parts[4]) if len(parts) == 5 else ("", "")
