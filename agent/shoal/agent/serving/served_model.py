"""A model in service: runs requests, counts them in the open window, swaps releases.

A swap closes the window, so that no window mixes two releases (DESIGN section 8).
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np

from shoal.agent.serving.engine import Engine
from shoal.agent.serving.item_sampling import ItemSampler
from shoal.agent.serving.sequences import Sequences, Step
from shoal.agent.serving.tensor_batches import split, stack
from shoal.agent.serving.tensor_requests import TensorRequest, of_arrays
from shoal.agent.serving.window import Vitals, Window
from shoal.errors import AbsentError, InputError, ShoalError
from shoal.sketch import F32
from shoal.tensors import Array, Named
from shoal.wire import Health, WindowReport

T = TypeVar("T")
G = TypeVar("G")

#: Rows kept in memory, never on disk, for the shadow probe of the next release.
RECENT = 64


class ServedModel:
    """Runs requests for one model; a swap drops none.

    clock    Unix seconds; timer  seconds for latency
    lock     guards the window: requests run on one thread, windows are closed on another
    """

    def __init__(
        self,
        model: str,
        *,
        clock: Callable[[], float],
        timer: Callable[[], float],
        lock: AbstractContextManager[object],
    ) -> None:
        self.model = model
        self._clock, self._timer, self._lock = clock, timer, lock
        self._engine: Engine | None = None
        self._warm: Engine | None = None
        self._window: Window | None = None
        self._past, self._before = Vitals(), Vitals()
        self._recent: F32 | None = None
        self._seen = 0
        self._running: dict[object, tuple[Engine, float]] = {}
        self._sampler = ItemSampler()
        self.sequences = Sequences()

    @property
    def engine(self) -> Engine | None:
        return self._engine

    @property
    def warm(self) -> Engine | None:
        """The previous engine, kept loaded until it is retired."""
        return self._warm

    def infer(self, rows: F32, truth: F32 | None = None, *, raw: bool = False) -> F32:
        """Outputs float32 (n, C) of rows float32 (n, F).

        truth   (n,) true class index or value, where it is known already
        raw     rows are in the plant's units and go through the release's pipeline first

        Raises AbsentError when nothing serves, InputError for rows that do not fit (NaN is
        missing, and refused by column), ModelError when the runtime fails.
        """
        engine = self._engine
        if engine is None:
            raise AbsentError("release serving", self.model, "roll one out to this device")
        if raw and engine.raw is not None:
            engine.check_shape(rows)
            rows = engine.raw.table(rows)
        return self._infer(engine, rows, truth)

    def infer_batch(self, engine: Engine, requests: Sequence[F32]) -> list[F32 | ShoalError]:
        """Outputs of several requests, float32 (n, F) each, in one run of `engine`.

        One result or error for each. When the run fails the requests are run one by one, so that
        one bad request fails no other.
        """
        if len(requests) > 1:
            try:
                return self._run_batch(engine, requests)
            except ShoalError:
                pass
        return [self._result(engine, rows) for rows in requests]

    def infer_tensors(
        self, feeds: Named, outputs: Sequence[str] = (), step: Step | None = None
    ) -> dict[str, Array]:
        """Outputs by name (all, or the named ones) of inputs by name.

        step   of a sequence whose states are kept here; None: the states are inputs and outputs

        Raises AbsentError when nothing serves, InputError for inputs that do not fit, ModelError
        when the runtime fails, ConflictError for a sequence that cannot go on.
        """
        engine = self._engine
        if engine is None:
            raise AbsentError("release serving", self.model, "roll one out to this device")
        engine = self.engine_for(step, engine)
        try:
            request = of_arrays(engine, feeds, outputs, step)
        except InputError:
            self.count_error()
            raise
        if engine.takes_rows:
            return {engine.manifest.output: self._infer(engine, feeds[engine.manifest.input])}
        outputs_ = self._infer_tensors(engine, request)
        self.look()
        return outputs_

    def infer_requests(
        self, engine: Engine, requests: Sequence[TensorRequest]
    ) -> list[dict[str, Array] | ShoalError]:
        """Outputs by name of several requests that join, in one run of `engine`.

        One result or error for each. When the run fails the requests are run one by one. The caller
        answers them, and calls `look` then.
        """
        if len(requests) > 1:
            try:
                return self._run_joined(engine, requests)
            except ShoalError:
                pass
        return [self._tensor_result(engine, request) for request in requests]

    @property
    def has_items_to_look_at(self) -> bool:
        return self._sampler.has_waiting

    def look(self) -> None:
        """Sketch the items that were chosen of answered requests; never longer than a few items."""
        sampler = self._sampler
        while (chosen := sampler.take()) is not None:
            start, engine = self._timer(), chosen.engine
            statistics = engine.statistics
            if statistics is None:
                continue
            rows = [statistics.of(chosen.feeds, chosen.outputs, item) for item in chosen.items]
            took = self._timer() - start
            with self._lock:
                sampler.count(len(rows), took)
                window = self._window
                if window is None or window.release != engine.manifest.release:
                    continue
                for row in filter(None, rows):
                    window.record_statistics(*row)

    def engine_for(self, step: Step | None, engine: Engine) -> Engine:
        """The engine of a request: that of its sequence, where one is open, or `engine`."""
        if step is None:
            return engine
        with self._lock:
            return self.sequences.engine_of(step, engine)

    def self_test(self) -> None:
        """Run something that fits through the current engine, uncounted; ModelError: it failed."""
        engine = self._engine
        if engine is not None:
            engine.test()

    def count_error(self) -> None:
        """Count a request that failed before it ran."""
        with self._lock:
            if self._window is not None:
                self._window.record_error()

    def swap(self, engine: Engine | None, health: Health) -> WindowReport | None:
        """Serve `engine` (None: nothing) from the next request on; the open window's report.

        The old engine stays warm. In-flight requests keep the engine they began with.
        """
        now_s = self._clock()
        with self._lock:
            closed = self._window
            if self._warm is not None and self._warm is not engine:
                self.sequences.close(self._warm)
            self._warm, self._engine = self._engine, engine
            self._window = Window(engine, now_s) if engine else None
            self._sampler = ItemSampler()
            self._before = self._past + (closed.vitals if closed else Vitals())
            self._past, self._recent = Vitals(), self._recent_for(engine)
        return closed.close(now_s, health) if closed and closed.requests else None

    def retire(self) -> None:
        """Release the warm engine, and end the sequences that are still on it."""
        with self._lock:
            if self._warm is not None:
                self.sequences.close(self._warm)
            self._warm = None

    def collect(self, health: Health) -> WindowReport | None:
        """Close the open window and begin the next; None when nothing serves."""
        now_s = self._clock()
        with self._lock:
            closed, engine = self._window, self._engine
            self.sequences.expire(self._timer())
            if closed is None or engine is None:
                return None
            self._past = self._past + closed.vitals
            self._sampler.begin_window(closed.rows)
            self._window = Window(engine, now_s)
        return closed.close(now_s, health)

    @property
    def vitals(self) -> Vitals:
        """Counters since the last swap."""
        with self._lock:
            now = self._window.vitals if self._window else Vitals()
            return self._past + now + Vitals(longest_s=self._longest_s())

    @property
    def before(self) -> Vitals:
        """Counters of the previous engine, up to the last swap."""
        return self._before

    def recent(self) -> F32 | None:
        """Up to RECENT of the last rows, (n, F); None when there were none."""
        with self._lock:
            kept, seen = self._recent, self._seen
            return None if kept is None or not seen else kept[: min(seen, RECENT)].copy()

    def _infer(self, engine: Engine, rows: F32, truth: F32 | None = None) -> F32:
        start = self._timer()
        try:
            engine.check(rows)
            outputs = self._run(engine, start, engine.session.run, rows)
        except ShoalError:
            self.count_error()
            raise
        took = self._timer() - start
        with self._lock:
            self._record(engine, rows, outputs, took, truth)
        return outputs

    def _run(self, engine: Engine, start: float, run: Callable[[G], T], given: G) -> T:
        """Run the session; registered while it runs, so that a model that hangs shows in vitals."""
        ticket = object()
        self._running[ticket] = engine, start
        try:
            return run(given)
        finally:
            del self._running[ticket]

    def _longest_s(self) -> float:
        starts = [
            start for engine, start in tuple(self._running.values()) if engine is self._engine
        ]
        return self._timer() - min(starts) if starts else 0.0

    def _result(self, engine: Engine, rows: F32) -> F32 | ShoalError:
        try:
            return self._infer(engine, rows)
        except ShoalError as error:
            return error

    def _run_batch(self, engine: Engine, requests: Sequence[F32]) -> list[F32 | ShoalError]:
        batch = np.concatenate(requests)
        engine.check(batch)
        start = self._timer()
        outputs = self._run(engine, start, engine.session.run, batch)
        took = self._timer() - start
        with self._lock:
            self._record(engine, batch, outputs, took, None, len(requests))
        results, at = list[F32 | ShoalError](), 0
        for rows in requests:
            results.append(outputs[at : at + len(rows)])
            at += len(rows)
        return results

    def _tensor_result(
        self, engine: Engine, request: TensorRequest
    ) -> dict[str, Array] | ShoalError:
        try:
            return self._infer_tensors(engine, request)
        except ShoalError as error:
            return error

    def _infer_tensors(self, engine: Engine, request: TensorRequest) -> dict[str, Array]:
        start = self._timer()
        try:
            if request.step is None:
                outputs = self._run_named(engine, request.feeds, request.names, start)
            else:
                outputs = self._run_step(engine, request, request.step, start)
        except ShoalError:
            self.count_error()
            raise
        took = self._timer() - start
        self._record_items(engine, request.feeds, outputs, request.items, took, 1)
        return outputs

    def _run_named(
        self, engine: Engine, feeds: Named, names: Sequence[str], start: float
    ) -> dict[str, Array]:
        run = functools.partial(engine.session.run_tensors, outputs=names)
        found = self._run(engine, start, run, feeds)
        return dict(zip(names, found, strict=True))

    def _run_step(
        self, engine: Engine, request: TensorRequest, step: Step, start: float
    ) -> dict[str, Array]:
        """Run one step of a sequence, with the states that are kept here."""
        states, timer = engine.signature.states, self._timer
        with self._lock:
            before = self.sequences.begin(step, engine, start)
        try:
            names = list(dict.fromkeys([*request.names, *(state.given for state in states)]))
            outputs = self._run_named(engine, {**request.feeds, **before}, names, start)
        except BaseException:
            with self._lock:
                self.sequences.abandon(step)
            raise
        after = {state.taken: outputs[state.given] for state in states}
        with self._lock:
            loaded = engine in (self._engine, self._warm)
            self.sequences.keep(step, engine, after, timer(), loaded=loaded)
        return {name: outputs[name] for name in request.names}

    def _run_joined(
        self, engine: Engine, requests: Sequence[TensorRequest]
    ) -> list[dict[str, Array] | ShoalError]:
        counts = [request.items for request in requests]
        names = list(dict.fromkeys(name for request in requests for name in request.names))
        start = self._timer()
        together = stack(engine.signature, [request.feeds for request in requests])
        outputs = self._run_named(engine, together, names, start)
        took = self._timer() - start
        parts = split(engine.signature, outputs, counts)
        self._record_items(engine, together, outputs, sum(counts), took, len(requests))
        return [
            {name: part[name] for name in request.names}
            for request, part in zip(requests, parts, strict=True)
        ]

    def _record_items(
        self,
        engine: Engine,
        feeds: Named,
        outputs: Named,
        items: int,
        took: float,
        requests: int,
    ) -> None:
        with self._lock:
            window = self._window
            if window is not None and window.release == engine.manifest.release:
                window.record_items(items, took, requests)
                if engine.statistics is not None:
                    self._sampler.offer(engine, feeds, outputs, items, took)

    def _record(
        self,
        engine: Engine,
        rows: F32,
        outputs: F32,
        took: float,
        truth: F32 | None,
        requests: int = 1,
    ) -> None:
        window = self._window
        if window is None or window.release != engine.manifest.release:
            return  # swapped meanwhile: the old window is closed and gone
        window.record(rows, outputs, took, requests)
        if truth is not None:
            window.record_labels(outputs, truth)
        if self._recent is not None:
            self._recent[self._seen % RECENT] = rows[-1]
            self._seen += 1

    def _recent_for(self, engine: Engine | None) -> F32 | None:
        """The buffer of recent rows; a new one when `engine` reads another number of features."""
        if engine is None or not engine.takes_rows:
            return None
        if self._recent is not None and self._recent.shape[1] == engine.features:
            return self._recent
        self._seen = 0
        return np.empty((RECENT, engine.features), np.float32)
