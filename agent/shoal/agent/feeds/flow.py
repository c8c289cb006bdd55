"""Frames of one source: through the release's pipeline and the model, to the sinks."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from shoal.agent.feeds.frames import Frame, Prediction, Quality
from shoal.agent.host.faults import Fault
from shoal.agent.serving.engine import Engine, require_rows
from shoal.agent.serving.labels import class_indices, number
from shoal.agent.serving.served_model import ServedModel
from shoal.errors import InputError, ShoalError
from shoal.outputs import predicted
from shoal.preparation import Preparation, PreparedRows
from shoal.sketch import F32

#: Assets of one source with pipeline state (last values, stretches); the oldest is dropped.
ASSETS = 1_024
#: Collects labelled rows: the engine, rows float32 (n, F) as the model reads them, n labels.
RowCollector = Callable[[Engine, F32, Sequence[str]], None]


class Flow:
    """Runs the frames of one source; never raises. One thread calls it.

    source   its name, for faults
    model    that the source feeds; "" for every one that serves and takes rows
    serving  the served models by name
    sinks    (model or "", write) of each sink; write neither blocks nor raises
    fault    reports a frame that failed; the model's window counts it too
    rate     share of the frames to run: less than 1 while the device is throttled
    collect  takes labelled rows for federated learning
    """

    def __init__(
        self,
        source: str,
        model: str,
        *,
        serving: Callable[[], Mapping[str, ServedModel]],
        sinks: Sequence[tuple[str, Callable[[Prediction], None]]],
        fault: Callable[[Fault], None],
        rate: Callable[[], float] = lambda: 1.0,
        collect: RowCollector | None = None,
    ) -> None:
        self._rate, self._credit = rate, 1.0
        self._collect = collect
        self._source, self._model = source, model
        self._serving, self._sinks, self._fault = serving, sinks, fault
        self._prepared: dict[tuple[str, str], tuple[str, Preparation]] = {}
        self._checked: dict[str, tuple[str, tuple[str, ...]]] = {}

    def __call__(self, frame: Frame) -> int:
        """Run one frame; the number of rows that were run."""
        if frame.quality is Quality.BAD:
            return 0
        served = self._serving()
        models = [self._model] if self._model else list(served)
        return sum(self._run(served[name], frame) for name in models if name in served)

    def _run(self, serving: ServedModel, frame: Frame) -> int:
        engine = serving.engine
        if engine is None or not (engine.takes_rows or self._model):
            return 0
        try:
            ready = self._prepare(engine, frame)
        except ShoalError as error:
            serving.count_error()
            self._fault(Fault(error.code, f"source {self._source}: {error}"))
            return 0
        if not len(ready.values) or not self._is_sampled():
            return 0
        try:
            outputs = serving.infer(ready.values, truth(engine, frame.labels, ready.source_rows))
        except ShoalError as error:
            self._fault(Fault(error.code, f"source {self._source}: {error}"))
            return 0
        if self._collect is not None and frame.labels is not None:
            self._collect(engine, ready.values, [frame.labels[i] for i in ready.source_rows])
        self._write_sinks(engine, frame, outputs)
        return len(outputs)

    def _is_sampled(self) -> bool:
        """Whether this frame is in the share to run; the pipeline has seen it in any case."""
        self._credit = min(1.0, self._credit + self._rate())
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True

    def _prepare(self, engine: Engine, frame: Frame) -> PreparedRows:
        """The model's rows of a frame; InputError when a required value is missing."""
        require_rows(engine.manifest)
        self._check_names(engine, frame)
        preparation = self._preparation(engine, frame.asset)
        return preparation.rows(frame.time_s, frame.names, frame.rows)

    def _preparation(self, engine: Engine, asset: str) -> Preparation:
        """The pipeline's state for an asset; a new release starts with an empty one."""
        manifest = engine.manifest
        known = self._prepared.get((manifest.model, asset))
        if known is not None and known[0] == manifest.release:
            return known[1]
        if len(self._prepared) >= ASSETS:
            self._prepared.pop(next(iter(self._prepared)))
        made = Preparation(manifest.pipeline, [f.name for f in manifest.features])
        self._prepared[manifest.model, asset] = (manifest.release, made)
        return made

    def _check_names(self, engine: Engine, frame: Frame) -> None:
        """InputError when the frame lacks columns of the model: a wrong file or tag."""
        release = engine.manifest.release
        if not frame.names or self._checked.get(engine.manifest.model) == (release, frame.names):
            return
        inputs = engine.manifest.pipeline.inputs
        wanted = [i.source or i.name for i in inputs] or [f.name for f in engine.manifest.features]
        have = set(frame.names)
        missing = [name for name in wanted if name not in have]
        if len(missing) == len(wanted) or (missing and _refuses(engine)):
            raise InputError(
                f"no value named {', '.join(missing[:5])} for {release}",
                f"there are: {', '.join(frame.names[:10])}",
            )
        self._checked[engine.manifest.model] = (release, frame.names)

    def _write_sinks(self, engine: Engine, frame: Frame, outputs: F32) -> None:
        manifest = engine.manifest
        sinks = [sink for model, sink in self._sinks if model in ("", manifest.model)]
        if not sinks:
            return
        two = manifest.threshold if len(manifest.labels) == 2 else None
        winners = predicted(outputs, two).astype(int) if not engine.regression else None
        for row, scores in enumerate(outputs):
            prediction = Prediction(
                time_s=frame.time_s,
                asset=frame.asset,
                model=manifest.model,
                release=manifest.release,
                quality=frame.quality,
                labels=tuple(manifest.labels) or ("value",),
                scores=scores,
                label=manifest.labels[winners[row]] if winners is not None else "",
            )
            for sink in sinks:
                sink(prediction)


def truth(engine: Engine, labels: Sequence[str] | None, rows: Sequence[int]) -> F32 | None:
    """True class index, or value, of some rows; None without labels.

    A label that is no class of the model is -1: every prediction counts as wrong.
    """
    if labels is None:
        return None
    if engine.regression:
        return np.array([number(labels[i]) for i in rows], np.float32)
    return np.array(class_indices(engine.manifest.labels, [labels[i] for i in rows]), np.float32)


def _refuses(engine: Engine) -> bool:
    line = engine.manifest.pipeline
    return line.missing == "refuse" and not any(i.missing for i in line.inputs)
