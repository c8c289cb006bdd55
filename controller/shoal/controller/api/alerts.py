"""Routes for alerts: what is wrong, who takes it, and maintenance silences."""

from typing import Annotated

import msgspec

from shoal.controller.alerts import actions, listing, silences
from shoal.controller.alerts.records import Alert, AlertEvent, Counts, Member, Silence
from shoal.controller.api.routing import Call, Limit, Listing, RequestModel, all_of, route

TAG = "alerts"
#: A row's number: no larger than the database can hold.
ROW = "<int(max=9223372036854775807):id>"
Severity = Annotated[str, msgspec.Meta(pattern="^(|critical|warning|info)$")]


class AlertQuery(RequestModel, frozen=True, kw_only=True):
    """Filters of alerts; empty ones match all.

    state     open, acknowledged, snoozed, closed, or "unresolved" for all but the closed ones
    assigned  user that they are assigned to
    q         part of title or detail
    sort      opened; urgency: open ones first, the critical ones of these first; "-": falling
    """

    state: Annotated[
        str, msgspec.Meta(pattern="^(|unresolved|open|acknowledged|snoozed|closed)$")
    ] = ""
    severity: Severity = ""
    kind: str = ""
    site: str = ""
    model: str = ""
    assigned: str = ""
    q: str = ""
    sort: str = "-opened"
    cursor: str = ""
    limit: Limit = 50


class MemberQuery(RequestModel, frozen=True, kw_only=True):
    """A page of devices."""

    cursor: str = ""
    limit: Limit = 50


class Assignee(RequestModel, frozen=True, kw_only=True):
    """to: name of a user; "" takes the alert back."""

    to: str


class Snooze(RequestModel, frozen=True, kw_only=True):
    """for_s: seconds."""

    for_s: float


class Resolution(RequestModel, frozen=True, kw_only=True):
    """note: what was done, for the alert's history."""

    note: str = ""


class NewSilence(RequestModel, frozen=True, kw_only=True):
    """A maintenance silence of `lasts_s` seconds from `begins_at` (Unix seconds; 0: now).

    At least one of site, kind, model, severity and device; all that are given have to match.
    """

    lasts_s: float
    begins_at: float = 0.0
    reason: str = ""
    site: str = ""
    kind: str = ""
    model: str = ""
    severity: Severity = ""
    device: str = ""


@route("GET", "/api/v1/alerts", role="viewer", tag=TAG)
def list_alerts(call: Call, query: AlertQuery) -> Listing[Alert]:
    """Alerts, newest first."""
    found, page = listing.page(call.ctx, **msgspec.structs.asdict(query))
    return Listing(found, page)


@route("GET", "/api/v1/alerts/counts", role="viewer", tag=TAG)
def count_alerts(call: Call) -> Counts:
    """Numbers of alerts that are not closed, by state, severity and kind."""
    return listing.counts(call.ctx)


@route("GET", f"/api/v1/alerts/{ROW}", role="viewer", tag=TAG)
def get_alert(call: Call, id: int) -> Alert:  # noqa: A002 - the API's word
    """One alert."""
    return listing.get_alert(call.ctx, id)


@route("GET", f"/api/v1/alerts/{ROW}/history", role="viewer", tag=TAG)
def alert_history(call: Call, id: int) -> Listing[AlertEvent]:  # noqa: A002 - the API's word
    """What happened to an alert, newest first."""
    return all_of(listing.history(call.ctx, id))


@route("GET", f"/api/v1/alerts/{ROW}/members", role="viewer", tag=TAG)
def alert_members(call: Call, id: int, query: MemberQuery) -> Listing[Member]:  # noqa: A002
    """Devices that an alert stands for now."""
    found, page = listing.members(call.ctx, id, query.cursor, query.limit)
    return Listing(found, page)


@route("POST", f"/api/v1/alerts/{ROW}/acknowledge", role="operator", tag=TAG)
def acknowledge(call: Call, id: int) -> Alert:  # noqa: A002 - the API's word
    """Acknowledge an alert."""
    return actions.acknowledge(call.ctx, actor=call.by, id=id)


@route("POST", f"/api/v1/alerts/{ROW}/assign", role="operator", tag=TAG)
def assign(call: Call, id: int, body: Assignee) -> Alert:  # noqa: A002 - the API's word
    """Assign an alert to a user, or take it back."""
    return actions.assign(call.ctx, actor=call.by, id=id, to=body.to)


@route("POST", f"/api/v1/alerts/{ROW}/snooze", role="operator", tag=TAG)
def snooze(call: Call, id: int, body: Snooze) -> Alert:  # noqa: A002 - the API's word
    """Put an alert aside for a while; if its cause lasts, it is open again then."""
    return actions.snooze(call.ctx, actor=call.by, id=id, for_s=body.for_s)


@route("POST", f"/api/v1/alerts/{ROW}/wake", role="operator", tag=TAG)
def wake(call: Call, id: int) -> Alert:  # noqa: A002 - the API's word
    """End the snooze of an alert."""
    return actions.wake(call.ctx, actor=call.by, id=id)


@route("POST", f"/api/v1/alerts/{ROW}/resolve", role="operator", tag=TAG)
def resolve(call: Call, id: int, body: Resolution) -> Alert:  # noqa: A002 - the API's word
    """Close an alert by hand; a new sign of its cause opens it again."""
    return actions.resolve(call.ctx, actor=call.by, id=id, note=body.note)


@route("GET", "/api/v1/silences", role="viewer", tag=TAG)
def list_silences(call: Call) -> Listing[Silence]:
    """Maintenance silences that have not ended."""
    return all_of(silences.list_silences(call.ctx))


@route("POST", "/api/v1/silences", role="operator", tag=TAG, status=201, repeatable=True)
def create_silence(call: Call, body: NewSilence) -> Silence:
    """Begin a maintenance silence, now or later."""
    return silences.create(call.ctx, actor=call.by, **msgspec.structs.asdict(body))


@route("DELETE", "/api/v1/silences/<id>", role="operator", tag=TAG, status=204)
def end_silence(call: Call, id: str) -> None:  # noqa: A002 - the API's word
    """End a silence; what it snoozed is open again."""
    silences.end(call.ctx, actor=call.by, id=id)
