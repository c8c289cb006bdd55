"""Adaptive batching: requests that are waiting run as one batch; no request waits for a timer.

A single request runs at once. Requests that arrive while a model runs, or in the same turn of the
event loop, are the next batch. (A timer of 1 ms cost ten times the throughput.) The queue is
bounded: beyond it a client gets 503.
"""

import asyncio
import collections
import functools
from collections.abc import Callable
from typing import TypeVar

from shoal.agent.serving.inference import Call, Inference, is_slow, run_batch
from shoal.agent.serving.routes import Request, Response, error_response

T = TypeVar("T")
Done = Callable[[Response], None]

#: Requests that may wait for one model; long bodies parsed at once.
QUEUE, PARSING = 128, 4


class AdaptiveBatcher:
    """Runs requests on the event loop's thread, slow ones on other threads. One for each loop."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._queues: dict[str, _ModelQueue] = {}
        self._parsing = 0

    def submit(self, request: Request, done: Done, *, is_only_client: bool) -> None:
        """Run `request`; `done` is called once, now or later, on the loop's thread.

        is_only_client   no other connection is open, so it runs in this turn of the event loop
        """
        if not request.is_long:
            self._enqueue(self._inference.accept(request), done, is_only_client)
        elif self._parsing >= PARSING:
            message = f"{PARSING} long bodies are being parsed; try again, or send bytes"
            done(error_response(503, message))
        else:
            self._parsing += 1
            _on_thread(
                functools.partial(self._inference.accept, request),
                functools.partial(self._parsed, done),
            )

    def _parsed(self, done: Done, accepted: Response | Call) -> None:
        self._parsing -= 1
        self._enqueue(accepted, done, is_only_client=False)

    def _enqueue(self, accepted: Response | Call, done: Done, is_only_client: bool) -> None:
        if isinstance(accepted, Response):
            done(accepted)
            return
        model = accepted.serving.model
        queue = self._queues.get(model)
        if queue is None:
            queue = self._queues[model] = _ModelQueue()
        queue.add(accepted, done, is_only_client)


class _ModelQueue:
    """Requests waiting for one model. One batch runs at a time; the next is collected meanwhile."""

    def __init__(self) -> None:
        self._waiting: collections.deque[tuple[Call, Done]] = collections.deque()
        self._busy = False

    def add(self, call: Call, done: Done, is_only_client: bool) -> None:
        if len(self._waiting) >= QUEUE:
            model = call.serving.model
            done(error_response(503, f"{QUEUE} requests wait for {model!r} already; try again"))
            return
        self._waiting.append((call, done))
        if self._busy:
            return
        self._busy = True
        if is_only_client:
            self._run()
        else:
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        batch = self._next()
        calls = [call for call, _ in batch]
        if is_slow(calls):
            _on_thread(functools.partial(run_batch, calls), functools.partial(self._end, batch))
        else:
            self._end(batch, run_batch(calls))

    def _next(self) -> list[tuple[Call, Done]]:
        """The next batch: the oldest requests, of one engine, as many as may run as one."""
        batch = [self._waiting.popleft()]
        first = batch[0][0]
        weight = first.input.weight
        while self._waiting:
            call = self._waiting[0][0]
            weight += call.input.weight
            if call.engine is not first.engine or weight > first.input.most:
                break
            if not first.input.joins(call.input):
                break
            batch.append(self._waiting.popleft())
        return batch

    def _end(self, batch: list[tuple[Call, Done]], responses: list[Response]) -> None:
        self._busy = bool(self._waiting)
        if self._busy:
            asyncio.get_running_loop().call_soon(self._run)
        for (_, done), response in zip(batch, responses, strict=True):
            done(response)
        serving = batch[0][0].serving
        if serving.has_items_to_look_at:  # once these are answered, and behind who waits
            if is_slow([call for call, _ in batch]):
                _on_thread(serving.look, _nothing)
            else:
                asyncio.get_running_loop().call_soon(serving.look)


def _nothing(_: None) -> None:
    """Nothing follows."""


def _on_thread(job: Callable[[], T], then: Callable[[T], None]) -> None:
    """Run `job` on a thread of the loop's pool, `then` on the loop with its result."""
    future = asyncio.get_running_loop().run_in_executor(None, job)
    future.add_done_callback(lambda ended: None if ended.cancelled() else then(ended.result()))
