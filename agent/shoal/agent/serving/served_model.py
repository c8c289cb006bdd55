"""A model in service: runs requests, counts them in the open window, swaps releases.

A swap closes the window, so that no window mixes two releases (DESIGN section 8).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import msgspec
import numpy as np

from shoal.agent.serving.engine import Engine
from shoal.errors import AbsentError, ShoalError
from shoal.outputs import PREDICTION, predicted, score
from shoal.sketch import BUFFER_ROWS, F32, Latency, Sketch
from shoal.wire import Health, WindowReport

#: Rows kept in memory, never on disk, for the shadow probe of the next release.
RECENT = 64
#: Longest window that is reported, in seconds; no fleet's window is longer.
LONGEST_S = 86_400.0
#: An output this far outside [0, 1] is no probability, whatever its rounding.
_SLACK = 1e-3


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of a model in service over some time.

    errors, slow   requests that failed, and that took longer than the profile's p99 budget
    odd            rows whose output is not finite, or is no probability
    longest_s      age of the oldest unfinished request, seconds
    """

    requests: int = 0
    errors: int = 0
    slow: int = 0
    rows: int = 0
    odd: int = 0
    longest_s: float = 0.0

    def __add__(self, other: "Vitals") -> "Vitals":
        return Vitals(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            slow=self.slow + other.slow,
            rows=self.rows + other.rows,
            odd=self.odd + other.odd,
            longest_s=max(self.longest_s, other.longest_s),
        )


class Window:
    """Sketches, latency, errors and labels of one release from `start_s` (Unix seconds) on."""

    def __init__(self, engine: Engine, start_s: float) -> None:
        manifest = engine.manifest
        self.release, self._engine, self._start_s = manifest.release, engine, start_s
        self._threshold = manifest.threshold if len(manifest.labels) == 2 else None
        self.requests = self.errors = self.slow = self.rows = self.odd = 0
        self.labelled = self.correct = 0
        self.latency = Latency()
        references = engine.references
        self._inputs, self._outputs = Sketch(references.inputs), Sketch(references.outputs)
        self._columns = [f.name for f in references.outputs.features]
        self._buffer = np.empty((BUFFER_ROWS, engine.outputs), np.float32)
        self._filled = 0

    def record(self, rows: F32, outputs: F32, seconds: float, requests: int = 1) -> None:
        """Count served requests: rows (n, F), their outputs (n, C), `seconds` for all of them.

        Each request counts with its share of the run: batching must not make a release look slow.
        """
        self.requests += requests
        self.rows += len(rows)
        each = seconds / requests
        self.latency.add(each, requests)
        if each > self._engine.slow_s:
            self.slow += requests
        self._inputs.update(rows)
        n, at = len(outputs), self._filled
        if at + n > BUFFER_ROWS:
            self._flush()
            at = 0
            if n > BUFFER_ROWS:
                self._count(outputs)
                return
        self._buffer[at : at + n] = outputs
        self._filled = at + n

    def record_error(self) -> None:
        """Count one request that failed."""
        self.requests += 1
        self.errors += 1

    def record_labels(self, outputs: F32, truth: F32) -> None:
        """Count outputs (n, C) with a known true class index or value, truth (n,).

        Labels of a regression are counted, not compared.
        """
        self.labelled += len(truth)
        if not self._engine.regression:
            self.correct += int((predicted(outputs, self._threshold) == truth).sum())

    @property
    def vitals(self) -> Vitals:
        self._flush()
        return Vitals(
            requests=self.requests, errors=self.errors, slow=self.slow, rows=self.rows, odd=self.odd
        )

    def close(self, now_s: float, health: Health) -> WindowReport:
        """The report up to `now_s`; the outbox fills in device, boot and seq.

        After a clock change the start is unknown: the report then has length 0.
        """
        self._flush()
        start_s = self._start_s if 0 <= now_s - self._start_s <= LONGEST_S else now_s
        return WindowReport(
            device="",
            boot="",
            seq=0,
            sent_s=max(0.0, now_s),
            model=self._engine.manifest.model,
            release=self.release,
            reference=self._engine.references.id,
            window_start_s=max(0.0, start_s),
            window_s=max(0.0, now_s - start_s),
            rows=self.rows,
            errors=self.errors,
            slow=self.slow,
            latency=self.latency.trimmed(),
            inputs=self._inputs.to_bytes() if self.rows else b"",
            outputs=self._outputs.to_bytes() if self.rows else b"",
            labelled=self.labelled,
            correct=self.correct,
            health=health,
        )

    def _flush(self) -> None:
        filled, self._filled = self._filled, 0
        if filled:
            self._count(self._buffer[:filled])

    def _count(self, outputs: F32) -> None:
        odd = ~np.isfinite(outputs).all(1)
        if not self._engine.regression:
            odd |= ((outputs < -_SLACK) | (outputs > 1 + _SLACK)).any(1)
        self.odd += int(odd.sum())
        columns = [self._column(name, outputs) for name in self._columns]
        self._outputs.update(np.stack(columns, axis=1))

    def _column(self, name: str, outputs: F32) -> F32:
        return predicted(outputs, self._threshold) if name == PREDICTION else score(outputs)


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

    def self_test(self) -> None:
        """Run a row of zeros through the current engine, uncounted; ModelError when it fails."""
        engine = self._engine
        if engine is not None:
            engine.session.run(np.zeros((1, engine.features), np.float32))

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
            self._warm, self._engine = self._engine, engine
            self._window = Window(engine, now_s) if engine else None
            self._before = self._past + (closed.vitals if closed else Vitals())
            self._past, self._recent = Vitals(), self._recent_for(engine)
        return closed.close(now_s, health) if closed and closed.requests else None

    def retire(self) -> None:
        """Release the warm engine."""
        self._warm = None

    def collect(self, health: Health) -> WindowReport | None:
        """Close the open window and begin the next; None when nothing serves."""
        now_s = self._clock()
        with self._lock:
            closed, engine = self._window, self._engine
            if closed is None or engine is None:
                return None
            self._past = self._past + closed.vitals
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
            outputs = self._run(engine, rows, start)
        except ShoalError:
            self.count_error()
            raise
        took = self._timer() - start
        with self._lock:
            self._record(engine, rows, outputs, took, truth)
        return outputs

    def _run(self, engine: Engine, rows: F32, start: float) -> F32:
        """Run the session; registered while it runs, so that a model that hangs shows in vitals."""
        ticket = object()
        self._running[ticket] = engine, start
        try:
            return engine.session.run(rows)
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
        outputs = self._run(engine, batch, start)
        took = self._timer() - start
        with self._lock:
            self._record(engine, batch, outputs, took, None, len(requests))
        results, at = list[F32 | ShoalError](), 0
        for rows in requests:
            results.append(outputs[at : at + len(rows)])
            at += len(rows)
        return results

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
        if engine is None:
            return None
        if self._recent is not None and self._recent.shape[1] == engine.features:
            return self._recent
        self._seen = 0
        return np.empty((RECENT, engine.features), np.float32)
