"""One model in service: the session that answers, what it saw, and the one to fall back on."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from shoal.agent.installed.record import Slot
from shoal.agent.serving.vitals import Vitals
from shoal.agent.serving.window import Window
from shoal.errors import AbsentError, InputError, ShoalError
from shoal.manifest import Manifest
from shoal.pipeline import IDENTITY, RAW
from shoal.preparation import Conversion
from shoal.sketch import F32, References
from shoal.wire import Health, WindowReport

#: Rows kept in memory, never on disk, for the shadow probe of the next release.
RECENT = 64


class Session(Protocol):
    """A loaded model. run: float32 (n, F) -> float32 (n, C); InputError, ModelError."""

    def run(self, rows: F32) -> F32: ...


class Engine:
    """A loaded release, ready to serve.

    slot_s   one-row latency above which a request is slow, in seconds
    """

    def __init__(
        self,
        *,
        slot: Slot,
        manifest: Manifest,
        references: References,
        session: Session,
        slow_s: float,
    ) -> None:
        self.slot, self.manifest, self.references = slot, manifest, references
        self.session, self.slow_s = session, slow_s
        self.features = len(manifest.features)
        self.regression = manifest.task == "regression"
        self.outputs = max(1, len(manifest.labels))

    @functools.cached_property
    def raw(self) -> Conversion | None:
        """What makes the model's rows of rows in the plant's units; None where they are the same.

        A row is whole: with a stretch all its samples, oldest first. There is no "last" value.
        """
        line = self.manifest.pipeline
        if line == IDENTITY or self.manifest.input == RAW:
            return None
        return Conversion(line, [f.name for f in self.manifest.features])

    def window(self, now_s: float) -> Window:
        """A new window for this release."""
        two = len(self.manifest.labels) == 2
        return Window(
            model=self.manifest.model,
            release=self.manifest.release,
            references=self.references,
            outputs=self.outputs,
            start_s=now_s,
            slow_s=self.slow_s,
            threshold=self.manifest.threshold if two else None,
            regression=self.regression,
        )


class Serving:
    """Answers requests for one model; a swap drops none.

    clock    Unix seconds; timer  seconds for latency
    lock     guards the window: requests come on one thread, closing on another
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
        """The engine that served before, kept loaded until it is retired."""
        return self._warm

    def infer(self, rows: F32, truth: F32 | None = None, *, raw: bool = False) -> F32:
        """Answer float32 (n, F) with float32 (n, C).

        truth   (n,) true class index or value, where it is known already
        raw     rows are in the plant's units: the release's pipeline makes the model's of them

        Raises AbsentError when nothing serves, InputError for rows that do not fit (NaN is
        missing, and refused by column), ModelError when the runtime fails.
        """
        engine = self._engine
        if engine is None:
            raise AbsentError("release serving", self.model, "roll one out to this device")
        if raw and engine.raw is not None:
            _check_shape(engine, rows)
            rows = engine.raw.table(rows)
        return self._infer(engine, rows, truth)

    def infer_together(self, engine: Engine, many: Sequence[F32]) -> list[F32 | ShoalError]:
        """Answer several requests, float32 (n, F) each, in one run of the `engine` they began with.

        An answer, or what is wrong with it, for each. What fails together is run one by one, so
        that no request fails for its neighbour's sake.
        """
        if len(many) > 1:
            try:
                return self._run_together(engine, many)
            except ShoalError:
                pass
        return [self._caught(engine, rows) for rows in many]

    def try_out(self) -> None:
        """Let what serves answer a row of zeros, uncounted; ModelError when it cannot."""
        engine = self._engine
        if engine is not None:
            engine.session.run(np.zeros((1, engine.features), np.float32))

    def refuse(self) -> None:
        """Count a request that could not even be read."""
        with self._lock:
            if self._window is not None:
                self._window.fail()

    def swap(self, engine: Engine | None, health: Health) -> WindowReport | None:
        """Serve `engine` (None: nothing) from the next request on; the open window's report.

        The old engine stays warm. In-flight requests keep the one they began with.
        """
        now_s = self._clock()
        with self._lock:
            closed = self._window
            self._warm, self._engine = self._engine, engine
            self._window = engine.window(now_s) if engine else None
            self._before = self._past + (closed.vitals if closed else Vitals())
            self._past, self._recent = Vitals(), self._kept(engine)
        return closed.close(now_s, health) if closed and closed.requests else None

    def retire(self) -> None:
        """Let go of the warm engine."""
        self._warm = None

    def collect(self, health: Health) -> WindowReport | None:
        """Close the open window and begin the next; None when nothing serves."""
        now_s = self._clock()
        with self._lock:
            closed, engine = self._window, self._engine
            if closed is None or engine is None:
                return None
            self._past = self._past + closed.vitals
            self._window = engine.window(now_s)
        return closed.close(now_s, health)

    @property
    def vitals(self) -> Vitals:
        """What happened since the last swap."""
        with self._lock:
            now = self._window.vitals if self._window else Vitals()
            return self._past + now + Vitals(longest_s=self._longest_s())

    @property
    def before(self) -> Vitals:
        """What the engine before the last swap had done."""
        return self._before

    def recent(self) -> F32 | None:
        """Up to RECENT of the last rows, (n, F); None when there were none."""
        with self._lock:
            kept, seen = self._recent, self._seen
            return None if kept is None or not seen else kept[: min(seen, RECENT)].copy()

    def _infer(self, engine: Engine, rows: F32, truth: F32 | None = None) -> F32:
        start = self._timer()
        try:
            _check(engine, rows)
            said = self._run(engine, rows, start)
        except ShoalError:
            self.refuse()
            raise
        took = self._timer() - start
        with self._lock:
            self._note(engine, rows, said, took, truth)
        return said

    def _run(self, engine: Engine, rows: F32, start: float) -> F32:
        """Noted while it lasts: of a model that never answers nothing else would tell."""
        ticket = object()
        self._running[ticket] = engine, start
        try:
            return engine.session.run(rows)
        finally:
            del self._running[ticket]

    def _longest_s(self) -> float:
        began = [start for engine, start in tuple(self._running.values()) if engine is self._engine]
        return self._timer() - min(began) if began else 0.0

    def _caught(self, engine: Engine, rows: F32) -> F32 | ShoalError:
        try:
            return self._infer(engine, rows)
        except ShoalError as error:
            return error

    def _run_together(self, engine: Engine, many: Sequence[F32]) -> list[F32 | ShoalError]:
        whole = np.concatenate(many)
        _check(engine, whole)
        start = self._timer()
        said = self._run(engine, whole, start)
        took = self._timer() - start
        with self._lock:
            self._note(engine, whole, said, took, None, len(many))
        answers, at = list[F32 | ShoalError](), 0
        for rows in many:
            answers.append(said[at : at + len(rows)])
            at += len(rows)
        return answers

    def _note(
        self,
        engine: Engine,
        rows: F32,
        said: F32,
        took: float,
        truth: F32 | None,
        requests: int = 1,
    ) -> None:
        window = self._window
        if window is None or window.release != engine.manifest.release:
            return  # swapped meanwhile: the old window is closed and gone
        window.record(rows, said, took, requests)
        if truth is not None:
            window.judge(said, truth)
        if self._recent is not None:
            self._recent[self._seen % RECENT] = rows[-1]
            self._seen += 1

    def _kept(self, engine: Engine | None) -> F32 | None:
        """The recent rows, unless the new release reads another number of features."""
        if engine is None:
            return None
        if self._recent is not None and self._recent.shape[1] == engine.features:
            return self._recent
        self._seen = 0
        return np.empty((RECENT, engine.features), np.float32)


def _check_shape(engine: Engine, rows: F32) -> None:
    if rows.ndim != 2 or rows.shape[1] != engine.features:
        raise InputError(
            f"{engine.manifest.release}: input of shape {list(rows.shape)}, "
            f"[rows, {engine.features}] is needed",
            "its columns are: " + ", ".join(f.name for f in engine.manifest.features[:20]),
        )


def _check(engine: Engine, rows: F32) -> None:
    _check_shape(engine, rows)
    if not np.isfinite(np.add.reduce(rows, axis=None)) and not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise InputError(
            f"{engine.manifest.release}: {engine.manifest.features[column].name!r} is missing "
            f"(NaN or infinite) in row {row}",
            "this model takes no missing values: fill it in, or leave the row out",
        )
