"""A frame's way: source, pipeline of the release that serves, model, sinks."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from shoal.agent.feeds.frames import Frame, Prediction, Quality
from shoal.agent.host.faults import Fault
from shoal.agent.serving.engine import Engine
from shoal.agent.serving.labels import class_indices, number
from shoal.agent.serving.served_model import Serving
from shoal.errors import InputError, ShoalError
from shoal.outputs import predicted
from shoal.preparation import Preparation, PreparedRows
from shoal.sketch import F32

#: Assets whose last values and stretches one source remembers.
ASSETS = 1_024


#: Takes rows that a model was given, float32 (n, F), and what each truly is.
Keep = Callable[[Engine, F32, Sequence[str]], None]


class Flow:
    """Takes the frames of one source; never raises. One thread calls it.

    source   its name, for faults
    model    that the source feeds; "" for every one that serves
    serving  models as they are now, by name
    sinks    take the predictions: called with each, they neither block nor raise
    fault    told what could not be answered; the model's window counts it too
    rate     share of the rows that is answered now: less than 1 while the machine is under pressure
    keep     takes rows (n, F) that came with their labels, to learn from
    """

    def __init__(
        self,
        source: str,
        model: str,
        *,
        serving: Callable[[], Mapping[str, Serving]],
        sinks: Sequence[tuple[str, Callable[[Prediction], None]]],
        fault: Callable[[Fault], None],
        rate: Callable[[], float] = lambda: 1.0,
        keep: Keep | None = None,
    ) -> None:
        self._rate, self._credit = rate, 1.0
        self._keep = keep
        self._source, self._model = source, model
        self._serving, self._sinks, self._fault = serving, sinks, fault
        self._prepared: dict[tuple[str, str], tuple[str, Preparation]] = {}
        self._checked: dict[str, tuple[str, tuple[str, ...]]] = {}

    def __call__(self, frame: Frame) -> int:
        """Answer one frame; how many of its rows were answered."""
        if frame.quality is Quality.BAD:
            return 0
        served = self._serving()
        models = [self._model] if self._model else list(served)
        return sum(self._feed(served[name], frame) for name in models if name in served)

    def _feed(self, serving: Serving, frame: Frame) -> int:
        engine = serving.engine
        if engine is None:
            return 0
        try:
            ready = self._prepare(engine, frame)
        except ShoalError as error:
            serving.count_error()
            self._fault(Fault(error.code, f"source {self._source}: {error}"))
            return 0
        if not len(ready.values) or not self._has_its_turn():
            return 0
        try:
            said = serving.infer(ready.values, truth(engine, frame.labels, ready.stands_for))
        except ShoalError as error:
            self._fault(Fault(error.code, f"source {self._source}: {error}"))
            return 0
        if self._keep is not None and frame.labels is not None:
            self._keep(engine, ready.values, [frame.labels[i] for i in ready.stands_for])
        self._tell(engine, frame, said)
        return len(said)

    def _has_its_turn(self) -> bool:
        """Whether this is one of the share that is answered; the pipeline has seen it anyhow."""
        self._credit = min(1.0, self._credit + self._rate())
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True

    def _prepare(self, engine: Engine, frame: Frame) -> PreparedRows:
        """What the model reads of the frame; InputError when a value it must have is not there."""
        self._check_names(engine, frame)
        work = self._preparation(engine, frame.asset)
        return work.rows(frame.time_s, frame.names, frame.rows)

    def _preparation(self, engine: Engine, asset: str) -> Preparation:
        """The pipeline at work for this asset; a new release begins with nothing remembered."""
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
        """InputError when columns that the model reads are not there: a wrong file or tag."""
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

    def _tell(self, engine: Engine, frame: Frame, said: F32) -> None:
        manifest = engine.manifest
        sinks = [sink for model, sink in self._sinks if model in ("", manifest.model)]
        if not sinks:
            return
        two = manifest.threshold if len(manifest.labels) == 2 else None
        winners = predicted(said, two).astype(int) if not engine.regression else None
        for row, scores in enumerate(said):
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
    """True class index, or value, of some rows; None where nobody knows.

    A label that the model does not know counts as no class: no answer can be right.
    """
    if labels is None:
        return None
    if engine.regression:
        return np.array([number(labels[i]) for i in rows], np.float32)
    return np.array(class_indices(engine.manifest.labels, [labels[i] for i in rows]), np.float32)


def _refuses(engine: Engine) -> bool:
    line = engine.manifest.pipeline
    return line.missing == "refuse" and not any(i.missing for i in line.inputs)
