"""Server-sent events of changes: https://html.spec.whatwg.org/#server-sent-events"""

import threading
from collections.abc import Callable, Iterator

import msgspec

from shoal.controller.host.context import Context
from shoal.controller.store import changes
from shoal.controller.store.changes import Change

POLL_S = 0.3
HEARTBEAT_S = 10.0
#: A stream occupies one of the server's sixteen threads: it ends, and the browser reopens it.
LIFETIME_S = 25.0
MAX_STREAMS = 8
_RETRY_MS, _RETRY_OVERLOADED_MS = 500, 2_000


class Streams:
    """Streams of one process, at most MAX_STREAMS at a time; a further one ends and retries later.

    pause   waits for a number of seconds, as time.sleep
    """

    def __init__(self, pause: Callable[[float], None]) -> None:
        self._pause = pause
        self._free = threading.BoundedSemaphore(MAX_STREAMS)

    def follow(
        self, ctx: Context, last_id: str, gone: Callable[[], bool] = bool
    ) -> Iterator[bytes]:
        """Events after `last_id`, or from now on for an unknown id, until `gone`."""
        newest = changes.newest(ctx)
        after = int(last_id) if last_id.isdecimal() and int(last_id) <= newest else newest
        if not self._free.acquire(blocking=False):
            return _overloaded(ctx, after)
        return _SlotHolder(_live(ctx, after, self._pause, gone), self._free.release)


class _SlotHolder:
    """An iterator of events that releases its slot when closed, even if never started."""

    def __init__(self, events: Iterator[bytes], release: Callable[[], None]) -> None:
        self._events, self._release = events, release

    def __iter__(self) -> Iterator[bytes]:
        return self._events

    def __next__(self) -> bytes:
        return next(self._events)

    def close(self) -> None:
        release, self._release = self._release, _released
        release()


def _released() -> None:
    """No-op after the first release."""


def _live(
    ctx: Context, after: int, pause: Callable[[float], None], gone: Callable[[], bool]
) -> Iterator[bytes]:
    started = last_sent = ctx.clock()
    yield _retry(_RETRY_MS, after)
    while (now := ctx.clock()) < started + LIFETIME_S and not gone():
        found = changes.since(ctx, after)
        if found:
            after, last_sent = found[-1].id, now
            yield b"".join(map(_event, found))
        elif now >= last_sent + HEARTBEAT_S:
            last_sent = now
            yield b": still here\n\n"
        else:
            pause(POLL_S)


def _overloaded(ctx: Context, after: int) -> Iterator[bytes]:
    yield _retry(_RETRY_OVERLOADED_MS, after)
    yield b"".join(map(_event, changes.since(ctx, after)))


def _retry(milliseconds: int, after: int) -> bytes:
    """First lines: retry delay and id, so that a stream without events keeps its position."""
    return b"retry: %d\nid: %d\n\n" % (milliseconds, after)


def _event(change: Change) -> bytes:
    data = msgspec.json.encode({"id": change.id, "subject": change.subject, "at": change.at})
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (change.id, change.kind.encode(), data)
