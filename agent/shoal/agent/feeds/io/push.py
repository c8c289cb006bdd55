"""Source `push`: readings posted to the local endpoint, POST /sources/NAME."""

import queue
import threading
from typing import Annotated, Literal

import msgspec

from shoal.agent.feeds.frames import FeedHealth, Frame, Quality, frame_of
from shoal.agent.feeds.io.interface import Context, Emit, FeedSettings, Tally
from shoal.errors import ConflictError, InputError
from shoal.validation_errors import decode_errors_as

POLL_S = 0.2
_QUALITIES = {"good": Quality.GOOD, "uncertain": Quality.UNCERTAIN, "bad": Quality.BAD}


class PushSettings(FeedSettings, frozen=True, kw_only=True):
    """Readings posted to the agent's endpoint, at /sources/NAME.

    queue  frames that may wait; beyond it the response is 503
    """

    queue: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1_000


class PushedFrame(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One frame of a request's body.

    values     name -> number; null for a missing value
    time_s     Unix seconds of the reading; by default the time of arrival
    asset      what was measured
    qualities  name -> "good", "uncertain" or "bad"; by default good
    label      the true class or value, where it is known already
    """

    values: dict[str, float | bool | None]
    time_s: Annotated[float, msgspec.Meta(ge=0, le=2**33)] | None = None
    asset: str = ""
    qualities: dict[str, Literal["good", "uncertain", "bad"]] = {}
    label: str | None = None


class Push:
    """Takes frames on any thread, and emits them on its own."""

    Settings = PushSettings

    def __init__(self, settings: PushSettings, context: Context, emit: Emit) -> None:
        self._context, self._emit, self._tally = context, emit, Tally(context)
        self._queue: queue.Queue[Frame] = queue.Queue(settings.queue)
        self._lock = threading.Lock()

    def take(self, body: bytes) -> int:
        """Queue the frames of a request's body, one object or a list; their number.

        Raises InputError for an unreadable body, ConflictError for a full queue: nothing is queued.
        """
        name, hint = self._context.name, 'post {"values": {"NAME": 1.5}}'
        with decode_errors_as(lambda error: InputError(f"source {name}: {error}", hint)):
            posted = msgspec.json.decode(body, type=PushedFrame | list[PushedFrame])
        frames = [self._frame(one) for one in (posted if isinstance(posted, list) else [posted])]
        with self._lock:
            if self._queue.qsize() + len(frames) > self._queue.maxsize:
                self._tally.dropped += len(frames)
                raise ConflictError(f"source {name} is behind", "try again, more slowly")
            for frame in frames:
                self._queue.put(frame)
        return len(frames)

    def run(self, stopping: threading.Event) -> None:
        """Emit queued frames, until `stopping`."""
        self._tally.came_up()
        while not stopping.is_set():
            try:
                frame = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                continue
            self._tally.gave(frame)
            self._emit(frame)
        self._tally.went_down("stopped")

    def health(self) -> FeedHealth:
        """State and counters."""
        self._tally.waiting = self._queue.qsize()
        return self._tally.health()

    def _frame(self, posted: PushedFrame) -> Frame:
        values = {n: float("nan") if v is None else float(v) for n, v in posted.values.items()}
        qualities = {name: _QUALITIES[word] for name, word in posted.qualities.items()}
        qualities |= {name: Quality.BAD for name, v in posted.values.items() if v is None}
        self._tally.bad += sum(quality is Quality.BAD for quality in qualities.values())
        time_s = self._context.wall() if posted.time_s is None else posted.time_s
        frame = frame_of(time_s, values, asset=posted.asset, qualities=qualities)
        return frame._replace(labels=None if posted.label is None else [posted.label])
