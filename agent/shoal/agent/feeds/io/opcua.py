"""OPC UA: values of a server by one subscription a connection, and predictions written to nodes."""

import asyncio
import collections
import datetime
import logging
import math
import threading
from typing import Annotated, Any

import msgspec

from shoal.agent.feeds.frames import FeedHealth, Latest, Prediction, Quality, Value
from shoal.agent.feeds.io import opcua_security
from shoal.agent.feeds.io.connection import Connecting
from shoal.agent.feeds.io.interface import Context, Emit, ServerSettings, Touched
from shoal.agent.host.faults import Fault
from shoal.agent.host.optional_libraries import needs
from shoal.agent.serving.labels import number
from shoal.errors import LinkError, SettingError

#: Seconds between two looks at whether the connection stands, and at whether to stop.
CHECK_S, LOOK_S = 1.0, 0.1
#: Library's loggers that tell again what we tell.
_TALKATIVE = ("asyncua.client", "asyncua.uaprotocol", "asyncua.common", "asyncua.crypto")


class OpcUaSettings(ServerSettings, frozen=True, kw_only=True):
    """An OPC UA server. Needs shoal[agent-opcua].

    url                 opc.tcp://host:port/path
    username, password  "" for an anonymous session
    security            "Basic256Sha256", "Aes128Sha256RsaOaep" or "Aes256Sha256RsaPss": signed and
                        encrypted; "" for neither
    certificate, key    with security: this client's, RSA, PEM or DER, seen from the agent's folder
    server_certificate  with security: the server's own, or nobody's word for it is believed
    timeout_s           seconds until a request has failed
    """

    url: str
    username: str = ""
    password: str = ""
    security: str = ""
    certificate: str = ""
    key: str = ""
    server_certificate: str = ""
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 4.0

    def touches(self) -> Touched:
        """It reads its certificates."""
        return Touched(reads=(self.certificate, self.key, self.server_certificate))


class NodeTag(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One value. node: such as "ns=2;s=Press.Temperature"."""

    name: str
    node: str


class OpcUaSourceSettings(OpcUaSettings, frozen=True, kw_only=True):
    """Values of an OPC UA server, subscribed to. Needs shoal[agent-opcua].

    tags       tables of name and node, such as "ns=2;s=Press.Temperature"
    every_s    seconds from one frame to the next; 0 for one whenever something changed, at the
               source's time
    period_ms  of the subscription: how often the server looks and tells
    asset      what the server watches
    """

    tags: Annotated[list[NodeTag], msgspec.Meta(min_length=1, max_length=10_000)]
    every_s: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    period_ms: Annotated[float, msgspec.Meta(gt=0)] = 500.0
    asset: str = ""


class _Session(Connecting):
    """A connection to a server, each on an event loop of its own."""

    def __init__(self, settings: OpcUaSettings, context: Context) -> None:
        super().__init__(context, settings.retry_s)
        self._about, self._library = settings, needs("asyncua")
        self._ua = self._library.ua
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if not settings.url.startswith("opc.tcp://"):
            raise SettingError(f"{settings.url!r} is no address", "write opc.tcp://HOST:PORT")
        opcua_security.check(settings, f"agent.toml: {context.name}")

    def serve(self, stopping: threading.Event) -> None:
        """One connection, from its beginning to its end."""
        asyncio.run(self._connection(stopping))

    async def _connection(self, stopping: threading.Event) -> None:
        settings = self._about
        client = self._library.Client(settings.url, timeout=settings.timeout_s)
        if settings.username:
            client.set_user(settings.username)
            client.set_password(settings.password)
        if settings.security:
            now = datetime.datetime.fromtimestamp(self.context.wall(), datetime.UTC)
            await opcua_security.secure(client, settings, self.context.folder, now)
        try:
            await client.connect()
            await self._talk(client, stopping)
        except self._ua.UaError as error:
            hint = "does it want other security?" if "No matching endpoints" in str(error) else ""
            raise LinkError(f"{settings.url}: {type(error).__name__}: {error}", hint) from error
        except TimeoutError as error:
            if not settings.security:
                raise
            raise LinkError(
                f"{settings.url}: no answer in time",
                "is the server running, and server_certificate its own?",
            ) from error
        finally:
            await _hang_up(client)

    async def _talk(self, client: Any, stopping: threading.Event) -> None:
        """What to do with a connection, until `stopping`."""
        raise NotImplementedError

    def _nodes(self, client: Any, names: dict[str, str]) -> dict[str, Any]:
        """Name -> node; SettingError for an id that is none."""
        found = {}
        for name, node in names.items():
            try:
                found[name] = client.get_node(node)
            except self._ua.UaError as error:
                raise SettingError(
                    f"{self.context.name}: {name} has the node {node!r}", "write it as ns=2;s=Name"
                ) from error
        return found


class OpcUaSource(_Session):
    """One subscription with every tag; a tag's StatusCode is its quality."""

    Settings = OpcUaSourceSettings

    def __init__(self, settings: OpcUaSourceSettings, context: Context, emit: Emit) -> None:
        super().__init__(settings, context)
        self._settings, self._emit = settings, emit
        self._names = {tag.name: tag.node for tag in settings.tags}
        if len(self._names) < len(settings.tags):
            raise SettingError(f"agent.toml: sources.{context.name}.tags has a name twice")
        self._by_node: dict[Any, str] = {}
        self._latest, self._changed = Latest(), False

    def datachange_notification(self, node: Any, _: Any, data: Any) -> None:
        """The subscription's word: asyncua calls it by this name, on our event loop."""
        said = data.monitored_item.Value
        name = self._by_node[node.nodeid]
        stamp = said.SourceTimestamp or said.ServerTimestamp
        time_s = stamp.replace(tzinfo=datetime.UTC).timestamp() if stamp else self.context.wall()
        raw = said.Value.Value if said.Value is not None else None
        found = number(raw)
        quality = self._quality(said.StatusCode)
        if not math.isfinite(found):
            quality = Quality.BAD
        self._latest.put(name, Value(found, time_s, quality))
        self.tally.bad += quality is Quality.BAD
        self._changed = True

    async def _talk(self, client: Any, stopping: threading.Event) -> None:
        settings, clock = self._settings, self.context.monotonic
        self._latest, self._changed = Latest(list(self._names)), False
        await self._subscribe(client)
        self.tally.came_up()
        due = checked = clock()
        while not stopping.is_set():
            if clock() >= checked + CHECK_S:
                checked = clock()
                await client.check_connection()
            if settings.every_s and clock() >= due:
                due = max(due + settings.every_s, clock())
                self._give(self.context.wall())
            elif not settings.every_s and self._changed:
                self._give(None)
            pause = due - clock() if settings.every_s else LOOK_S / 10
            await asyncio.sleep(min(LOOK_S, max(0.0, pause)))

    async def _subscribe(self, client: Any) -> None:
        nodes = self._nodes(client, self._names)
        self._by_node = {node.nodeid: name for name, node in nodes.items()}
        subscription = await client.create_subscription(self._settings.period_ms, self)
        said = await subscription.subscribe_data_change(
            list(nodes.values()), sampling_interval=self._settings.period_ms
        )
        for (name, node), answer in zip(self._names.items(), said, strict=True):
            if isinstance(answer, self._ua.StatusCode) and not answer.is_good():
                what = f"{self.context.name}: {name} ({node}): {answer.name}"
                self.context.fault(Fault("bad-tag", what))
                self.tally.bad += 1

    def _give(self, time_s: float | None) -> None:
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
    asset  whose predictions are written; "" for every one
    keep   predictions that wait while the server is away; then the oldest go
    """

    nodes: dict[str, str]
    asset: str = ""
    keep: int = 1_000


class OpcUaSink(_Session):
    """Writes each prediction with its time and quality. A node that refuses is said and skipped."""

    Settings = OpcUaSinkSettings

    def __init__(self, settings: OpcUaSinkSettings, context: Context) -> None:
        super().__init__(settings, context)
        if not settings.nodes:
            raise SettingError(f"agent.toml: sinks.{context.name}.nodes is empty")
        self._settings = settings
        self._queue = collections.deque[Prediction](maxlen=max(1, settings.keep))
        self._types: dict[str, Any] = {}

    def write(self, prediction: Prediction) -> None:
        """Queue one; the oldest goes when there are too many."""
        if self._settings.asset in ("", prediction.asset):
            self.tally.dropped += len(self._queue) == self._queue.maxlen
            self._queue.append(prediction)
            self.tally.count += 1

    def health(self) -> FeedHealth:
        """How it is doing."""
        self.tally.waiting = len(self._queue)
        return super().health()

    async def _talk(self, client: Any, stopping: threading.Event) -> None:
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
            await asyncio.sleep(LOOK_S / 5)

    async def _deliver(self, client: Any, nodes: dict[str, Any], prediction: Prediction) -> None:
        """Write one; it is first in the next connection when this one breaks meanwhile."""
        try:
            await self._write(client, nodes, prediction)
        except (OSError, TimeoutError, self._ua.UaError):
            self._queue.appendleft(prediction)
            raise

    async def _type_of(self, name: str, node: Any) -> Any:
        """The type that the node wants; None for a node that is not there, said once."""
        try:
            return await node.read_data_type_as_variant_type()
        except self._ua.UaStatusCodeError as error:
            self._refused(name, str(error))
            return None

    async def _write(self, client: Any, nodes: dict[str, Any], prediction: Prediction) -> None:
        values = prediction.values | {"release": prediction.release}
        wanted = {}
        for name in (n for n in nodes if n in values and self._types[n] is not None):
            try:
                wanted[name] = self._value(self._types[name], values[name], prediction)
            except ValueError as error:
                self._refused(name, str(error))
        if not wanted:
            return
        said = await client.uaclient.write_attributes(
            [nodes[n].nodeid for n in wanted], list(wanted.values()), self._ua.AttributeIds.Value
        )
        for name, code in zip(wanted, said, strict=True):
            if not code.is_good():
                self._refused(name, code.name)

    def _refused(self, name: str, why: str) -> None:
        self.tally.bad += 1
        where = f"{self.context.name}: {name} ({self._settings.nodes[name]})"
        self.context.fault(Fault("bad-tag", f"{where}: {why}"))

    def _value(self, kind: Any, value: float | str, prediction: Prediction) -> Any:
        """The value as the node's type has it, with time and quality."""
        ua = self._ua
        good, doubt, bad = (
            ua.StatusCodes.Good, ua.StatusCodes.UncertainLastUsableValue, ua.StatusCodes.Bad,
        )  # fmt: skip
        codes = {Quality.GOOD: good, Quality.UNCERTAIN: doubt, Quality.BAD: bad}
        return ua.DataValue(
            Value=ua.Variant(_cast(ua, kind, value), kind),
            StatusCode=ua.StatusCode(codes[prediction.quality]),
            SourceTimestamp=datetime.datetime.fromtimestamp(prediction.time_s, datetime.UTC),
        )


def _cast(ua: Any, kind: Any, value: float | str) -> Any:
    """A value as a variant of this kind has it; ValueError for text where a number is wanted."""
    if kind == ua.VariantType.String:
        return str(value)
    found = number(value)
    if not math.isfinite(found):
        raise ValueError(f"{str(value)[:40]!r} is no {kind.name}")
    if kind == ua.VariantType.Boolean:
        return bool(found)
    return found if kind in (ua.VariantType.Float, ua.VariantType.Double) else round(found)


async def _hang_up(client: Any) -> None:
    """Say goodbye as far as the other side still listens."""
    try:
        await asyncio.wait_for(client.disconnect(), 2.0)
    except Exception as error:  # noqa: BLE001 - it is over in any case
        logging.getLogger(__name__).debug("goodbye to an OPC UA server: %s", error)
