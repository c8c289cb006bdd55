"""From a job to everything a release needs: make the variants, measure, judge, describe."""

from collections.abc import Sequence

import msgspec
import numpy as np
from onnx import ModelProto

from shoal import bundle
from shoal.controller.releases import verdicts
from shoal.controller.releases.records import Built, VariantReport, Verdict
from shoal.controller.releases.verdicts import FP32
from shoal.controller.training.io import (
    card,
    export,
    golden,
    onnx_graph,
    prepared_rows,
    reference_sketches,
    rows,
    runtime,
)
from shoal.controller.training.io.rows import Data
from shoal.controller.training.io.validate import (
    MAIN,
    by_site,
    cosine,
    fairness,
    metrics_of,
    robustness,
)
from shoal.controller.training.io.variants import Made, make
from shoal.controller.training.jobs import ESTIMATORS, Job, Params, Say, read_params
from shoal.errors import ModelError
from shoal.manifest import Feature
from shoal.pipeline import Pipeline
from shoal.profile import load_profiles

#: Decision threshold of two-class models.
THRESHOLD = 0.5
#: Labels above which an imported model's integer target is taken for a quantity.
_MOST_CLASSES = 50


def build(job: Job, say: Say) -> Built:
    """Do the whole job; DatasetError, ModelError or SettingError say what cannot be."""
    params = read_params(job.estimator, job.params)
    task = ESTIMATORS[job.estimator][0] or _task_of_import(job)
    say(0.02, f"reading {job.dataset.ref}")
    data = rows.prepare(job, params, task)
    line = prepared_rows.pipeline_of(params, data)
    data = prepared_rows.as_the_model_reads(data, line)
    made = make(job, params, data, task, say)
    say(0.70, "measuring every variant on held-back rows")
    reports = _reports(made, data, task)
    metrics, sites = _whole(made, data, task, params)
    say(0.85, "judging each variant for each profile")
    judged = verdicts.judge(reports, made.skipped, load_profiles(), MAIN[task])
    say(0.90, "golden vectors and references")
    return _packed(job, params, data, task, made, reports, metrics, sites, judged, line)


def _task_of_import(job: Job) -> str:
    """A model from elsewhere is a classifier if it came with labels or the column has few names."""
    label = next(c for c in job.dataset.columns if c.role == "label")
    named = 0 < len(label.values) <= _MOST_CLASSES and "float" not in label.dtype
    return "classification" if job.labels or named else "regression"


def _reports(made: Made, data: Data, task: str) -> dict[str, VariantReport]:
    right = runtime.outputs(made.files[FP32], data.held.x, FP32)
    if not np.isfinite(right).all():
        raise ModelError(f"{FP32} answers NaN or infinity on held-back rows", "look at the data")
    found = {}
    for name, model in made.files.items():
        answers = np.nan_to_num(runtime.outputs(model, data.held.x, name))
        larger = name != FP32 and len(model) > len(made.files[FP32])
        found[name] = VariantReport(
            name=name,
            sha256=bundle.describe(name, model).sha256,
            size=len(model),
            metrics=metrics_of(task, data.held.y, answers),
            cosine=cosine(answers, right),
            detail="larger than fp32: it saves time at best" if larger else "",
        )
    return found


def _whole(
    made: Made, data: Data, task: str, params: Params
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of fp32 on held-back rows of the training sites, and the main one at every site."""
    session = runtime.open_session(made.files[FP32], FP32)

    def predict(x: runtime.F32) -> runtime.F32:
        return runtime.run(session, x, FP32)

    metrics = metrics_of(task, data.held.y, predict(data.held.x))
    metrics |= fairness(by_site(task, data.held, predict(data.held.x)))
    metrics |= robustness(task, data.held, predict, params.seed)
    return metrics, by_site(task, data.elsewhere, predict(data.elsewhere.x))


def _packed(
    job: Job,
    params: Params,
    data: Data,
    task: str,
    made: Made,
    reports: dict[str, VariantReport],
    metrics: dict[str, float],
    sites: dict[str, float],
    judged: list[Verdict],
    line: Pipeline,
) -> Built:
    answers = runtime.outputs(made.files[FP32], data.train.x, FP32)
    sketched = reference_sketches.references_of(data.features, data.train, answers, task, THRESHOLD)
    doubtful = {v.variant for v in judged if not v.passed} & set(job.variants)
    variants = list(reports.values())
    return Built(
        task=task,
        main=MAIN[task],
        metrics=metrics,
        by_site=sites,
        features=_features(data),
        labels=data.labels,
        files=made.files,
        variants=variants,
        verdicts=judged,
        why_refused=_why_refused(task, metrics, data, sorted(doubtful), judged),
        references=reference_sketches.to_bytes(sketched),
        golden=golden.golden_of(made.files, data.held, task, doubtful).to_bytes(),
        card=card.card_of(
            job,
            rows=len(data.train.y),
            metrics=metrics,
            sites=sites,
            variants=variants,
            features=len(data.features),
            notes=_notes(params, data, made),
        ),
        opset=onnx_graph.opset_of(ModelProto.FromString(made.files[FP32])),
        ort=export.ORT,
        threshold=THRESHOLD,
        params=msgspec.to_builtins(params),
        pipeline=line,
    )


def _features(data: Data) -> list[Feature]:
    low, high = data.train.x.min(0), data.train.x.max(0)
    return [
        Feature(name=name, low=float(low[i]), high=float(high[i]))
        for i, name in enumerate(data.features)
    ]


def _why_refused(
    task: str,
    metrics: dict[str, float],
    data: Data,
    doubtful: Sequence[str],
    judged: Sequence[Verdict],
) -> str:
    """Why a person has to take this release upon themselves; "" when nobody needs to."""
    if why := verdicts.no_better_than_guessing(task, metrics, len(data.labels)):
        return why
    for name in doubtful:
        first = next(v for v in judged if v.variant == name and not v.passed)
        return f"{name}, which came with the model: {first.why}"
    return "" if any(v.passed for v in judged) else "no profile can carry any of its variants"


def _notes(params: Params, data: Data, made: Made) -> list[str]:
    notes = [*made.notes]
    if params.sites:
        notes.append(f"trained on site {', '.join(params.sites)} only")
    if data.incomplete:
        notes.append(f"{data.incomplete} rows with a missing value were left out")
    by_reason: dict[str, list[str]] = {}
    for name, why in made.skipped.items():
        by_reason.setdefault(why, []).append(name)
    notes += [f"not built: {', '.join(names)}: {why}" for why, names in by_reason.items()]
    return notes
