"""Requests that wait together are run together; nothing waits for company.

A request that comes alone is run at once. What comes while a model runs, or in the same turn of
the event loop, is one batch when its turn comes. (A timer of 1 ms cost ten times the throughput.)
What waits is bounded: beyond that a client is told to come back later.
"""

import asyncio
import collections
import functools
from collections.abc import Callable
from typing import TypeVar

from shoal.agent.serving.inference import (
    Answer,
    Call,
    Inference,
    Request,
    answer_together,
    failure,
    is_slow,
)

T = TypeVar("T")
Done = Callable[[Answer], None]

#: Requests that may wait for one model; long bodies read at once; rows that share a run.
QUEUE, READING, TOGETHER = 128, 4, 256


class Batches:
    """Answers requests on the event loop's thread, slow ones on other threads. One loop's own."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._lanes: dict[str, _Lane] = {}
        self._reading = 0

    def ask(self, request: Request, done: Done, *, alone: bool) -> None:
        """Answer `request`: `done` is called once, now or later, on the loop's thread.

        alone   nobody else can be asking, so there is nothing to wait a turn for
        """
        if not request.is_long:
            self._taken(self._inference.take(request), done, alone)
        elif self._reading >= READING:
            done(failure(503, f"{READING} long bodies are being read; try again, or send bytes"))
        else:
            self._reading += 1
            _on_thread(
                functools.partial(self._inference.take, request),
                functools.partial(self._read, done),
            )

    def _read(self, done: Done, taken: Answer | Call) -> None:
        self._reading -= 1
        self._taken(taken, done, alone=False)

    def _taken(self, taken: Answer | Call, done: Done, alone: bool) -> None:
        if isinstance(taken, Answer):
            done(taken)
            return
        model = taken.serving.model
        lane = self._lanes.get(model)
        if lane is None:
            lane = self._lanes[model] = _Lane()
        lane.add(taken, done, alone)


class _Lane:
    """What waits for one model. One batch runs at a time: the next gathers meanwhile."""

    def __init__(self) -> None:
        self._waiting: collections.deque[tuple[Call, Done]] = collections.deque()
        self._busy = False

    def add(self, call: Call, done: Done, alone: bool) -> None:
        if len(self._waiting) >= QUEUE:
            model = call.serving.model
            done(failure(503, f"{QUEUE} requests wait for {model!r} already; try again"))
            return
        self._waiting.append((call, done))
        if self._busy:
            return
        self._busy = True
        if alone:
            self._run()
        else:
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        batch = self._next()
        calls = [call for call, _ in batch]
        if is_slow(calls):
            _on_thread(
                functools.partial(answer_together, calls), functools.partial(self._end, batch)
            )
        else:
            self._end(batch, answer_together(calls))

    def _next(self) -> list[tuple[Call, Done]]:
        """The oldest requests that may share a run: of one engine, of TOGETHER rows at most."""
        batch = [self._waiting.popleft()]
        engine, rows = batch[0][0].engine, len(batch[0][0].asked.rows)
        while self._waiting:
            call = self._waiting[0][0]
            rows += len(call.asked.rows)
            if call.engine is not engine or rows > TOGETHER:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _end(self, batch: list[tuple[Call, Done]], answers: list[Answer]) -> None:
        self._busy = bool(self._waiting)
        if self._busy:
            asyncio.get_running_loop().call_soon(self._run)
        for (_, done), answer in zip(batch, answers, strict=True):
            done(answer)


def _on_thread(job: Callable[[], T], then: Callable[[T], None]) -> None:
    """Run `job` on a thread of the loop's pool, `then` on the loop with its result."""
    future = asyncio.get_running_loop().run_in_executor(None, job)
    future.add_done_callback(lambda ended: None if ended.cancelled() else then(ended.result()))
