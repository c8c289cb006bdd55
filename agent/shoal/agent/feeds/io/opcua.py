"""Source and sink `opcua`: nodes of a server, subscribed to; predictions written to nodes."""

import asyncio
import collections
import datetime
import logging
import math
import threading
from typing import Annotated, Any

import msgspec

from shoal.agent.feeds.frames import LatestValues, Prediction, Quality, Value
from shoal.agent.feeds.io import opcua_security
from shoal.agent.feeds.io.connection import QueuedSink, ReconnectingFeed
from shoal.agent.feeds.io.interface import Context, Emit
from shoal.agent.feeds.io.opcua_security import OpcUaSettings
from shoal.agent.host.faults import Fault
from shoal.agent.host.optional_libraries import needs
from shoal.agent.serving.labels import number
from shoal.errors import LinkError, SettingError

#: Seconds between two checks of the connection, and of `stopping`.
CHECK_S, POLL_S = 1.0, 0.1
#: The library's loggers that repeat our log lines.
_NOISY_LOGGERS = ("asyncua.client", "asyncua.uaprotocol", "asyncua.common", "asyncua.crypto")


class NodeTag(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One value. node: its id, such as "ns=2;s=Press.Temperature"."""

    name: str
    node: str


class OpcUaSourceSettings(OpcUaSettings, frozen=True, kw_only=True):
    """Values of an OPC UA server, subscribed to. Needs shoal[agent-opcua].

    tags       tables of name and node, such as "ns=2;s=Press.Temperature"
    every_s    seconds between two frames; 0 for a frame at each change, with the source's time
    period_ms  sampling and publishing interval of the subscription
    asset      name of what the server measures
    """

    tags: Annotated[list[NodeTag], msgspec.Meta(min_length=1, max_length=10_000)]
    every_s: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    period_ms: Annotated[float, msgspec.Meta(gt=0)] = 500.0
    asset: str = ""


class _OpcUaFeed(ReconnectingFeed):
    """Base of source and sink: each connection runs on an event loop of its own."""

    def __init__(self, settings: OpcUaSettings, context: Context) -> None:
        super().__init__(context, settings.retry_s)
        self._server, self._library = settings, needs("asyncua")
        self._ua = self._library.ua
        for name in _NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if not settings.url.startswith("opc.tcp://"):
            raise SettingError(f"{settings.url!r} is no address", "write opc.tcp://HOST:PORT")
        opcua_security.check(settings, f"agent.toml: {context.name}")

    def serve(self, stopping: threading.Event) -> None:
        """Run one connection."""
        asyncio.run(self._connection(stopping))

    async def _connection(self, stopping: threading.Event) -> None:
        settings = self._server
        client = self._library.Client(settings.url, timeout=settings.timeout_s)
        if settings.username:
            client.set_user(settings.username)
            client.set_password(settings.password)
        if settings.security:
            now = datetime.datetime.fromtimestamp(self.context.wall(), datetime.UTC)
            await opcua_security.secure(client, settings, self.context.folder, now)
        try:
            await client.connect()
            await self._run(client, stopping)
        except self._ua.UaError as error:
            hint = (
                "does it require other security?" if "No matching endpoints" in str(error) else ""
            )
            raise LinkError(f"{settings.url}: {type(error).__name__}: {error}", hint) from error
        except TimeoutError as error:
            if not settings.security:
                raise
            raise LinkError(
                f"{settings.url}: no response in time",
                "is the server running, and server_certificate its own?",
            ) from error
        finally:
            await _disconnect(client)

    async def _run(self, client: Any, stopping: threading.Event) -> None:
        """Use a connection, until `stopping`."""
        raise NotImplementedError

    def _nodes(self, client: Any, names: dict[str, str]) -> dict[str, Any]:
        """Name -> node; SettingError for an invalid id."""
        found = {}
        for name, node in names.items():
            try:
                found[name] = client.get_node(node)
            except self._ua.UaError as error:
                raise SettingError(
                    f"{self.context.name}: {name} has the node {node!r}", "write it as ns=2;s=Name"
                ) from error
        return found


class OpcUaSource(_OpcUaFeed):
    """One subscription with every tag; a tag's StatusCode is its quality."""

    Settings = OpcUaSourceSettings

    def __init__(self, settings: OpcUaSourceSettings, context: Context, emit: Emit) -> None:
        super().__init__(settings, context)
        self._settings, self._emit = settings, emit
        self._names = {tag.name: tag.node for tag in settings.tags}
        if len(self._names) < len(settings.tags):
            raise SettingError(f"agent.toml: sources.{context.name}.tags has a name twice")
        self._by_node: dict[Any, str] = {}
        self._latest, self._changed = LatestValues(), False

    def datachange_notification(self, node: Any, _: Any, data: Any) -> None:
        """A value of the subscription; asyncua calls it by this name, on our event loop."""
        item = data.monitored_item.Value
        name = self._by_node[node.nodeid]
        stamp = item.SourceTimestamp or item.ServerTimestamp
        time_s = stamp.replace(tzinfo=datetime.UTC).timestamp() if stamp else self.context.wall()
        raw = item.Value.Value if item.Value is not None else None
        found = number(raw)
        quality = self._quality(item.StatusCode)
        if not math.isfinite(found):
            quality = Quality.BAD
        self._latest.put(name, Value(found, time_s, quality))
        self.tally.bad += quality is Quality.BAD
        self._changed = True

    async def _run(self, client: Any, stopping: threading.Event) -> None:
        settings, clock = self._settings, self.context.monotonic
        self._latest, self._changed = LatestValues(list(self._names)), False
        await self._subscribe(client)
        self.tally.came_up()
        due = checked = clock()
        while not stopping.is_set():
            if clock() >= checked + CHECK_S:
                checked = clock()
                await client.check_connection()
            if settings.every_s and clock() >= due:
                due = max(due + settings.every_s, clock())
                self._emit_frame(self.context.wall())
            elif not settings.every_s and self._changed:
                self._emit_frame(None)
            pause = due - clock() if settings.every_s else POLL_S / 10
            await asyncio.sleep(min(POLL_S, max(0.0, pause)))

    async def _subscribe(self, client: Any) -> None:
        nodes = self._nodes(client, self._names)
        self._by_node = {node.nodeid: name for name, node in nodes.items()}
        subscription = await client.create_subscription(self._settings.period_ms, self)
        results = await subscription.subscribe_data_change(
            list(nodes.values()), sampling_interval=self._settings.period_ms
        )
        for (name, node), result in zip(self._names.items(), results, strict=True):
            if isinstance(result, self._ua.StatusCode) and not result.is_good():
                what = f"{self.context.name}: {name} ({node}): {result.name}"
                self.context.fault(Fault("bad-tag", what))
                self.tally.bad += 1

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


class OpcUaSinkSettings(OpcUaSettings, frozen=True, kw_only=True):
    """Predictions written to nodes of an OPC UA server. Needs shoal[agent-opcua].

    nodes  value ("label", "score", "score/CLASS", "value", "release") -> node id
    asset  asset with predictions to write; "" for every one
    keep   predictions queued while the server is away; beyond it the oldest are dropped
    """

    nodes: dict[str, str]
    asset: str = ""
    keep: int = 1_000


class OpcUaSink(_OpcUaFeed, QueuedSink):
    """Writes each prediction with its time and quality; reports and skips a node that refuses."""

    Settings = OpcUaSinkSettings

    def __init__(self, settings: OpcUaSinkSettings, context: Context) -> None:
        super().__init__(settings, context)
        if not settings.nodes:
            raise SettingError(f"agent.toml: sinks.{context.name}.nodes is empty")
        self._settings = settings
        self._queue = collections.deque[Prediction](maxlen=max(1, settings.keep))
        self._types: dict[str, Any] = {}

    def write(self, prediction: Prediction) -> None:
        """Queue one of the asset."""
        if self._settings.asset in ("", prediction.asset):
            super().write(prediction)

    async def _run(self, client: Any, stopping: threading.Event) -> None:
        nodes = self._nodes(client, self._settings.nodes)
        self._types = {name: await self._type_of(name, node) for name, node in nodes.items()}
        self.tally.came_up()
        checked = self.context.monotonic()
        while not stopping.is_set():
            if self._queue:
                await self._deliver(client, nodes, self._queue.popleft())
                continue
            if self.context.monotonic() >= checked + CHECK_S:
                checked = self.context.monotonic()
                await client.check_connection()
            await asyncio.sleep(POLL_S / 5)

    async def _deliver(self, client: Any, nodes: dict[str, Any], prediction: Prediction) -> None:
        """Write one; if the connection breaks meanwhile, it is first in the next one."""
        try:
            await self._write(client, nodes, prediction)
        except (OSError, TimeoutError, self._ua.UaError):
            self._queue.appendleft(prediction)
            raise

    async def _type_of(self, name: str, node: Any) -> Any:
        """The node's type; None for a node that does not exist, reported once."""
        try:
            return await node.read_data_type_as_variant_type()
        except self._ua.UaStatusCodeError as error:
            self._report_tag(name, str(error))
            return None

    async def _write(self, client: Any, nodes: dict[str, Any], prediction: Prediction) -> None:
        values = prediction.values | {"release": prediction.release}
        wanted = {}
        for name in (n for n in nodes if n in values and self._types[n] is not None):
            try:
                wanted[name] = self._value(self._types[name], values[name], prediction)
            except ValueError as error:
                self._report_tag(name, str(error))
        if not wanted:
            return
        codes = await client.uaclient.write_attributes(
            [nodes[n].nodeid for n in wanted], list(wanted.values()), self._ua.AttributeIds.Value
        )
        for name, code in zip(wanted, codes, strict=True):
            if not code.is_good():
                self._report_tag(name, code.name)

    def _report_tag(self, name: str, why: str) -> None:
        self.tally.bad += 1
        where = f"{self.context.name}: {name} ({self._settings.nodes[name]})"
        self.context.fault(Fault("bad-tag", f"{where}: {why}"))

    def _value(self, kind: Any, value: float | str, prediction: Prediction) -> Any:
        """The value converted to the node's type, with time and quality."""
        ua = self._ua
        good, uncertain, bad = (
            ua.StatusCodes.Good, ua.StatusCodes.UncertainLastUsableValue, ua.StatusCodes.Bad,
        )  # fmt: skip
        codes = {Quality.GOOD: good, Quality.UNCERTAIN: uncertain, Quality.BAD: bad}
        return ua.DataValue(
            Value=ua.Variant(_cast(ua, kind, value), kind),
            StatusCode=ua.StatusCode(codes[prediction.quality]),
            SourceTimestamp=datetime.datetime.fromtimestamp(prediction.time_s, datetime.UTC),
        )


def _cast(ua: Any, kind: Any, value: float | str) -> Any:
    """A value converted to a variant type; ValueError for text where a number is needed."""
    if kind == ua.VariantType.String:
        return str(value)
    found = number(value)
    if not math.isfinite(found):
        raise ValueError(f"{str(value)[:40]!r} is no {kind.name}")
    if kind == ua.VariantType.Boolean:
        return bool(found)
    return found if kind in (ua.VariantType.Float, ua.VariantType.Double) else round(found)


async def _disconnect(client: Any) -> None:
    """Close the session cleanly if the server still responds."""
    try:
        await asyncio.wait_for(client.disconnect(), 2.0)
    except Exception as error:  # noqa: BLE001 - the connection is closed in any case
        logging.getLogger(__name__).debug("closing an OPC UA session: %s", error)
