"""An asyncua server on a thread, whose namespaces, nodes and limits a test changes."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from asyncua import Server, ua

from ports import free_port
from waiting import PATIENCE_S

URI = "urn:plant"
_T = TypeVar("_T")


class Plant:
    """A server; `start` after `stop` is a restart on the same port, without nodes.

    most   monitored items in one request; 0 for no limit
    asked  items of each request that was taken
    """

    def __init__(self) -> None:
        self.port, self.most = free_port(), 0
        self.asked: list[int] = []
        self._loop = asyncio.new_event_loop()
        self.server: Any = None
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"opc.tcp://127.0.0.1:{self.port}/plant"

    def run(self, work: Awaitable[_T]) -> _T:
        """Run a coroutine on the server's loop; a start takes seconds of CPU on a busy machine."""

        async def waited() -> _T:
            return await work

        return asyncio.run_coroutine_threadsafe(waited(), self._loop).result(3 * PATIENCE_S)

    def start(self, namespaces: Sequence[str] = (URI,)) -> None:
        self.run(self._start(namespaces))

    def stop(self) -> None:
        if self.server is not None:
            self.run(self.server.stop())
        self.server = None

    def add(self, name: str, value: float, uri: str = URI) -> None:
        """A variable, named "s=NAME" in its namespace."""
        self.run(self._add(name, value, uri))

    def put(self, name: str, value: Any, uri: str = URI) -> None:
        async def write() -> None:
            index = await self.server.get_namespace_index(uri)
            await self.server.get_node(ua.NodeId(name, index)).write_value(value)

        self.run(write())

    def read(self, name: str, uri: str = URI) -> Any:
        async def value() -> Any:
            index = await self.server.get_namespace_index(uri)
            return await self.server.get_node(ua.NodeId(name, index)).read_value()

        return self.run(value())

    def index(self, uri: str = URI) -> int:
        """Where the server has put a namespace."""
        found: int = self.run(self.server.get_namespace_index(uri))
        return found

    def session_timeouts(self) -> list[float]:
        """Seconds that each session may be without its client."""
        sessions = self.server.iserver._external_sessions.values()
        return [session.session_timeout for session in sessions]

    def drop_subscriptions(self) -> None:
        """End every subscription, without a word to its client."""

        async def drop() -> None:
            service = self.server.iserver.subscription_service
            for subscription in list(service.subscriptions.values()):
                await subscription.stop()
            service.subscriptions.clear()

        self.run(drop())

    async def _start(self, namespaces: Sequence[str]) -> None:
        self.server = Server()
        await self.server.init()
        self.server.set_endpoint(self.url)
        for uri in namespaces:
            await self.server.register_namespace(uri)
        service = self.server.iserver.subscription_service
        service.create_monitored_items = self._limited(service.create_monitored_items)
        await self.server.start()

    def _limited(self, create: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def limited(params: Any) -> Any:
            if self.most and len(params.ItemsToCreate) > self.most:
                raise ua.uaerrors.BadTooManyOperations
            self.asked.append(len(params.ItemsToCreate))
            return await create(params)

        return limited

    async def _add(self, name: str, value: float, uri: str) -> None:
        index = await self.server.get_namespace_index(uri)
        node = await self.server.nodes.objects.add_variable(ua.NodeId(name, index), name, value)
        await node.set_writable()
