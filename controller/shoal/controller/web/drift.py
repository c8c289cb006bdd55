"""Drift screen: heatmap of features over time, and histograms of one feature."""

from flask import request

from shoal.controller.alerts import alerts
from shoal.controller.host.context import Context
from shoal.controller.monitoring import drift_history
from shoal.controller.releases import models
from shoal.controller.web import baselines, charts
from shoal.controller.web.screen import blueprint, context, show

#: Time range of the heatmap, as in the URL -> seconds.
SPANS = {"1h": 3600.0, "6h": 6 * 3600.0, "24h": 86_400.0, "7d": 7 * 86_400.0}


@blueprint.get("/drift")
def drift() -> str:
    """Subject selection, heatmap, and one feature's histograms."""
    ctx = context()
    names = models.names(ctx)
    model = request.args.get("model") or (names[0] if names else "")
    subjects = drift_history.drift_subjects(ctx, model) if model else []
    scope, subject = _chosen(subjects) or _default_subject(ctx, model, subjects)
    span = request.args.get("span", "24h")
    since = ctx.clock() - SPANS.get(span, SPANS["24h"])
    found = drift_history.drift_map(ctx, model, scope, subject, since) if subject else None
    lines = charts.feature_rows(found) if found else []
    feature = request.args.get("feature") or (lines[0].name if lines else "")
    return show(
        "drift.html",
        models=names,
        model=model,
        subjects=subjects,
        scope=scope,
        subject=subject,
        span=span,
        spans=SPANS,
        map=found,
        grid=charts.grid(found) if found else None,
        lines=lines,
        feature=feature,
        baseline=baselines.of_subject(model, scope, subject) if subject else None,
        histograms=drift_history.histograms(ctx, model, scope, subject, feature)
        if subject and feature
        else None,
    )


def _chosen(subjects: list[tuple[str, str]]) -> tuple[str, str] | None:
    """(scope, subject) of the URL, if it sent windows of the model."""
    scope, _, subject = request.args.get("of", "").partition(":")
    requested = (request.args.get("scope", scope), request.args.get("subject", subject))
    return requested if requested in subjects else None


def _default_subject(ctx: Context, model: str, subjects: list[tuple[str, str]]) -> tuple[str, str]:
    """The site of an open drift alert, else the first subject."""
    active = [a for a in alerts.list_alerts(ctx) if a.kind == "drift" and a.state != "closed"]
    sites = [("site", a.site) for a in active if a.model == model]
    return next((s for s in [*sites, *subjects] if s in subjects), ("", ""))
