"""Sink `sparkplug`: a Sparkplug B edge node; a SCADA host sees predictions as tags."""

import collections
import threading
from pathlib import Path

import msgspec

from shoal.agent.feeds.frames import FeedHealth, Prediction
from shoal.agent.feeds.io.broker import Broker, BrokerSettings
from shoal.agent.feeds.io.broker import Packet as Message
from shoal.agent.feeds.io.connection import ReconnectingFeed
from shoal.agent.feeds.io.interface import Context
from shoal.agent.feeds.io.prediction_log import PredictionLog
from shoal.agent.feeds.sparkplug_node import EdgeNode, Packet
from shoal.agent.host.faults import Fault
from shoal.durable import write_durable
from shoal.errors import StorageError, WireError


class SparkplugSettings(BrokerSettings, frozen=True, kw_only=True):
    """Predictions as metrics of a Sparkplug B edge node: ASSET/MODEL/label, .../score and so on.

    group  of the edge node
    node   its name
    host   id of the primary host, without which predictions are stored; "" for none
    keep   predictions stored on disk while broker or host is away, and published as historical,
           after a restart too; beyond it the oldest are dropped
    """

    group: str
    node: str
    host: str = ""
    keep: int = 10_000


class SparkplugSink(ReconnectingFeed):
    """Connects an EdgeNode. Only the feed's thread uses the node's state.

    A prediction that cannot be published at once is on disk before `write` returns, until it is
    published: after a kill the next process publishes it, some perhaps twice.
    """

    Settings = SparkplugSettings

    def __init__(self, settings: SparkplugSettings, context: Context) -> None:
        super().__init__(context, settings.retry_s)
        self._bd_seq_file = context.folder / f"{context.name}.bdseq"
        self._node = EdgeNode(
            settings.group,
            settings.node,
            bd_seq=_read(self._bd_seq_file),
            host=settings.host,
            limit=max(1, settings.keep),
        )
        # (prediction, whether it is on disk)
        self._inbox = collections.deque[tuple[Prediction, bool]](maxlen=max(1, settings.keep))
        self._lock = threading.Lock()
        folder = context.folder / f"{context.name}.kept"
        self._log = PredictionLog(folder, max(1, settings.keep))
        self._load()
        self._broker = Broker(
            settings,
            context.folder,
            subscriptions=[(topic, 1) for topic in self._node.subscriptions],
            on_message=self._on_message,
            on_connected=self._connected,
            before_poll=self._publish_queued,
            before_disconnect=self._disconnecting,
        )

    def write(self, prediction: Prediction) -> None:
        """Queue one for the feed's thread; the oldest is dropped beyond the limit."""
        with self._lock:
            self.tally.dropped += len(self._inbox) == self._inbox.maxlen
            stored = not self._node.born and self._append(prediction)
            self._inbox.append((prediction, stored))
        self.tally.count += 1
        self._broker.wake()

    def health(self) -> FeedHealth:
        """State and counters; waiting: for broker or host."""
        self.tally.waiting = self._node.waiting + len(self._inbox)
        health = super().health()
        return msgspec.structs.replace(health, dropped=health.dropped + self._node.dropped)

    def serve(self, stopping: threading.Event) -> None:
        """One connection, with a bdSeq of its own."""
        will = self._node.connecting()
        try:
            write_durable(self._bd_seq_file, str((self._node.bd_seq + 1) % 256).encode())
        except StorageError as error:  # the number may repeat after a restart: tolerable
            self.context.fault(Fault("storage", error.message))
        try:
            self._broker.serve(stopping, Message(*will, qos=1))
        finally:
            self._node.disconnected()
            self._store_queued()

    def _disconnecting(self) -> None:
        """Publish the death: after a clean disconnect the broker publishes no will."""
        self._publish(self._node.disconnecting())

    def _connected(self) -> None:
        self.tally.came_up()
        self._publish(self._node.connected(self.context.wall()))

    def _on_message(self, topic: str, data: bytes, _: bool) -> None:
        self._publish_queued()  # predictions from before the host is online are historical
        try:
            self._publish(self._node.received(topic, data, self.context.wall()))
        except WireError as error:
            self.context.fault(Fault(error.code, f"{self.context.name}, {topic}: {error}"))
        if self._node.host_lost:
            self._broker.disconnect("the primary host went offline")

    def _publish_queued(self) -> None:
        """Publish queued predictions; delete them from disk once they are sent."""
        with self._lock:
            waiting, stored = len(self._inbox), self._log.last
        for _ in range(waiting):
            prediction, is_stored = self._inbox.popleft()
            packets = self._node.publish(prediction, self.context.wall())
            if not packets and not is_stored:
                self._store(prediction)
            self._publish(packets)
        if self._node.born and not self._broker.is_unsent:
            self._node.discard_published()
            with self._lock:
                self._log.discard(stored)

    def _store_queued(self) -> None:
        while self._inbox:
            prediction, is_stored = self._inbox.popleft()
            self._node.store(prediction)
            if not is_stored:
                self._store(prediction)

    def _load(self) -> None:
        """Load predictions that the previous process did not publish."""
        try:
            for prediction in self._log.load():
                self._node.store(prediction)
        except StorageError as error:
            self.context.fault(Fault(error.code, f"{self.context.name}: {error}"))

    def _store(self, prediction: Prediction) -> None:
        with self._lock:
            self._append(prediction)

    def _append(self, prediction: Prediction) -> bool:
        """Append to the log; False when the disk refuses: a kill would then lose the prediction."""
        try:
            self._log.append(prediction)
        except StorageError as error:
            self.context.fault(Fault(error.code, f"{self.context.name}: {error}"))
            return False
        return True

    def _publish(self, packets: list[Packet]) -> None:
        for packet in packets:
            self._broker.publish(Message(*packet))


def _read(path: Path) -> int:
    """The next bdSeq; 0 without a file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
