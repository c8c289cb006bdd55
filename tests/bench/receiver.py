"""`python -m bench.receiver PKI PORT`: receives with bare paho, and does nothing with it.

Reads how many messages to wait for from standard input, a line each time; prints the monotonic
time at which the last of them came.
"""

import sys
import threading
import time
from pathlib import Path

from bench import brokers
from shoal.topics import ALL_UP


class Count:
    """Messages received; `reached` waits for the next so many."""

    def __init__(self) -> None:
        self._seen, self._taken = 0, 0
        self._news = threading.Condition()

    def hear(self, _topic: str, _payload: bytes) -> None:
        with self._news:
            self._seen += 1
            self._news.notify()

    def reached(self, count: int) -> float:
        """Monotonic seconds when `count` more than those before had come; TimeoutError."""
        self._taken += count
        with self._news:
            if not self._news.wait_for(lambda: self._seen >= self._taken, brokers.PATIENCE_S):
                raise TimeoutError(f"{self._taken - self._seen} messages have not come")
            return time.monotonic()


def main(pki: Path, port: int) -> None:
    count = Count()
    with brokers.connected(pki, port, "bench-receiver", [ALL_UP], count.hear):
        print("ready", flush=True)
        for line in sys.stdin:
            print(count.reached(int(line)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
