"""Window: what one release did in one stretch of time; Vitals: its counters alone."""

import msgspec
import numpy as np

from shoal.agent.serving.engine import Engine
from shoal.outputs import PREDICTION, predicted, score
from shoal.sketch import BUFFER_ROWS, F32, Latency, Sketch
from shoal.wire import Health, WindowReport

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
    """Sketches, latency, errors and labels of one release from `start_s` (Unix seconds) on.

    Of a release of tensors rows are its items, and the sketches hold statistics of some of them.
    """

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
        self.requests += requests  # as record_items: a call for each row is a share of its time
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

    def record_items(self, items: int, seconds: float, requests: int = 1) -> None:
        """Count served requests of a release of tensors."""
        self.requests += requests
        self.rows += items
        each = seconds / requests
        self.latency.add(each, requests)
        if each > self._engine.slow_s:
            self.slow += requests

    def record_statistics(self, inputs: F32, outputs: F32) -> None:
        """Sketch one item of a release of tensors: its statistics, float32 (F,) each."""
        self._inputs.update(inputs)
        self._outputs.update(outputs)

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
        is_sketched = self._inputs.rows > 0
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
            inputs=self._inputs.to_bytes() if is_sketched else b"",
            outputs=self._outputs.to_bytes() if is_sketched else b"",
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
