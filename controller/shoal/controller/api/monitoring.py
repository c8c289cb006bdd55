"""Routes for fleet health, drift and performance."""

from typing import Annotated

import msgspec

from shoal.controller.api.routing import Call, Limit, Listing, RequestModel, all_of, route
from shoal.controller.monitoring import (
    baseline_changes,
    baselines,
    drift_history,
    explanations,
    performance,
)
from shoal.controller.monitoring.records import (  # fmt: skip
    Baseline,
    BaselineChange,
    BaselineDetail,
    DriftExplanation,
    DriftMap,
    Finding,
    FleetHealth,
    Histograms,
    Performance,
    PerformanceMap,
)

TAG = "monitoring"
FOR_EVER = 2.0**33
#: A row's number: no larger than the database can hold.
ROW = "<int(max=9223372036854775807):id>"
Scope = Annotated[str, msgspec.Meta(pattern="^(device|site)$")]


class DriftQuery(RequestModel, frozen=True, kw_only=True):
    """Which heatmap. scope: device or site; since: Unix seconds."""

    model: str
    subject: str
    scope: Scope = "site"
    since: float = 0


class SubjectQuery(RequestModel, frozen=True, kw_only=True):
    """Subjects of which model. scope: device or site, "" for both; q: part of the name."""

    model: str
    scope: Annotated[str, msgspec.Meta(pattern="^(|device|site)$")] = ""
    q: str = ""
    cursor: str = ""
    limit: Limit = 100


class HistogramQuery(RequestModel, frozen=True, kw_only=True):
    """Which feature of which subject."""

    model: str
    subject: str
    feature: str
    scope: Scope = "site"


class FindingQuery(RequestModel, frozen=True, kw_only=True):
    """Which findings; empty fields take all."""

    model: str = ""
    scope: str = ""
    subject: str = ""
    since: float = 0
    cursor: str = ""
    limit: Limit = 100


class BaselineQuery(RequestModel, frozen=True, kw_only=True):
    """Filters of a model's baselines; empty ones match all.

    site     the site itself and its devices
    release  "": those that are served
    """

    model: str
    scope: Annotated[str, msgspec.Meta(pattern="^(|device|site)$")] = ""
    device: str = ""
    site: str = ""
    release: str = ""
    state: Annotated[str, msgspec.Meta(pattern="^(|learning|watching|drifting|frozen)$")] = ""
    cursor: str = ""
    limit: Limit = 50


class BaselineOf(RequestModel, frozen=True, kw_only=True):
    """Whose baseline. release: "" for the newest."""

    model: str
    subject: str
    scope: Scope = "device"
    release: str = ""


class ExplanationQuery(RequestModel, frozen=True, kw_only=True):
    """Which devices. feature: "" for alarms of any; release: "" for those that are served."""

    model: str
    feature: str = ""
    release: str = ""


class NewBaselineChange(RequestModel, frozen=True, kw_only=True):
    """What to do with baselines: of one device, of a site and its devices, or of the whole model.

    action     reset: learn anew from now; accept: what the inputs are now is normal, findings are
               closed; freeze: learn nothing more; unfreeze
    release    "": that which each device serves
    features   to accept; empty: those in alarm
    """

    action: Annotated[str, msgspec.Meta(pattern="^(reset|accept|freeze|unfreeze)$")]
    model: str
    device: str = ""
    site: str = ""
    whole_model: bool = False
    release: str = ""
    features: list[str] = msgspec.field(default_factory=list)


class BaselineChangeQuery(RequestModel, frozen=True, kw_only=True):
    """Which changes. model: "" for all."""

    model: str = ""
    cursor: str = ""
    limit: Limit = 50


class PerformanceQuery(RequestModel, frozen=True, kw_only=True):
    """Whose performance, from when to when (Unix seconds): of whole hours, beyond four days of
    whole days (UTC).

    by   "site" for one line per site, where neither site nor device is given
    """

    model: str
    site: str = ""
    device: str = ""
    release: str = ""
    since: float = 0
    until: float = FOR_EVER
    by: Annotated[str, msgspec.Meta(pattern="^(|site)$")] = ""


class PerformanceMapQuery(RequestModel, frozen=True, kw_only=True):
    """What is shown of which subjects, from when to when (Unix seconds).

    measure   rows, windows; errors and slow are shares of the rows, accuracy of the labelled ones
    scope     device, site, profile or fleet
    """

    model: str
    measure: Annotated[str, msgspec.Meta(pattern="^(rows|windows|errors|slow|accuracy)$")] = "rows"
    scope: Annotated[str, msgspec.Meta(pattern="^(device|site|profile|fleet)$")] = "device"
    release: str = ""
    since: float = 0
    until: float = FOR_EVER


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """A subject of drift detection."""

    scope: str
    subject: str


@route("GET", "/api/v1/fleet", role="viewer", tag=TAG)
def get_fleet(call: Call) -> FleetHealth:
    """Health of the whole fleet."""
    return performance.fleet_health(call.ctx)


@route("GET", "/api/v1/drift", role="viewer", tag=TAG)
def get_drift(call: Call, query: DriftQuery) -> DriftMap:
    """Drift of one subject: feature by time."""
    return drift_history.drift_map(call.ctx, query.model, query.scope, query.subject, query.since)


@route("GET", "/api/v1/drift/subjects", role="viewer", tag=TAG)
def list_drift_subjects(call: Call, query: SubjectQuery) -> Listing[Subject]:
    """Devices and sites with drift detection for a model."""
    found, page = drift_history.find_subjects(call.ctx, **msgspec.structs.asdict(query))
    return Listing([Subject(scope=scope, subject=subject) for scope, subject in found], page)


@route("GET", "/api/v1/drift/histogram", role="viewer", tag=TAG)
def get_histogram(call: Call, query: HistogramQuery) -> Histograms:
    """Training, baseline and current distribution of one feature."""
    return drift_history.histograms(
        call.ctx, query.model, query.scope, query.subject, query.feature
    )


@route("GET", "/api/v1/drift/baselines", role="viewer", tag=TAG)
def list_baselines(call: Call, query: BaselineQuery) -> Listing[Baseline]:
    """What is learnt of a model's inputs, by site: devices, then the site."""
    found, page = baselines.page(call.ctx, **msgspec.structs.asdict(query))
    return Listing(found, page)


@route("GET", "/api/v1/drift/baseline", role="viewer", tag=TAG)
def get_baseline(call: Call, query: BaselineOf) -> BaselineDetail:
    """What is usual for one device or site."""
    return baselines.show(call.ctx, query.model, query.scope, query.subject, query.release)


@route("GET", "/api/v1/drift/explanation", role="viewer", tag=TAG)
def explain_drift(call: Call, query: ExplanationQuery) -> DriftExplanation:
    """What the devices that drift share and the others lack: site, line, profile, label."""
    return explanations.explain(call.ctx, query.model, query.feature, query.release)


@route("GET", "/api/v1/drift/baselines/changes", role="viewer", tag=TAG)
def list_baseline_changes(call: Call, query: BaselineChangeQuery) -> Listing[BaselineChange]:
    """Changes of baselines that people asked for, newest first."""
    found, page = baseline_changes.page(call.ctx, **msgspec.structs.asdict(query))
    return Listing(found, page)


@route(
    "POST", "/api/v1/drift/baselines/changes", role="operator", tag=TAG, status=201,
    repeatable=True, location="/api/v1/drift/baselines/changes/{id}",
)  # fmt: skip
def change_baselines(call: Call, body: NewBaselineChange) -> BaselineChange:
    """Accept, reset, freeze or unfreeze baselines; the engine applies it within seconds."""
    return baseline_changes.ask(call.ctx, actor=call.by, **msgspec.structs.asdict(body))


@route("GET", f"/api/v1/drift/baselines/changes/{ROW}", role="viewer", tag=TAG)
def get_baseline_change(call: Call, id: int) -> BaselineChange:  # noqa: A002 - the API's word
    """One change of baselines, and how far it is."""
    return baseline_changes.get(call.ctx, id)


@route("GET", "/api/v1/findings", role="viewer", tag=TAG)
def list_findings(call: Call, query: FindingQuery) -> Listing[Finding]:
    """Drift decisions, newest first."""
    return Listing(*drift_history.findings_page(call.ctx, **msgspec.structs.asdict(query)))


@route("GET", "/api/v1/performance/map", role="viewer", tag=TAG)
def get_performance_map(call: Call, query: PerformanceMapQuery) -> PerformanceMap:
    """One measure of every device, site or profile, by hours; beyond four days by days."""
    return performance.performance_map(call.ctx, **msgspec.structs.asdict(query))


@route("GET", "/api/v1/performance", role="viewer", tag=TAG)
def get_performance(call: Call, query: PerformanceQuery) -> Listing[Performance]:
    """Accuracy from joined labels, and latency, over a time range."""
    return all_of(
        performance.performance(
            call.ctx, model=query.model, site=query.site, device=query.device,
            release=query.release, since=query.since, until=query.until,
        )
    )  # fmt: skip
