"""Drift: which feature moved, where and when, and how its values lie now."""

from flask import request

from shoal.controller.service import models, monitoring
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
    subjects = monitoring.drift_subjects(ctx, model) if model else []
    scope, subject = _chosen(subjects)
    span = request.args.get("span", "24h")
    since = ctx.clock() - SPANS.get(span, SPANS["24h"])
    found = monitoring.drift_map(ctx, model, scope, subject, since) if subject else None
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
        histograms=monitoring.histograms(ctx, model, scope, subject, feature)
        if subject and feature
        else None,
    )


def _chosen(subjects: list[tuple[str, str]]) -> tuple[str, str]:
    """(scope, subject) that the address asks for, else the first there is."""
    wanted = (request.args.get("scope", ""), request.args.get("subject", ""))
    if ":" in request.args.get("of", ""):
        scope, _, name = request.args["of"].partition(":")
        wanted = (scope, name)
    if wanted[1]:
        return wanted
    return subjects[0] if subjects else ("", "")
