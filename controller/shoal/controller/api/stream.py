"""Server-sent events from the table of changes: https://html.spec.whatwg.org/#server-sent-events"""

import threading
from collections.abc import Callable, Iterator

import msgspec

from shoal.controller.host.context import Context
from shoal.controller.store import changes
from shoal.controller.store.changes import Change

POLL_S = 0.3
HEARTBEAT_S = 10.0
#: A stream holds one of the server's sixteen threads: it ends, and the browser opens it again.
LIFE_S = 25.0
MOST = 8
_RETRY_MS, _RETRY_CROWDED_MS = 500, 2_000


class Streams:
    """Streams of one process, at most MOST at a time; one more ends at once and comes again.

    pause   waits so many seconds, as time.sleep does
    """

    def __init__(self, pause: Callable[[float], None]) -> None:
        self._pause = pause
        self._free = threading.BoundedSemaphore(MOST)

    def follow(
        self, ctx: Context, last_id: str, gone: Callable[[], bool] = bool
    ) -> Iterator[bytes]:
        """Events after `last_id`, or from now on when it is not one of ours, until `gone`."""
        newest = changes.newest(ctx)
        after = int(last_id) if last_id.isdecimal() and int(last_id) <= newest else newest
        if not self._free.acquire(blocking=False):
            return _crowded(ctx, after)
        return self._held(_live(ctx, after, self._pause, gone))

    def _held(self, events: Iterator[bytes]) -> "_Held":
        return _Held(events, self._free.release)


class _Held:
    """Events that give their place back when the server closes them, even if never begun."""

    def __init__(self, events: Iterator[bytes], release: Callable[[], None]) -> None:
        self._events, self._release = events, release

    def __iter__(self) -> Iterator[bytes]:
        return self._events

    def __next__(self) -> bytes:
        return next(self._events)

    def close(self) -> None:
        release, self._release = self._release, _nothing
        release()


def _nothing() -> None:
    """Released already."""


def _live(
    ctx: Context, after: int, pause: Callable[[float], None], gone: Callable[[], bool]
) -> Iterator[bytes]:
    began = spoken = ctx.clock()
    yield _retry(_RETRY_MS, after)
    while (now := ctx.clock()) < began + LIFE_S and not gone():
        found = changes.since(ctx, after)
        if found:
            after, spoken = found[-1].id, now
            yield b"".join(map(_event, found))
        elif now >= spoken + HEARTBEAT_S:
            spoken = now
            yield b": still here\n\n"
        else:
            pause(POLL_S)


def _crowded(ctx: Context, after: int) -> Iterator[bytes]:
    yield _retry(_RETRY_CROWDED_MS, after)
    yield b"".join(map(_event, changes.since(ctx, after)))


def _retry(milliseconds: int, after: int) -> bytes:
    """The first lines: when to come again; and the id, so that a stream without events keeps it."""
    return b"retry: %d\nid: %d\n\n" % (milliseconds, after)


def _event(change: Change) -> bytes:
    data = msgspec.json.encode({"id": change.id, "subject": change.subject, "at": change.at})
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (change.id, change.kind.encode(), data)
