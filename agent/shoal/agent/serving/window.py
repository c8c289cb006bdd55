"""The open window of a model in service: sketches, latency, errors, labels, until it closes.

A swap closes it, so that no window mixes two releases (DESIGN section 8).
"""

from collections.abc import Callable

import numpy as np

from shoal.agent.serving.vitals import Vitals
from shoal.errors import SketchError
from shoal.outputs import PREDICTION, predicted, score
from shoal.sketch import BUFFER_ROWS, F32, Latency, References, Sketch
from shoal.wire import Health, WindowReport

#: Longest span that is told, in seconds; no fleet's pace is slower.
LONGEST_S = 86_400.0
#: An output this far outside [0, 1] is no probability, whatever its rounding.
_SLACK = 1e-3


class Window:
    """What one release saw in one span of time.

    release, model   that serve
    references       of the release
    slow_s           the profile's p99 budget, in seconds
    threshold        decision threshold of a two-class model; None for any other
    regression       outputs are values, not probabilities
    """

    def __init__(
        self,
        *,
        model: str,
        release: str,
        references: References,
        outputs: int,
        start_s: float,
        slow_s: float,
        threshold: float | None = None,
        regression: bool = False,
    ) -> None:
        self.model, self.release, self.references = model, release, references
        self.start_s, self.slow_s = start_s, slow_s
        self.threshold, self.regression = threshold, regression
        self.requests = self.errors = self.slow = self.rows = self.odd = 0
        self.labelled = self.correct = 0
        self.latency = Latency()
        self._inputs, self._outputs = Sketch(references.inputs), Sketch(references.outputs)
        self._named = [f.name for f in references.outputs.features]
        self._said = np.empty((BUFFER_ROWS, outputs), np.float32)
        self._filled = 0

    def record(self, rows: F32, said: F32, seconds: float, requests: int = 1) -> None:
        """Count answered requests: rows (n, F) in, `said` (n, C) out, in `seconds` together.

        Each is counted with its share of the run: company must not make a release look slow.
        """
        self.requests += requests
        self.rows += len(rows)
        each = seconds / requests
        self.latency.add(each, requests)
        if each > self.slow_s:
            self.slow += requests
        self._inputs.update(rows)
        n, at = len(said), self._filled
        if at + n > BUFFER_ROWS:
            self._flush()
            at = 0
            if n > BUFFER_ROWS:
                self._count(said)
                return
        self._said[at : at + n] = said
        self._filled = at + n

    def fail(self) -> None:
        """Count one request that got an error instead of an answer."""
        self.requests += 1
        self.errors += 1

    def judge(self, said: F32, truth: F32) -> None:
        """Count answers `said` (n, C) whose true class index or value `truth` (n,) is known.

        A regression has no right and wrong; its labels are only counted.
        """
        self.labelled += len(truth)
        if not self.regression:
            self.correct += int((predicted(said, self.threshold) == truth).sum())

    @property
    def vitals(self) -> Vitals:
        self._flush()
        return Vitals(
            requests=self.requests, errors=self.errors, slow=self.slow, rows=self.rows, odd=self.odd
        )

    def close(self, now_s: float, health: Health) -> WindowReport:
        """The report of what was seen until `now_s`; whose it is, is for the outbox to fill in.

        A clock that was set meanwhile does not say when it began: it is told as a moment.
        """
        self._flush()
        began_s = self.start_s if 0 <= now_s - self.start_s <= LONGEST_S else now_s
        return WindowReport(
            device="",
            boot="",
            seq=0,
            sent_s=max(0.0, now_s),
            model=self.model,
            release=self.release,
            reference=self.references.id,
            window_start_s=max(0.0, began_s),
            window_s=max(0.0, now_s - began_s),
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
            self._count(self._said[:filled])

    def _count(self, said: F32) -> None:
        strange = ~np.isfinite(said).all(1)
        if not self.regression:
            strange |= ((said < -_SLACK) | (said > 1 + _SLACK)).any(1)
        self.odd += int(strange.sum())
        self._outputs.update(np.stack([self._column(name, said) for name in self._named], axis=1))

    def _column(self, name: str, said: F32) -> F32:
        return predicted(said, self.threshold) if name == PREDICTION else score(said)


def merge(
    older: WindowReport, newer: WindowReport, sketches: Callable[[bytes, bytes], bytes]
) -> WindowReport:
    """One report for two adjacent ones of the same release, as if the window had been longer.

    sketches   merges the bytes of two sketches of one reference

    Raises SketchError when they are not of one model, release and reference.
    """
    same = ("model", "release", "reference")
    if any(getattr(older, field) != getattr(newer, field) for field in same):
        raise SketchError(f"windows of {older.release} and {newer.release} do not merge")
    latency = Latency(older.latency)
    latency.merge(newer.latency)
    end_s = newer.window_start_s + newer.window_s
    counts = ("rows", "errors", "slow", "labelled", "correct", "merged")
    return WindowReport(
        device=newer.device,
        boot=newer.boot,
        seq=newer.seq,
        sent_s=newer.sent_s,
        model=newer.model,
        release=newer.release,
        reference=newer.reference,
        window_start_s=older.window_start_s,
        window_s=max(0.0, end_s - older.window_start_s),
        latency=latency.trimmed(),
        inputs=_either(older.inputs, newer.inputs, sketches),
        outputs=_either(older.outputs, newer.outputs, sketches),
        health=newer.health,
        **{field: getattr(older, field) + getattr(newer, field) for field in counts},
    )


def _either(older: bytes, newer: bytes, sketches: Callable[[bytes, bytes], bytes]) -> bytes:
    return sketches(older, newer) if older and newer else older or newer
