"""Queue and thread of federated round messages, apart from telemetry.

Updates are large: they never wait in the telemetry queue, and the queue here is limited in bytes.
A dropped message is requested again, because its round misses it.
"""

import collections
import logging
import math
import threading

from shoal import topics, wire
from shoal.controller.federated.io.round_files import RoundFiles
from shoal.controller.federated.rounds.runner import Post, RoundRunner
from shoal.controller.host.context import Context

_log = logging.getLogger(__name__)
#: Bytes of queued messages, of all devices and of one, so that no device displaces the others.
MAX_BYTES, MAX_BYTES_PER_DEVICE = 64 << 20, 16 << 20
#: Messages taken at once: one sync for all of them, and rounds advance while more arrive.
BATCH = 64
#: Seconds between two steps while no round ends.
STEP_S = 0.25
KIND = "round"


class RoundThread:
    """Queue of round messages, and the work on them for a thread of its own.

    bell   set when a message has arrived
    """

    def __init__(self, ctx: Context, post: Post) -> None:
        self.bell = threading.Event()
        self._runner = RoundRunner(ctx, RoundFiles(ctx.folder / "rounds"), post)
        self._queue: collections.deque[tuple[str, bytes]] = collections.deque()
        self._bytes: collections.Counter[str] = collections.Counter()  # by topic; "": all
        self._dropped, self._stepped, self._is_active = 0, 0.0, True
        self._clock = ctx.clock
        self._lock = threading.Lock()

    def put(self, topic: str, payload: bytes) -> None:
        """Queue a message for `work`; when the queue is full, drop and count it."""
        size = len(payload)
        with self._lock:
            over = self._bytes[""] + size > MAX_BYTES
            if over or self._bytes[topic] + size > MAX_BYTES_PER_DEVICE:
                self._dropped += 1
                return
            self._bytes.update({"": size, topic: size})
            self._queue.append((topic, payload))
        self.bell.set()

    def work(self) -> float:
        """Process queued messages, and what is due. StorageError when the disk refuses.

        Unix time when time alone makes something due; infinite while no round runs.
        """
        self.bell.clear()
        while batch := self._batch():
            if self._runner.receive(batch):
                self._step()
        if not 0 <= self._clock() - self._stepped < STEP_S:
            self._step()
        return self._stepped + STEP_S if self._is_active else math.inf

    def _step(self) -> None:
        self._is_active = self._runner.step()
        self._stepped = self._clock()

    def _batch(self) -> list[tuple[str, bytes]]:
        with self._lock:
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            for topic, payload in batch:
                self._bytes.subtract({"": len(payload), topic: len(payload)})
            if not self._queue:
                self._bytes.clear()
            dropped, self._dropped = self._dropped, 0
        if dropped:
            _log.warning("%d round messages dropped; they are requested again", dropped)
        return batch


def is_round_message(topic: str) -> bool:
    """Whether a device's topic carries round messages."""
    return topic.endswith(f"/up/{KIND}")


def call_topic(device: str) -> str:
    """Topic of the controller's round messages to a device."""
    return topics.down(device, wire.DOWN_KIND[wire.RoundCall])
