"""Sparkplug B edge node: publishes predictions as metrics. Pure.

Messages that it publishes (Eclipse Sparkplug 3.0.0, sections 5.4 to 5.8):

    connect       the will is an NDEATH with the next bdSeq
    host online   NBIRTH, seq 0: bdSeq, Node Control/Rebirth, every metric with alias, type, value;
                  then the stored predictions, as historical NDATA
    prediction    NDATA by alias, seq 1, 2, ... 255, 0, ...; an NBIRTH for a metric not yet born
    NCMD rebirth  NBIRTH
    host offline  NDEATH, and the connection ends
"""

import collections
from typing import NamedTuple

from shoal.agent.feeds import sparkplug_payload
from shoal.agent.feeds.frames import Prediction, Quality
from shoal.agent.feeds.sparkplug_host import BD_SEQ, NAMESPACE, REBIRTH, host_online
from shoal.agent.feeds.sparkplug_payload import BOOLEAN, DOUBLE, INT64, STRING, Metric, Payload
from shoal.errors import SettingError

_QUALITY = {
    Quality.GOOD: sparkplug_payload.GOOD,
    Quality.UNCERTAIN: sparkplug_payload.STALE,
    Quality.BAD: 0,
}
#: Stored predictions in one historical NDATA.
BATCH = 100
#: Classes up to which each has a metric of its own.
CLASSES = 32


class Packet(NamedTuple):
    """A message to publish, never retained. The will has QoS 1, the rest QoS 0."""

    topic: str
    payload: bytes


class EdgeNode:
    """One edge node of one group.

    bd_seq   of the next connection: 0 to 255, persisted by the caller over restarts
    host     id of the primary host that must be online; "" for none
    limit    predictions stored while the host is offline; beyond it the oldest are dropped

    host_lost   the primary host went offline after a birth: the caller has to disconnect

    Stored predictions are published at each birth until `discard_published`.
    """

    def __init__(self, group: str, node: str, *, bd_seq: int, host: str, limit: int) -> None:
        for what, name in (("group", group), ("node", node)):
            if not name or set(name) & set("/+#"):
                raise SettingError(f"Sparkplug {what} {name!r}", "it is a name without / + and #")
        self._group, self._node, self._host = group, node, host
        self.bd_seq = bd_seq % 256
        self._seq, self._born, self._host_up, self._host_since = 0, False, not host, -1
        self._metrics: dict[str, Metric] = {}
        self.host_lost = False
        self._stored: collections.deque[Prediction] = collections.deque(maxlen=limit)
        self._published = self.dropped = 0

    # ------------------------------------------------------------------ connection

    @property
    def subscriptions(self) -> list[str]:
        """Topics to subscribe to, QoS 1, at each connection."""
        states = [f"{NAMESPACE}/STATE/{self._host}", f"STATE/{self._host}"] if self._host else []
        return [self._topic("NCMD"), *states]

    def connecting(self) -> Packet:
        """The will of the next connection."""
        self._born, self._host_up, self._host_since = False, not self._host, -1
        self.host_lost = False
        return Packet(self._topic("NDEATH"), self._death())

    def connected(self, now_s: float) -> list[Packet]:
        """Messages after the broker granted the subscriptions."""
        return self._birth_and_history(now_s) if self._host_up else []

    def disconnecting(self) -> list[Packet]:
        """Messages before a clean disconnect, after which the broker publishes no will."""
        born, self._born = self._born, False
        return [Packet(self._topic("NDEATH"), self._death())] if born else []

    def disconnected(self) -> None:
        """The connection has ended; the next one has the next bdSeq."""
        self._born, self._published = False, 0
        self.bd_seq = (self.bd_seq + 1) % 256

    def received(self, topic: str, data: bytes, now_s: float) -> list[Packet]:
        """Messages in response to one that arrived; WireError when it cannot be decoded."""
        if topic == self._topic("NCMD"):
            return self._command(sparkplug_payload.decode(data), now_s)
        state = host_online(topic, data)
        if not self._host or state is None or state[1] < self._host_since:
            return []  # of another host, no state, or an older one that arrives late
        was, (self._host_up, self._host_since) = self._host_up, state
        if self._host_up and not was:
            return self._birth_and_history(now_s)
        if was and not self._host_up and self._born:
            self._born, self.host_lost = False, True
            return [Packet(self._topic("NDEATH"), self._death())]
        return []

    # ------------------------------------------------------------------ predictions

    @property
    def born(self) -> bool:
        """Whether predictions are published at once."""
        return self._born

    @property
    def waiting(self) -> int:
        """Stored predictions that are not published yet."""
        return len(self._stored) - self._published

    def publish(self, prediction: Prediction, now_s: float) -> list[Packet]:
        """Messages for a prediction; before the birth it is stored instead."""
        if not self._born:
            self.store(prediction)
            return []
        metrics = self._metrics_of(prediction)
        if any(metric.name not in self._metrics for metric in metrics):
            self._update(metrics)
            return [self._birth(now_s)]  # a birth has the values too
        self._update(metrics)
        return [self._data(metrics, now_s)]

    def store(self, prediction: Prediction) -> None:
        """Store for the next birth; beyond the limit the oldest is dropped."""
        if len(self._stored) == self._stored.maxlen:
            self.dropped += not self._published
            self._published = max(0, self._published - 1)
        self._stored.append(prediction)

    def discard_published(self) -> None:
        """Drop stored predictions that are published: the broker has them."""
        while self._published:
            self._stored.popleft()
            self._published -= 1

    # ------------------------------------------------------------------ messages

    def _birth_and_history(self, now_s: float) -> list[Packet]:
        """The birth, then every stored prediction as historical data."""
        for prediction in self._stored:
            self._update(self._metrics_of(prediction))
        packets = [self._birth(now_s)]
        for batch in _batches(list(self._stored)):
            past = [m for p in batch for m in self._metrics_of(p)]
            packets.append(self._data([m._replace(historical=True) for m in past], now_s))
        self._published = len(self._stored)
        return packets

    def _birth(self, now_s: float) -> Packet:
        self._born, self._seq = True, 0
        own = [
            Metric(BD_SEQ, datatype=INT64, value=self.bd_seq),
            Metric(REBIRTH, datatype=BOOLEAN, value=False),
        ]
        born = [m._replace(time_ms=int(now_s * 1e3)) for m in own] + list(self._metrics.values())
        payload = Payload(int(now_s * 1e3), born, seq=0)
        return Packet(self._topic("NBIRTH"), sparkplug_payload.encode(payload))

    def _data(self, metrics: list[Metric], now_s: float) -> Packet:
        self._seq = (self._seq + 1) % 256
        short = [m._replace(name="", alias=self._metrics[m.name].alias) for m in metrics]
        return Packet(
            self._topic("NDATA"),
            sparkplug_payload.encode(Payload(int(now_s * 1e3), short, self._seq)),
        )

    def _death(self) -> bytes:
        return sparkplug_payload.encode(
            Payload(None, [Metric(BD_SEQ, datatype=INT64, value=self.bd_seq)])
        )

    def _command(self, payload: Payload, now_s: float) -> list[Packet]:
        wanted = any(metric.name == REBIRTH and metric.value is True for metric in payload.metrics)
        return [self._birth(now_s)] if wanted and self._born else []

    def _metrics_of(self, prediction: Prediction) -> list[Metric]:
        """asset/model/label, .../score, .../score/CLASS and .../release of one prediction."""
        under = "/".join(part for part in (prediction.asset, prediction.model) if part)
        values = prediction.values | {"release": prediction.release}
        if len(prediction.labels) > CLASSES:
            values = {k: v for k, v in values.items() if not k.startswith("score/")}
        return [
            Metric(
                name=f"{under}/{name}",
                time_ms=int(prediction.time_s * 1e3),
                datatype=STRING if isinstance(value, str) else DOUBLE,
                value=value,
                quality=_QUALITY[prediction.quality],
            )
            for name, value in values.items()
        ]

    def _update(self, metrics: list[Metric]) -> None:
        for metric in metrics:
            known = self._metrics.get(metric.name)
            alias = known.alias if known else len(self._metrics) + 1
            self._metrics[metric.name] = metric._replace(alias=alias)

    def _topic(self, kind: str) -> str:
        return f"{NAMESPACE}/{self._group}/{kind}/{self._node}"


def _batches(stored: list[Prediction]) -> list[list[Prediction]]:
    return [stored[at : at + BATCH] for at in range(0, len(stored), BATCH)]
