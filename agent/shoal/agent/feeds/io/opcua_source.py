"""Source `opcua`: nodes of a server, subscribed to."""

import asyncio
import datetime
import math
import threading
import time
from typing import Annotated, Any

import msgspec

from shoal.agent.feeds.frames import LatestValues, Quality, Value
from shoal.agent.feeds.io.interface import Context, Emit
from shoal.agent.feeds.io.opcua_connection import CHECK_S, POLL_S, SESSION_MS, OpcUaFeed
from shoal.agent.feeds.io.opcua_security import OpcUaSettings
from shoal.agent.serving.labels import number
from shoal.errors import LinkError, SettingError

#: Seconds between two signs of life of a subscription; of silence, after which the server is asked.
KEEP_ALIVE_S, SILENT_S = 5.0, 20.0
#: Most monitored items in one request.
ITEMS = 1_000
#: OperationLimits.MaxMonitoredItemsPerCall of ServerCapabilities (OPC UA part 5, 6.3.11).
_LIMIT = 11_714


class NodeTag(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One value. node: its id, such as "nsu=urn:plant;s=Press.Temperature"."""

    name: str
    node: str


class OpcUaSourceSettings(OpcUaSettings, frozen=True, kw_only=True):
    """Values of an OPC UA server, subscribed to. Needs shoal[agent-opcua].

    tags       tables of name and node, such as "nsu=urn:plant;s=Press.Temperature"; an index
               ("ns=2") may name another namespace after the server's next start
    every_s    seconds between two frames; 0 for a frame at each change, with the source's time
    period_ms  sampling and publishing interval of the subscription
    asset      name of what the server measures
    """

    tags: Annotated[list[NodeTag], msgspec.Meta(min_length=1, max_length=10_000)]
    every_s: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    period_ms: Annotated[float, msgspec.Meta(gt=0)] = 500.0
    asset: str = ""


class OpcUaSource(OpcUaFeed):
    """One subscription with every tag; a tag's StatusCode is its quality."""

    Settings = OpcUaSourceSettings

    def __init__(self, settings: OpcUaSourceSettings, context: Context, emit: Emit) -> None:
        names = {tag.name: tag.node for tag in settings.tags}
        super().__init__(settings, context, f"agent.toml: sources.{context.name}.tags", names)
        self._settings, self._emit = settings, emit
        if len(names) < len(settings.tags):
            raise SettingError(f"agent.toml: sources.{context.name}.tags has a name twice")
        self._by_node: dict[Any, list[str]] = {}
        self._latest, self._changed, self._lost = LatestValues(), False, ""
        self._probed_s = -math.inf

    def datachange_notification(self, node: Any, _: Any, data: Any) -> None:
        """A value of the subscription; asyncua calls it by this name, on our event loop."""
        item = data.monitored_item.Value
        stamps = [item.SourceTimestamp, item.ServerTimestamp]
        times = [s.replace(tzinfo=datetime.UTC).timestamp() for s in stamps if _is_time(s)]
        time_s = times[0] if times else self.context.wall()
        raw = item.Value.Value if item.Value is not None else None
        found = number(raw)
        quality = self._quality(item.StatusCode)
        if not math.isfinite(found):
            quality = Quality.BAD
        for name in self._by_node.get(node.nodeid, ()):
            self._latest.put(name, Value(found, time_s, quality))
            self.tally.bad += quality is Quality.BAD
        self._changed = True

    def status_change_notification(self, notification: Any) -> None:
        """The server ends the subscription; asyncua calls it by this name."""
        if not notification.Status.is_good():
            self._lost = f"the server ended the subscription: {notification.Status.name}"

    async def _run(self, client: Any, stopping: threading.Event) -> None:
        settings, clock = self._settings, self.context.monotonic
        self._latest, self._changed, self._lost = LatestValues(list(self._refs)), False, ""
        self._by_node = {}
        subscription = await client.create_subscription(self._parameters(), self)
        await self._subscribe(client, subscription, list(self._refs))
        self.tally.came_up()
        due = checked = clock()
        while not stopping.is_set():
            if clock() >= checked + CHECK_S:
                checked = clock()
                await self._check(client, subscription)
            if settings.every_s and clock() >= due:
                due = max(due + settings.every_s, clock())
                self._emit_frame(self.context.wall())
            elif not settings.every_s and self._changed:
                self._emit_frame(None)
            pause = due - clock() if settings.every_s else POLL_S / 10
            await asyncio.sleep(min(POLL_S, max(0.0, pause)))

    def _parameters(self) -> Any:
        """A subscription that says it is alive every KEEP_ALIVE_S, and soon ends without us."""
        period_ms = self._settings.period_ms
        alive = max(1, math.ceil(KEEP_ALIVE_S * 1e3 / period_ms))
        return self._ua.CreateSubscriptionParameters(
            RequestedPublishingInterval=period_ms,
            RequestedLifetimeCount=max(3 * alive, math.ceil(SESSION_MS / period_ms)),
            RequestedMaxKeepAliveCount=alive,
            MaxNotificationsPerPublish=10_000,
        )

    async def _check(self, client: Any, subscription: Any) -> None:
        """Whether connection and subscription live; then try what was refused and is due."""
        await client.check_connection()
        known_s = max(self._last_publish_s(subscription), self.tally.up_since, self._probed_s)
        if not self._lost and self.context.monotonic() > known_s + SILENT_S:
            await self._probe(client, subscription)
        if self._lost:
            raise LinkError(f"{self._server.url}: {self._lost}")
        due = self._retries.due(self.context.monotonic())
        if due:
            self._namespaces = list(await client.get_namespace_array())
            await self._subscribe(client, subscription, due)

    def _last_publish_s(self, subscription: Any) -> float:
        """When the subscription was last heard of, by our monotonic clock."""
        last = subscription.last_publish_at
        now = self.context.monotonic()
        return -math.inf if last is None else now - (time.monotonic() - last)

    async def _probe(self, client: Any, subscription: Any) -> None:
        """Ask the server for a subscription that is silent: it may have dropped it unsaid."""
        self._probed_s = self.context.monotonic()
        client.uaclient.ensure_publish_loop()
        ask = self._ua.SetPublishingModeParameters(
            PublishingEnabled=True, SubscriptionIds=[subscription.subscription_id]
        )
        (code,) = await client.uaclient.set_publishing_mode(ask)
        if not code.is_good():
            self._lost = f"the server has no subscription any more: {code.name}"

    async def _subscribe(self, client: Any, subscription: Any, names: list[str]) -> None:
        """Subscribe to tags, as many at once as the server takes; each refused one has failed."""
        wanted: dict[Any, list[str]] = {}
        for name, node in self._nodes(client, names).items():
            known = self._by_node.get(node.nodeid)
            if known is not None:
                known.append(name)
                self._worked(name)
            else:
                wanted.setdefault(node.nodeid, []).append(name)
        pending, most = list(wanted.items()), await self._most(client)
        while pending:
            batch, pending = pending[:most], pending[most:]
            self._by_node |= dict(batch)  # before the first notification
            try:
                results = await subscription.subscribe_data_change(
                    [client.get_node(node) for node, _ in batch],
                    sampling_interval=self._settings.period_ms,
                )
            except self._ua.uaerrors.BadTooManyOperations:
                if len(batch) == 1:
                    raise
                most, pending = len(batch) // 2, batch + pending
                continue
            for (node, tags), result in zip(batch, results, strict=True):
                self._subscribed(node, tags, result)

    async def _most(self, client: Any) -> int:
        """Items of one request, by the server's own limit; 0 there means none."""
        limit = (
            self._ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxMonitoredItemsPerCall
        )
        try:
            most = int(await client.get_node(self._ua.NodeId(limit)).read_value())
        except (self._ua.UaError, TypeError, ValueError):
            return ITEMS
        return min(most, ITEMS) if most > 0 else ITEMS

    def _subscribed(self, node: Any, tags: list[str], result: Any) -> None:
        is_refused = isinstance(result, self._ua.StatusCode) and not result.is_good()
        if is_refused:
            del self._by_node[node]
        for name in tags:
            if is_refused:
                self._failed(name, result.name)
            else:
                self._worked(name)

    def _emit_frame(self, time_s: float | None) -> None:
        self._changed = False
        frame = self._latest.frame(self._settings.asset)
        frame = frame if time_s is None else frame._replace(time_s=time_s)
        self.tally.gave(frame)
        self._emit(frame)

    def _quality(self, code: Any) -> Quality:
        if code is None or code.is_good():
            return Quality.GOOD
        return Quality.BAD if code.is_bad() else Quality.UNCERTAIN


def _is_time(stamp: datetime.datetime | None) -> bool:
    """Whether a time was set: servers send 1601, the year 1 or 9999 for none."""
    return stamp is not None and 1970 <= stamp.year < 2100
