"""Drift: which feature moved, where and when, and how its values lie now."""

from flask import request

from shoal.controller.alerts import alerts
from shoal.controller.host.context import Context
from shoal.controller.monitoring import drift_history
from shoal.controller.releases import models
from shoal.controller.web import charts
from shoal.controller.web.screen import blueprint, context, show

#: How far back the map looks, as the address says it -> seconds.
SPANS = {"1h": 3600.0, "6h": 6 * 3600.0, "24h": 86_400.0, "7d": 7 * 86_400.0}


@blueprint.get("/drift")
def drift() -> str:
    """Subject picker, heatmap, and one feature's histograms."""
    ctx = context()
    names = [m.name for m in models.list_models(ctx)]
    model = request.args.get("model") or (names[0] if names else "")
    subjects = drift_history.drift_subjects(ctx, model) if model else []
    scope, subject = _chosen(subjects) or _worth_a_look(ctx, model, subjects)
    span = request.args.get("span", "24h")
    since = ctx.clock() - SPANS.get(span, SPANS["24h"])
    found = drift_history.drift_map(ctx, model, scope, subject, since) if subject else None
    lines = charts.feature_lines(found) if found else []
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
        histograms=drift_history.histograms(ctx, model, scope, subject, feature)
        if subject and feature
        else None,
    )


def _chosen(subjects: list[tuple[str, str]]) -> tuple[str, str] | None:
    """(scope, subject) that the address asks for, if that sent windows of the model."""
    scope, _, subject = request.args.get("of", "").partition(":")
    asked = (request.args.get("scope", scope), request.args.get("subject", subject))
    return asked if asked in subjects else None


def _worth_a_look(ctx: Context, model: str, subjects: list[tuple[str, str]]) -> tuple[str, str]:
    """The site that an alert stands for, else the first subject there is."""
    standing = [a for a in alerts.list_alerts(ctx) if a.kind == "drift" and a.state != "closed"]
    sites = [("site", a.site) for a in standing if a.model == model]
    return next((s for s in [*sites, *subjects] if s in subjects), ("", ""))
