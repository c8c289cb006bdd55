"""The model card of a release, as markdown."""

from collections.abc import Mapping, Sequence

import msgspec

from shoal.controller.releases.records import TaskReport, TensorsReport, VariantReport
from shoal.controller.training.jobs import Job
from shoal.signature import Tensor

CARD = """\
# {model}

{what}, trained on dataset {dataset} ({rows} rows) to predict `{label}` from {features} features.

{table}

## Variants

{variants}

## Limits

{limits}
"""


TENSORS_CARD = """\
# {model}

{what} {watched}

{claims}{inputs}

{outputs}
{steps}
## Model

{facts}

## Variants

{variants}

## Limits

{limits}
"""


_UNCLAIMED = """\
An ONNX model, imported as it is: tensors in, tensors out. Nothing is claimed about it: it was not
measured against data, and it has no labels."""
_CLAIMED = """\
An ONNX model, imported as it is, for the task {}. What its outputs mean was declared by the person
who imported it."""
#: Labels that are named in full.
_MOST_NAMED = 20


def tensors_card_of(model: str, report: TensorsReport, variants: Sequence[VariantReport]) -> str:
    """Markdown of the card of a model of tensors."""
    facts, operators = report.facts, sorted(report.facts.operators)
    return TENSORS_CARD.format(
        model=model,
        watched=_watched(report),
        what=_UNCLAIMED if report.task is None else _CLAIMED.format(report.task.meaning.word),
        claims="" if report.task is None else _claims(report.task),
        inputs=_table(("input", "datatype and shape"), _tensors(report.inputs)),
        outputs=_table(("output", "datatype and shape"), _tensors(report.outputs)),
        steps=_steps(report),
        facts=_table(
            ("read from the file", "value"),
            {
                "parameters": str(facts.parameters),
                "operators": ", ".join(operators),
                "memory, estimated": f"{facts.memory_mb:.0f} MB",
                "time of one run on the controller": f"{report.run_ms:.3g} ms",
            },
        ),
        variants=_variants(variants),
        limits="\n".join(f"- {note}" for note in _limits(report)),
    )


def _limits(report: TensorsReport) -> list[str]:
    if report.task is None:
        return ["nothing was measured", *report.notes]
    return [*report.task.notes, *report.notes]


def _claims(claimed: TaskReport) -> str:
    """What its outputs mean, and how far that was found true."""
    fields = msgspec.to_builtins(claimed.meaning)
    said = {name: _short(value) for name, value in fields.items() if name != "task"}
    parts = [_table((f"task {claimed.meaning.word}", "as declared"), said)]
    if claimed.metrics:
        values = {name.replace("_", " "): f"{one:.3f}" for name, one in claimed.metrics.items()}
        parts.append(_table((f"on {claimed.items} items", "value"), values))
    return "\n\n".join([*parts, ""]) + "\n"


def _short(value: object) -> str:
    if isinstance(value, list) and len(value) > _MOST_NAMED:
        first = ", ".join(map(str, value[:_MOST_NAMED]))
        return f"{first} and {len(value) - _MOST_NAMED} more"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _steps(report: TensorsReport) -> str:
    """The section about steps; "" without any."""
    if report.steps is None:
        return ""
    lines = "\n".join(f"- {line}" for line in report.steps.lines)
    return (
        f"\n## Steps\n\nDeclared at import, and part of the graph:\n\n{lines}\n\n"
        f"The author's file, without them, has SHA-256 `{report.steps.source_sha256}`.\n"
    )


def _watched(report: TensorsReport) -> str:
    tensors = [t for t in (*report.inputs, *report.outputs) if t.sketched is not None]
    if not tensors:
        return "There is no reference to compare its inputs with, so no drift is found."
    names = ", ".join(f"{t.name} ({t.sketched_text})" for t in tensors)
    return f"Devices sketch what they see, and drift is found in: {names}."


def _tensors(tensors: Sequence[Tensor]) -> dict[str, str]:
    optional = {t.name: ", may be left out" if t.default is not None else "" for t in tensors}
    return {t.name: f"{t.datatype} {t.shape_text}{optional[t.name]}" for t in tensors}


def card_of(
    job: Job,
    *,
    rows: int,
    metrics: Mapping[str, float],
    sites: Mapping[str, float],
    variants: Sequence[VariantReport],
    features: int,
    notes: Sequence[str],
) -> str:
    """Markdown of the model card. sites: the main metric per site."""
    measured = {**metrics, **{f"site {name}": value for name, value in sites.items()}}
    return CARD.format(
        model=job.model,
        what=f"Estimator {job.estimator}",
        dataset=job.dataset.ref,
        rows=rows,
        label=job.dataset.label,
        features=features,
        table=_table(("on held-back rows", "value"), {k: f"{v:.3f}" for k, v in measured.items()}),
        variants=_variants(variants),
        limits="\n".join(f"- {note}" for note in notes) or "- none known",
    )


def _variants(variants: Sequence[VariantReport]) -> str:
    """Every candidate with its size, its CPU time over fp32's, and why it is not in the release."""
    head = "| variant | bytes | time of fp32's | |\n|---|---|---|---|"
    lines = [
        f"| {v.name} | {v.size or '–'} | {'–' if v.time_ratio is None else f'x{v.time_ratio:.2f}'} "
        f"| {f'not in the release: {v.dropped}' if v.dropped else v.detail} |"
        for v in variants
    ]
    return "\n".join([head, *lines])


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {k} | {v} |" for k, v in rows.items()])
