"""The Sparkplug B edge node as a sink: a SCADA host sees predictions as it sees any other tag."""

import collections
import threading
from pathlib import Path

import msgspec

from shoal.agent.feeds.frames import FeedHealth, Prediction
from shoal.agent.feeds.io.broker import Broker, BrokerSettings
from shoal.agent.feeds.io.broker import Packet as Message
from shoal.agent.feeds.io.connection import Connecting
from shoal.agent.feeds.io.interface import Context
from shoal.agent.feeds.io.prediction_log import Kept
from shoal.agent.feeds.sparkplug_node import EdgeNode, Packet
from shoal.agent.host.faults import Fault
from shoal.durable import write_durable
from shoal.errors import StorageError, WireError


class SparkplugSettings(BrokerSettings, frozen=True, kw_only=True):
    """Predictions as metrics of a Sparkplug B edge node: ASSET/MODEL/label, .../score and so on.

    group  of the edge node
    node   its name
    host   id of the primary host, without which predictions are kept; "" for none
    keep   predictions that are kept while broker or host is away, on disk, to be told as
           historical, by the next process too; then the oldest go
    """

    group: str
    node: str
    host: str = ""
    keep: int = 10_000


class SparkplugSink(Connecting):
    """Keeps an EdgeNode connected. The node's state is touched by the feed's thread alone.

    What cannot be told at once is on disk before `write` returns, until it has gone out: whoever is
    killed meanwhile tells it when it is back, some of it perhaps twice.
    """

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
        # (prediction, whether it is on disk)
        self._inbox = collections.deque[tuple[Prediction, bool]](maxlen=max(1, settings.keep))
        self._lock = threading.Lock()
        folder = context.folder / f"{context.name}.kept"
        self._kept = Kept(folder, max(1, settings.keep))
        self._recall()
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
        with self._lock:
            self.tally.dropped += len(self._inbox) == self._inbox.maxlen
            stored = not self._node.born and self._put(prediction)
            self._inbox.append((prediction, stored))
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
        except StorageError as error:  # the number may repeat after a restart: no reason to stop
            self.context.fault(Fault("storage", error.message))
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
        self._tell()  # in order: what was written before the host came online is historical
        try:
            self._publish(self._node.heard(topic, data, self.context.wall()))
        except WireError as error:
            self.context.fault(Fault(error.code, f"{self.context.name}, {topic}: {error}"))
        if self._node.forsaken:
            self._broker.end("the primary host went offline")

    def _tell(self) -> None:
        """Every prediction that waits in the inbox; what is on disk is forgotten once it is out."""
        with self._lock:
            waiting, stored = len(self._inbox), self._kept.last
        for _ in range(waiting):
            prediction, is_stored = self._inbox.popleft()
            packets = self._node.tell(prediction, self.context.wall())
            if not packets and not is_stored:
                self._store(prediction)
            self._publish(packets)
        if self._node.born and not self._broker.is_unsent:
            self._node.forget()
            with self._lock:
                self._kept.forget(stored)

    def _keep(self) -> None:
        while self._inbox:
            prediction, is_stored = self._inbox.popleft()
            self._node.keep(prediction)
            if not is_stored:
                self._store(prediction)

    def _recall(self) -> None:
        """What the process before could not tell."""
        try:
            for prediction in self._kept.load():
                self._node.keep(prediction)
        except StorageError as error:
            self.context.fault(Fault(error.code, f"{self.context.name}: {error}"))

    def _store(self, prediction: Prediction) -> None:
        with self._lock:
            self._put(prediction)

    def _put(self, prediction: Prediction) -> bool:
        """Whether it is on disk now: a disk that refuses costs what a kill would take, no more."""
        try:
            self._kept.put(prediction)
        except StorageError as error:
            self.context.fault(Fault(error.code, f"{self.context.name}: {error}"))
            return False
        return True

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
