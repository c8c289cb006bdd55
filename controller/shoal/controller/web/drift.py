"""Drift screen: heatmap of features over time, and histograms of one feature."""

from flask import request

from shoal.controller.alerts import listing
from shoal.controller.host.context import Context
from shoal.controller.monitoring import drift_history
from shoal.controller.releases import models
from shoal.controller.store.records import Page
from shoal.controller.web import baselines, charts
from shoal.controller.web.screen import blueprint, context, show

#: Sites to choose from, and subjects that a search shows; columns that a screen has room for.
MOST_SITES, MOST_FOUND, COLUMNS = 200, 20, 96
#: Time range of the heatmap, as in the URL -> seconds.
SPANS = {"1h": 3600.0, "6h": 6 * 3600.0, "24h": 86_400.0, "7d": 7 * 86_400.0}


@blueprint.get("/drift")
def drift() -> str:
    """Subject selection, heatmap, and one feature's histograms."""
    ctx = context()
    names = models.names(ctx)
    model = request.args.get("model") or (names[0] if names else "")
    sites, of_sites = drift_history.find_subjects(ctx, model, scope="site", limit=MOST_SITES)
    scope, subject = _chosen(ctx, model) or _default_subject(ctx, model)
    find = request.args.get("find", "").strip()
    matches: list[tuple[str, str]] = []
    of_find = Page()
    if find:
        matches, of_find = drift_history.find_subjects(ctx, model, q=find, limit=MOST_FOUND)
    span = request.args.get("span", "24h")
    since = ctx.clock() - SPANS.get(span, SPANS["24h"])
    found = drift_history.drift_map(ctx, model, scope, subject, since, COLUMNS) if subject else None
    lines = charts.feature_rows(found) if found else []
    feature = request.args.get("feature") or (lines[0].name if lines else "")
    return show(
        "drift.html",
        models=names,
        model=model,
        sites=[name for _scope, name in sites],
        of_sites=of_sites,
        find=find,
        matches=matches,
        of_find=of_find,
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


def _chosen(ctx: Context, model: str) -> tuple[str, str] | None:
    """(scope, subject) of the URL, if it sent windows of the model."""
    scope, _, subject = request.args.get("of", "").partition(":")
    requested = (request.args.get("scope", scope), request.args.get("subject", subject))
    return requested if drift_history.is_subject(ctx, model, *requested) else None


def _default_subject(ctx: Context, model: str) -> tuple[str, str]:
    """The site of the newest open drift alert, else the first subject; ("", "") without any."""
    found, _page = listing.page(ctx, state="unresolved", kind="drift", model=model, limit=1)
    if found and drift_history.is_subject(ctx, model, "site", found[0].site):
        return "site", found[0].site
    first, _page = drift_history.find_subjects(ctx, model, limit=1)
    return first[0] if first else ("", "")
