"""Build a release of tensors: measured by running it, judged by size, and by its task."""

from pathlib import Path

from shoal import bundle
from shoal.controller.releases import verdicts
from shoal.controller.releases.records import Built, TensorsReport, VariantReport
from shoal.controller.releases.verdicts import FP32
from shoal.controller.training.io import (
    card,
    composed_model,
    export,
    inspection,
    reference_sketches,
    zip_maps,
)
from shoal.controller.training.jobs import Inspection, ReportProgress, TensorsJob
from shoal.controller.training.steps import declaration
from shoal.manifest import TENSORS, File
from shoal.pipeline import IDENTITY
from shoal.profile import load_profiles
from shoal.tasks import labels_of

#: Of a model without the standard's operators: any runtime loads it.
_OLDEST_OPSET = 1
_AS_IT_IS = "a model of tensors is served as it is, not quantized"


def build_tensors(job: TensorsJob, progress: ReportProgress) -> Built:
    """Run the job; ModelError when the model cannot be run."""
    progress(0.05, "running the model to measure its tensors")
    found = inspection.inspect(
        job.onnx, job.model, job.sample, job.data, job.steps, job.kinds, declared=job.declared
    )
    progress(0.90, "judging it for each profile")
    served = _served(job)
    file = _describe(served)
    data = {} if job.steps is not None else job.data  # steps and weights become one file
    size = file.size + sum(path.stat().st_size for path in data.values())
    opsets, memory_mb = found.facts.opsets, found.facts.memory_mb
    judged = verdicts.judge_tensors(size, memory_mb, load_profiles(), _AS_IT_IS)
    fits = any(verdict.passed for verdict in judged)
    report, claimed = _report(job, found), found.task
    unfit = "" if fits else "no profile can carry it"
    return Built(
        task=TENSORS if claimed is None else claimed.meaning.word,
        main="" if claimed is None else claimed.main,
        metrics={} if claimed is None else claimed.metrics,
        by_site={},
        features=[],
        labels=[] if claimed is None else labels_of(claimed.meaning),
        files={FP32: served},
        data={FP32: data} if data else {},
        variants=[
            VariantReport(
                name=FP32,
                sha256=file.sha256,
                size=size,
                metrics={} if claimed is None else claimed.metrics,
                cosine=1.0,
            )
        ],
        verdicts=judged,
        why_refused=unfit or ("" if claimed is None else claimed.guessing),
        references=reference_sketches.to_bytes(found.references),
        golden=found.golden,
        card=card.tensors_card_of(job.model, report),
        opset=opsets.get("") or opsets.get("ai.onnx", _OLDEST_OPSET),
        ort=export.ORT,
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
