"""The model card of a release, as markdown."""

from collections.abc import Mapping, Sequence

from shoal.controller.releases.records import VariantReport
from shoal.controller.training.jobs import Job

CARD = """\
# {model}

{what}, trained on dataset {dataset} ({rows} rows) to predict `{label}` from {features} features.

{table}

## Variants

{variants}

## Limits

{limits}
"""


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
        variants=_table(("variant", "bytes"), {v.name: str(v.size) for v in variants}),
        limits="\n".join(f"- {note}" for note in notes) or "- none known",
    )


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {k} | {v} |" for k, v in rows.items()])
