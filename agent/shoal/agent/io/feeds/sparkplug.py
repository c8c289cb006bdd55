"""The Sparkplug B edge node as a sink: a SCADA host sees predictions as it sees any other tag."""

import collections
import threading
from pathlib import Path

import msgspec

from shoal.agent.faults import Fault
from shoal.agent.frames import FeedHealth, Prediction
from shoal.agent.io.feeds.broker import Broker, BrokerSettings
from shoal.agent.io.feeds.broker import Packet as Message
from shoal.agent.io.feeds.connecting import Connecting
from shoal.agent.io.feeds.feed import Context
from shoal.agent.io.slots import write_durable
from shoal.agent.sparkplug_node import EdgeNode, Packet
from shoal.errors import WireError


class SparkplugSettings(BrokerSettings, frozen=True, kw_only=True):
    """Predictions as metrics of a Sparkplug B edge node: ASSET/MODEL/label, .../score and so on.

    group  of the edge node
    node   its name
    host   id of the primary host, without which predictions are kept; "" for none
    keep   predictions that are kept while broker or host is away, to be told as historical;
           then the oldest go
    """

    group: str
    node: str
    host: str = ""
    keep: int = 10_000


class SparkplugSink(Connecting):
    """Keeps an EdgeNode connected. The node's state is touched by the feed's thread alone."""

    Settings = SparkplugSettings

    def __init__(self, settings: SparkplugSettings, context: Context) -> None:
        super().__init__(context, settings.retry_s)
        self._numbered = context.folder / f"{context.name}.bdseq"
        self._node = EdgeNode(
            settings.group,
            settings.node,
            bd_seq=_read(self._numbered),
            host=settings.host,
            limit=max(1, settings.keep),
        )
        self._inbox = collections.deque[Prediction](maxlen=max(1, settings.keep))
        self._broker = Broker(
            settings,
            context.folder,
            subscriptions=[(topic, 1) for topic in self._node.subscriptions],
            on_message=self._hear,
            on_up=self._came_up,
            before_looking=self._tell,
            before_leaving=self._goodbye,
        )

    def write(self, prediction: Prediction) -> None:
        """Queue one for the feed's thread; the oldest goes when there are too many."""
        self.tally.dropped += len(self._inbox) == self._inbox.maxlen
        self._inbox.append(prediction)
        self.tally.count += 1
        self._broker.wake()

    def health(self) -> FeedHealth:
        """How it is doing; waiting: for broker or host."""
        self.tally.waiting = self._node.waiting + len(self._inbox)
        told = super().health()
        return msgspec.structs.replace(told, dropped=told.dropped + self._node.dropped)

    def serve(self, stopping: threading.Event) -> None:
        """One connection, with a bdSeq of its own."""
        will = self._node.connecting()
        try:
            write_durable(self._numbered, str((self._node.bd_seq + 1) % 256).encode())
        except OSError as error:  # the number may repeat after a restart; that is no reason to stop
            self.context.fault(Fault("storage", f"{self._numbered}: {error.strerror}"))
        try:
            self._broker.serve(stopping, _message(will, 1))
        finally:
            self._node.disconnected()
            self._keep()

    def _goodbye(self) -> None:
        """A clean end says its own death: the broker says a will only when a client vanishes."""
        self._publish(self._node.goodbye())

    def _came_up(self) -> None:
        self.tally.came_up()
        self._publish(self._node.connected(self.context.wall()))

    def _hear(self, topic: str, data: bytes) -> None:
        try:
            self._publish(self._node.heard(topic, data, self.context.wall()))
        except WireError as error:
            self.context.fault(Fault(error.code, f"{self.context.name}, {topic}: {error}"))
        if self._node.forsaken:
            self._broker.end("the primary host went offline")

    def _tell(self) -> None:
        """Every prediction that waits in the inbox."""
        while self._inbox:
            self._publish(self._node.tell(self._inbox.popleft(), self.context.wall()))

    def _keep(self) -> None:
        while self._inbox:
            self._node.keep(self._inbox.popleft())

    def _publish(self, packets: list[Packet]) -> None:
        for packet in packets:
            self._broker.publish(_message(packet, 0))


def _message(packet: Packet, qos: int) -> Message:
    return Message(packet.topic, packet.payload, qos)


def _read(path: Path) -> int:
    """The bdSeq that is next; 0 where none was kept."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
