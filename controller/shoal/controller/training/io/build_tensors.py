"""Build a release of tensors: measured by running it and by its task, with the variants that agree
with it on a sample."""

from pathlib import Path

from shoal import bundle
from shoal.controller.releases.records import Built, TensorsReport, VariantReport
from shoal.controller.releases.verdicts import FP32
from shoal.controller.training.io import (
    card,
    composed_model,
    inspection,
    reference_sketches,
    runtime,
    zip_maps,
)
from shoal.controller.training.io.tensor_candidates import judge_candidates
from shoal.controller.training.jobs import Inspection, ReportProgress, TensorsJob
from shoal.controller.training.steps import declaration
from shoal.manifest import TENSORS, File
from shoal.pipeline import IDENTITY
from shoal.tasks import labels_of

#: Of a model without the standard's operators: any runtime loads it.
_OLDEST_OPSET = 1


def build_tensors(job: TensorsJob, progress: ReportProgress) -> Built:
    """Run the job; ModelError when the model cannot be run."""
    progress(0.05, "running the model to measure its tensors")
    found = inspection.inspect(
        job.onnx, job.model, job.sample, job.data, job.steps, job.kinds, declared=job.declared
    )
    served = _served(job)
    file = _describe(served)
    data = {} if job.steps is not None else job.data  # steps and weights become one file
    size = file.size + sum(path.stat().st_size for path in data.values())
    opsets = found.facts.opsets
    report, claimed = _report(job, found), found.task
    fp32 = VariantReport(
        name=FP32,
        sha256=file.sha256,
        size=size,
        metrics={} if claimed is None else claimed.metrics,
        cosine=1.0,
    )
    whole = not data
    variants = judge_candidates(served, fp32, found, job.model, job.sample, progress, whole=whole)
    fits = any(verdict.passed for verdict in variants.verdicts)
    unfit = "" if fits else "no profile can carry it"
    return Built(
        task=TENSORS if claimed is None else claimed.meaning.word,
        main="" if claimed is None else claimed.main,
        metrics={} if claimed is None else claimed.metrics,
        by_site={},
        features=[],
        labels=[] if claimed is None else labels_of(claimed.meaning),
        files={FP32: served, **variants.files},
        data={FP32: data} if data else {},
        variants=variants.reports,
        verdicts=variants.verdicts,
        why_refused=unfit or ("" if claimed is None else claimed.guessing),
        references=reference_sketches.to_bytes(found.references),
        golden=variants.golden,
        card=card.tensors_card_of(job.model, report, variants.reports),
        opset=opsets.get("") or opsets.get("ai.onnx", _OLDEST_OPSET),
        ort=runtime.ORT,
        threshold=0.5,
        params={},
        pipeline=IDENTITY,
        signature=found.signature,
        tensors=report,
    )


def _served(job: TensorsJob) -> bytes | Path:
    """The file that devices get: the author's own, unless something became part of it."""
    if job.steps is not None:
        return composed_model.composed(job.onnx, job.steps, job.model, job.data)
    return zip_maps.flattened(job.onnx) or job.onnx


def _describe(content: bytes | Path) -> File:
    if isinstance(content, bytes):
        return bundle.describe("", content)
    return bundle.describe_file("", content)


def _report(job: TensorsJob, found: Inspection) -> TensorsReport:
    signature = found.signature
    steps = None
    if job.steps is not None:
        source = bundle.describe_file("", job.onnx).sha256
        steps = declaration.recorded(declaration.parse(job.steps.read_bytes()).declared, source)
    return TensorsReport(
        inputs=signature.inputs,
        outputs=signature.outputs,
        states=signature.states,
        together=signature.together,
        item_bytes=signature.item_bytes,
        facts=found.facts,
        notes=found.notes,
        run_ms=found.run_ms,
        rss_mb=found.rss_mb,
        steps=steps,
        task=found.task,
    )
