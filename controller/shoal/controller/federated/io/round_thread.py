"""Federated rounds in the engine: what devices say of them waits apart, on a thread of its own.

Updates are large. They never stand in the queue of telemetry, and no more of them are in memory
than a fixed number of bytes: what is dropped is asked for again, for the round misses it.
"""

import collections
import logging
import threading

from shoal import topics, wire
from shoal.controller.federated.io.round_files import RoundFiles
from shoal.controller.federated.rounds.runner import Course, Post
from shoal.controller.host.context import Context

_log = logging.getLogger(__name__)
#: Bytes of answers that wait, of all devices and of one: none can take the room of the others.
LIMIT, OF_ONE = 64 << 20, 16 << 20
#: Answers taken at once: one sync for all of them, and a round goes on while more of them come.
BATCH = 64
#: Seconds between two steps while nothing ends: what is due by the clock.
STEP_S = 0.25
KIND = "round"


class Rounds:
    """bell: rung when something has come."""

    def __init__(self, ctx: Context, post: Post) -> None:
        self.bell = threading.Event()
        self._course = Course(ctx, RoundFiles(ctx.folder / "rounds"), post)
        self._waiting: collections.deque[tuple[str, bytes]] = collections.deque()
        self._bytes: collections.Counter[str] = collections.Counter()  # by topic; "": all
        self._dropped, self._stepped = 0, 0.0
        self._clock = ctx.clock
        self._lock = threading.Lock()

    def put(self, topic: str, payload: bytes) -> None:
        """Keep an answer until `work`; dropped, and counted, when there is no room."""
        size = len(payload)
        with self._lock:
            if self._bytes[""] + size > LIMIT or self._bytes[topic] + size > OF_ONE:
                self._dropped += 1
                return
            self._bytes.update({"": size, topic: size})
            self._waiting.append((topic, payload))
        self.bell.set()

    def work(self) -> None:
        """Take what has come, and do what is due. StorageError when the disk refuses."""
        self.bell.clear()
        while batch := self._batch():
            if self._course.take(batch):
                self._step()
        if not 0 <= self._clock() - self._stepped < STEP_S:
            self._step()

    def _step(self) -> None:
        self._course.step()
        self._stepped = self._clock()

    def _batch(self) -> list[tuple[str, bytes]]:
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            for topic, payload in batch:
                self._bytes.subtract({"": len(payload), topic: len(payload)})
            if not self._waiting:
                self._bytes.clear()
            dropped, self._dropped = self._dropped, 0
        if dropped:
            _log.warning("%d round answers dropped, they are asked for again", dropped)
        return batch


def is_answer(topic: str) -> bool:
    """Whether a device speaks of a round on this topic."""
    return topic.endswith(f"/up/{KIND}")


def topic_of(device: str) -> str:
    return topics.down(device, wire.DOWN_KIND[wire.RoundCall])
