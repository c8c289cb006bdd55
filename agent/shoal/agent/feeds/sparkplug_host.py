"""Sparkplug B host: the state of the edge nodes, from their messages to frames. Pure.

A birth declares a node's metrics and their aliases; data messages then have the changes, with
sequence numbers 0 to 255. After a missed birth or number the host requests a rebirth.
Source: Eclipse Sparkplug 3.0.0, sections 5.4 to 5.13 and 6.4.
"""

import json
import math
from typing import NamedTuple

from shoal.agent.feeds import sparkplug_payload
from shoal.agent.feeds.frames import Frame, LatestValues, Quality, Value
from shoal.agent.feeds.sparkplug_payload import BOOLEAN, Metric, Payload
from shoal.errors import WireError

NAMESPACE = "spBv1.0"
REBIRTH, BD_SEQ = "Node Control/Rebirth", "bdSeq"
#: Seconds between two rebirth requests to one node; most nodes, and devices of each.
REBIRTH_S, NODES, DEVICES = 10.0, 1_024, 1_024
_QUALITY = {
    0: Quality.BAD,
    sparkplug_payload.GOOD: Quality.GOOD,
    sparkplug_payload.STALE: Quality.UNCERTAIN,
}


class Topic(NamedTuple):
    """The parts of spBv1.0/group/kind/node[/device]."""

    group: str
    kind: str
    node: str
    device: str

    @property
    def asset(self) -> str:
        return f"{self.node}/{self.device}" if self.device else self.node


class Received(NamedTuple):
    """Result of one message.

    frames      one for each asset with a change
    rebirth     topic and payload of the rebirth request to publish; None for none
    historical  number of historical metrics, which make no frames
    """

    frames: list[Frame] = []  # noqa: RUF012 (a NamedTuple's default is never written to)
    rebirth: tuple[str, bytes] | None = None
    historical: int = 0


class _Node:
    """One edge node. assets: by device, "" for the node itself; names: alias -> name, datatype."""

    def __init__(self) -> None:
        self.born, self.seq, self.bd_seq = False, -1, -1
        self.requested_s = -math.inf
        self.assets: dict[str, LatestValues] = {}
        self.names: dict[int, tuple[str, int]] = {}
        self.kinds: dict[tuple[str, str], int] = {}


class Host:
    """Tracks edge nodes. `receive` takes every message of their topics, in order."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[str, str], _Node] = {}

    def receive(self, topic: str, data: bytes, now_s: float) -> Received:
        """Process a message; WireError when it cannot be decoded."""
        parsed = parse_topic(topic)
        if parsed is None:
            return Received()
        payload = sparkplug_payload.decode(data)
        if len(self._nodes) >= NODES and (parsed.group, parsed.node) not in self._nodes:
            raise WireError(f"more than {NODES} edge nodes; subscribe to fewer groups")
        node = self._nodes.setdefault((parsed.group, parsed.node), _Node())
        if parsed.kind == "NDEATH":
            return self._died(parsed, node, payload)
        if parsed.kind == "NBIRTH":
            _begin(node, payload)
        elif not node.born or payload.seq != (node.seq + 1) % 256:
            node.born = False
            return self._request_rebirth(parsed, node, now_s)
        node.seq = payload.seq or 0
        return _changed(parsed, node, payload, now_s)

    def disconnected(self) -> list[Frame]:
        """The connection is lost: a frame of bad quality for every asset."""
        frames = []
        for (_, name), node in self._nodes.items():
            node.born = False
            frames += _bad_frames(name, node)
        return frames

    def _died(self, topic: Topic, node: _Node, payload: Payload) -> Received:
        """A death counts if its bdSeq is that of the last birth."""
        number = next((m.value for m in payload.metrics if m.name == BD_SEQ), None)
        if not node.born or number != node.bd_seq:
            return Received()
        node.born = False
        return Received(_bad_frames(topic.node, node))

    def _request_rebirth(self, topic: Topic, node: _Node, now_s: float) -> Received:
        if now_s - node.requested_s < REBIRTH_S:
            return Received()
        node.requested_s = now_s
        metric = Metric(REBIRTH, time_ms=int(now_s * 1e3), datatype=BOOLEAN, value=True)
        data = sparkplug_payload.encode(Payload(int(now_s * 1e3), [metric]))
        return Received(rebirth=(f"{NAMESPACE}/{topic.group}/NCMD/{topic.node}", data))


def parse_topic(topic: str) -> Topic | None:
    """A topic's parts; None for any but an edge node's births, data and deaths."""
    parts = topic.split("/")
    if not 4 <= len(parts) <= 5 or parts[0] != NAMESPACE:
        return None
    found = Topic(parts[1], parts[2], parts[3], parts[4] if len(parts) == 5 else "")
    wanted = ("DBIRTH", "DDATA", "DDEATH") if found.device else ("NBIRTH", "NDATA", "NDEATH")
    return found if found.kind in wanted else None


def host_online(topic: str, data: bytes) -> tuple[bool, int] | None:
    """(online, since ms) of a primary host's STATE, of Sparkplug 3 or 2; None for anything else."""
    if topic.startswith("STATE/"):
        state = data.strip().upper()
        return (state == b"ONLINE", 0) if state in (b"ONLINE", b"OFFLINE") else None
    try:
        found = json.loads(data)
        return bool(found["online"]), int(found["timestamp"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _begin(node: _Node, payload: Payload) -> None:
    """Start a node's session with its birth; earlier state is discarded."""
    node.born, node.assets, node.names, node.kinds = True, {}, {}, {}
    number = next((m.value for m in payload.metrics if m.name == BD_SEQ), None)
    node.bd_seq = number if isinstance(number, int) else -1


def _changed(topic: Topic, node: _Node, payload: Payload, now_s: float) -> Received:
    if topic.kind == "DDEATH":
        latest = node.assets.get(topic.device)
        return Received([_bad(latest, topic.asset)] if latest else [])
    if len(node.assets) >= DEVICES and topic.device not in node.assets:
        raise WireError(f"more than {DEVICES} devices of one edge node")
    latest = node.assets.setdefault(topic.device, LatestValues())
    changed = historical = 0
    for metric in payload.metrics:
        name = _named(topic, node, metric)
        if metric.historical:
            historical += 1
        elif name and not name.startswith(("Node Control/", "Device Control/", BD_SEQ)):
            latest.put(name, _value(topic, node, name, metric, payload, now_s))
            changed += 1
    return Received([latest.frame(topic.asset)] if changed else [], historical=historical)


def _named(topic: Topic, node: _Node, metric: Metric) -> str:
    """The metric's name, or that of its alias; "" for an alias that no birth declared."""
    if not metric.name:
        known = node.names.get(-1 if metric.alias is None else metric.alias)
        return known[0] if known else ""
    if topic.kind.endswith("BIRTH"):
        node.kinds[topic.device, metric.name] = metric.datatype
        if metric.alias is not None:
            node.names[metric.alias] = (metric.name, metric.datatype)
    return metric.name


def _value(
    topic: Topic, node: _Node, name: str, metric: Metric, payload: Payload, now_s: float
) -> Value:
    kind = metric.datatype or node.kinds.get((topic.device, name), 0)
    raw = sparkplug_payload.typed(metric.value, kind)
    number = float(raw) if isinstance(raw, (int, float)) else math.nan
    time_ms = metric.time_ms if metric.time_ms is not None else payload.time_ms
    quality = Quality.BAD if raw is None else Quality.GOOD
    if metric.quality is not None:
        quality = max(quality, _QUALITY.get(metric.quality, Quality.UNCERTAIN))
    return Value(number, now_s if time_ms is None else time_ms / 1e3, quality)


def _bad_frames(name: str, node: _Node) -> list[Frame]:
    return [
        _bad(latest, f"{name}/{device}" if device else name)
        for device, latest in node.assets.items()
    ]


def _bad(latest: LatestValues, asset: str) -> Frame:
    latest.degrade(Quality.BAD)
    return latest.frame(asset)
