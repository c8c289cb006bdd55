"""Routes for notifications: channels, their tests, and what was delivered."""

from typing import Annotated

import msgspec

from shoal.controller.api.routing import Call, Limit, Listing, RequestModel, all_of, route
from shoal.controller.notifications import channels
from shoal.controller.notifications.records import Channel, Delivery

TAG = "notifications"


class NewChannel(RequestModel, frozen=True, kw_only=True):
    """A channel for notifications; fields as in Channel.

    url      of a webhook, or an Apprise URL; kept in a file of its own and never shown again
    secret   of a webhook; made where none is given
    """

    name: str
    kind: Annotated[str, msgspec.Meta(pattern="^(apprise|webhook)$")]
    url: str
    secret: str = ""
    severity: str = "warning"
    sites: list[str] = msgspec.field(default_factory=list)
    quiet: str = ""
    zone: str = "UTC"
    escalated_only: bool = False
    digest_s: float = 0.0


class DeliveryQuery(RequestModel, frozen=True, kw_only=True):
    """Which deliveries; empty fields take all."""

    channel: str = ""
    state: Annotated[str, msgspec.Meta(pattern="^(|pending|sent|failed)$")] = ""
    limit: Limit = 50


@route("GET", "/api/v1/channels", role="viewer", tag=TAG)
def list_channels(call: Call) -> Listing[Channel]:
    """Channels of notifications, without their secrets."""
    return all_of(channels.list_channels(call.ctx))


@route("POST", "/api/v1/channels", role="admin", tag=TAG, status=201, repeatable=True,
       secret=("secret",))  # fmt: skip
def create_channel(call: Call, body: NewChannel) -> Channel:
    """Create a channel; a webhook's `secret` is shown once."""
    return channels.create(call.ctx, actor=call.by, **msgspec.structs.asdict(body))


@route("DELETE", "/api/v1/channels/<name>", role="admin", tag=TAG, status=204)
def remove_channel(call: Call, name: str) -> None:
    """Remove a channel, its secret and its deliveries."""
    channels.remove(call.ctx, actor=call.by, name=name)


@route("POST", "/api/v1/channels/<name>/test", role="operator", tag=TAG, status=202)
def send_test(call: Call, name: str) -> Delivery:
    """Queue a test message."""
    ident = channels.send_test(call.ctx, actor=call.by, name=name)
    return channels.get_delivery(call.ctx, ident)


@route("GET", "/api/v1/deliveries", role="operator", tag=TAG)
def list_deliveries(call: Call, query: DeliveryQuery) -> Listing[Delivery]:
    """Messages to channels, newest first, each with its attempts."""
    found = channels.deliveries(call.ctx, query.channel, query.state, query.limit)
    return all_of(found)


@route("GET", "/api/v1/deliveries/<id>", role="operator", tag=TAG)
def get_delivery(call: Call, id: str) -> Delivery:  # noqa: A002 - the API's word
    """One message, with its attempts."""
    return channels.get_delivery(call.ctx, id)


@route("POST", "/api/v1/deliveries/<id>/retry", role="operator", tag=TAG)
def retry_delivery(call: Call, id: str) -> Delivery:  # noqa: A002 - the API's word
    """Try a failed message again now."""
    return channels.retry(call.ctx, actor=call.by, id=id)
