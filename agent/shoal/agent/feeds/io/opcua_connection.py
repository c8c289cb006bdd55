"""Base of source and sink `opcua`: connection, namespaces, and nodes that are refused."""

import asyncio
import datetime
import logging
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from shoal.agent.feeds.io import opcua_security
from shoal.agent.feeds.io.connection import ReconnectingFeed
from shoal.agent.feeds.io.interface import Context
from shoal.agent.feeds.io.opcua_security import OpcUaSettings
from shoal.agent.feeds.opcua_nodes import NodeRef, parse_node
from shoal.agent.feeds.retries import Retries
from shoal.agent.feeds.tag_faults import TagFaults
from shoal.agent.host.faults import Fault
from shoal.agent.host.optional_libraries import needs
from shoal.errors import LinkError, SettingError

#: Seconds between two checks of the connection, and of `stopping`.
CHECK_S, POLL_S = 1.0, 0.1
#: Milliseconds after which a server drops a session that we could not close: small ones have few.
SESSION_MS = 60_000.0
#: Seconds until a refused node is tried again: the first, doubled up to the longest.
RETRY_S, LONGEST_RETRY_S = 5.0, 600.0
#: The library's loggers that repeat our log lines.
_NOISY_LOGGERS = ("asyncua.client", "asyncua.uaprotocol", "asyncua.common", "asyncua.crypto")


class OpcUaFeed(ReconnectingFeed):
    """Base of source and sink: each connection runs on an event loop of its own."""

    def __init__(
        self, settings: OpcUaSettings, context: Context, where: str, nodes: Mapping[str, str]
    ) -> None:
        super().__init__(context, settings.retry_s)
        self._refs = {name: _parse(f"{where}: {name}", node) for name, node in nodes.items()}
        self._ids, self._namespaces = dict(nodes), list[str]()
        self._faults = TagFaults(context.name, len(nodes), context.fault)
        self._retries = Retries(RETRY_S, LONGEST_RETRY_S)
        self._first_uris: dict[int, str] = {}
        self.tally.partly = lambda: self._faults.summary
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
        client.session_timeout = SESSION_MS
        if settings.username:
            client.set_user(settings.username)
            client.set_password(settings.password)
        if settings.security:
            now = datetime.datetime.fromtimestamp(self.context.wall(), datetime.UTC)
            await opcua_security.secure(client, settings, self.context.folder, now)
        try:
            await client.connect()
            self._retries = Retries(RETRY_S, LONGEST_RETRY_S)
            await self._read_namespaces(client)
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

    async def _read_namespaces(self, client: Any) -> None:
        """The server's namespaces; which nodes have their namespace by index is said once."""
        self._namespaces = list(await client.get_namespace_array())
        by_index = [name for name, ref in self._refs.items() if ref.is_by_index]
        if by_index and not self._first_uris:
            name = by_index[0]
            better = self._refs[name].by_uri(self._namespaces) or "nsu=URI;..."
            self.context.fault(
                Fault(
                    "namespace-index",
                    f"{self.context.name}: {len(by_index)} of {len(self._refs)} nodes have their "
                    f"namespace by index, which may change when the server restarts: for {name} "
                    f"write {better!r}",
                )
            )
        for index in {self._refs[name].number for name in by_index}:
            if index < len(self._namespaces):
                self._first_uris.setdefault(index, self._namespaces[index])

    def _nodes(self, client: Any, names: Iterable[str]) -> dict[str, Any]:
        """Name -> node, of those that the server's namespaces resolve; the others have failed."""
        found = {}
        for name in names:
            ref = self._refs[name]
            first = self._first_uris.get(ref.number, "") if ref.is_by_index else ""
            try:
                if first and first not in self._namespaces[ref.number : ref.number + 1]:
                    raise ValueError(f"its namespace {ref.number} is {first!r} no longer")
                found[name] = client.get_node(ref.text(self._namespaces))
            except (ValueError, self._ua.UaError) as error:
                self._failed(name, str(error))
        return found

    def _failed(self, name: str, why: str) -> None:
        """A node cannot be used; it is tried again after a pause."""
        self._faults.failed(name, self._ids[name], why)
        self._retries.failed(name, self.context.monotonic())
        self.tally.bad += 1

    def _worked(self, name: str) -> None:
        self._faults.worked(name)
        self._retries.worked(name)


def _parse(where: str, node: str) -> NodeRef:
    try:
        return parse_node(node)
    except SettingError as error:
        raise SettingError(f"{where}: {error.message}", error.hint) from error


async def _disconnect(client: Any) -> None:
    """Close the session cleanly if the server still responds."""
    try:
        await asyncio.wait_for(client.disconnect(), 2.0)
    except Exception as error:  # noqa: BLE001 - the connection is closed in any case
        logging.getLogger(__name__).debug("closing an OPC UA session: %s", error)
