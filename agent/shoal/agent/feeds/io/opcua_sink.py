"""Sink `opcua`: predictions written to nodes of a server."""

import asyncio
import collections
import datetime
import math
import threading
from typing import Any

from shoal.agent.feeds.frames import Prediction, Quality
from shoal.agent.feeds.io.connection import QueuedSink
from shoal.agent.feeds.io.interface import Context
from shoal.agent.feeds.io.opcua_connection import CHECK_S, POLL_S, OpcUaFeed
from shoal.agent.feeds.io.opcua_security import OpcUaSettings
from shoal.agent.serving.labels import number
from shoal.errors import SettingError


class OpcUaSinkSettings(OpcUaSettings, frozen=True, kw_only=True):
    """Predictions written to nodes of an OPC UA server. Needs shoal[agent-opcua].

    nodes  value ("label", "score", "score/CLASS", "value", "release") -> node id, such as
           "nsu=urn:plant;s=Quality.Label"
    asset  asset with predictions to write; "" for every one
    keep   predictions queued while the server is away; beyond it the oldest are dropped
    """

    nodes: dict[str, str]
    asset: str = ""
    keep: int = 1_000


class OpcUaSink(OpcUaFeed, QueuedSink):
    """Writes each prediction with its time and quality; reports and skips a node that refuses."""

    Settings = OpcUaSinkSettings

    def __init__(self, settings: OpcUaSinkSettings, context: Context) -> None:
        where = f"agent.toml: sinks.{context.name}.nodes"
        super().__init__(settings, context, where, settings.nodes)
        if not settings.nodes:
            raise SettingError(f"{where} is empty")
        self._settings = settings
        self._queue = collections.deque[Prediction](maxlen=max(1, settings.keep))
        self._types: dict[str, Any] = {}

    def write(self, prediction: Prediction) -> None:
        """Queue one of the asset."""
        if self._settings.asset in ("", prediction.asset):
            super().write(prediction)

    async def _run(self, client: Any, stopping: threading.Event) -> None:
        nodes, self._types = dict[str, Any](), {}
        await self._find(client, nodes, list(self._refs))
        self.tally.came_up()
        checked = self.context.monotonic()
        while not stopping.is_set():
            if self.context.monotonic() >= checked + CHECK_S:
                checked = self.context.monotonic()
                await client.check_connection()
                if due := self._retries.due(checked):
                    self._namespaces = list(await client.get_namespace_array())
                    await self._find(client, nodes, due)
            if self._queue:
                await self._deliver(client, nodes, self._queue.popleft())
            else:
                await asyncio.sleep(POLL_S / 5)

    async def _find(self, client: Any, nodes: dict[str, Any], names: list[str]) -> None:
        """Add the nodes of these names that exist, and their types; the others have failed."""
        for name, node in self._nodes(client, names).items():
            try:
                self._types[name] = await node.read_data_type_as_variant_type()
            except self._ua.UaStatusCodeError as error:
                self._failed(name, str(error))
            else:
                nodes[name] = node
                self._worked(name)

    async def _deliver(self, client: Any, nodes: dict[str, Any], prediction: Prediction) -> None:
        """Write one; if the connection breaks meanwhile, it is first in the next one."""
        try:
            await self._write(client, nodes, prediction)
        except (OSError, TimeoutError, self._ua.UaError):
            self._queue.appendleft(prediction)
            raise

    async def _write(self, client: Any, nodes: dict[str, Any], prediction: Prediction) -> None:
        values = prediction.values | {"release": prediction.release}
        wanted = {}
        for name in (n for n in nodes if n in values):
            try:
                wanted[name] = self._value(self._types[name], values[name], prediction)
            except ValueError as error:
                self._unwritten(name, str(error))
        if not wanted:
            return
        codes = await client.uaclient.write_attributes(
            [nodes[n].nodeid for n in wanted], list(wanted.values()), self._ua.AttributeIds.Value
        )
        for name, code in zip(wanted, codes, strict=True):
            if code.is_good():
                self._faults.worked(name)
            else:
                self._unwritten(name, code.name)

    def _unwritten(self, name: str, why: str) -> None:
        self.tally.bad += 1
        self._faults.failed(name, self._ids[name], why)

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
