"""Sparkplug B host: the state of the edge nodes, from their messages to frames. Pure.

A birth declares a node's metrics and their aliases; data messages then have the changes, with
sequence numbers 0 to 255. What a broker delivers twice counts once, and what arrives out of order
waits REORDER_S for the missing ones; after a missed birth or number the host requests a rebirth,
of a node that does not respond ever more rarely.
Source: Eclipse Sparkplug 3.0.0, sections 5.4 to 5.13, 6.4 and 10.3 (message ordering).
"""

import collections
import hashlib
import json
import math
from typing import NamedTuple

from shoal.agent.feeds import sparkplug_payload
from shoal.agent.feeds.frames import Frame, LatestValues, Quality, Value
from shoal.agent.feeds.sparkplug_payload import BOOLEAN, Metric, Payload
from shoal.errors import WireError

NAMESPACE = "spBv1.0"
REBIRTH, BD_SEQ = "Node Control/Rebirth", "bdSeq"
#: Seconds between two rebirth requests to one node: doubled from the first to the longest, and the
#: first again once a birth was followed by that many seconds without a gap.
REBIRTH_S, LONGEST_S, STEADY_S = 10.0, 600.0, 60.0
#: Most nodes, and devices of each.
NODES, DEVICES = 1_024, 1_024
#: Seconds that a message waits for those before it; most that wait; most that are remembered.
REORDER_S, WAITING, REMEMBERED = 2.0, 32, 32
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
    """One edge node. assets: by device, "" for the node itself; names: alias -> name, datatype.

    bd_seq    of its birth; None for a birth without one
    recent    sequence number and digest of the last messages, by which a second delivery is known
    waiting   number -> message that arrived before its predecessors, the first of them at waiting_s
    pause_s   from the last rebirth request, at requested_s, to the next
    taken_s   when the last message was applied
    """

    def __init__(self) -> None:
        self.born, self.seq, self.born_s = False, -1, -math.inf
        self.bd_seq: int | None = None
        self.requested_s, self.pause_s, self.taken_s = -math.inf, 0.0, -math.inf
        self.assets: dict[str, LatestValues] = {}
        self.names: dict[int, tuple[str, int]] = {}
        self.kinds: dict[tuple[str, str], int] = {}
        self.recent = collections.deque[tuple[int | None, bytes]](maxlen=REMEMBERED)
        self.waiting: dict[int, _Message] = {}
        self.waiting_s = 0.0


class _Message(NamedTuple):
    topic: Topic
    payload: Payload
    digest: bytes


class Host:
    """Tracks edge nodes. `receive` takes every message of their topics, in order of arrival."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[str, str], _Node] = {}
        self._waiting: dict[tuple[str, str], _Node] = {}

    def receive(self, topic: str, data: bytes, now_s: float, monotonic_s: float) -> Received:
        """Process a message; WireError when it cannot be decoded.

        now_s   Unix seconds: for values without a time; monotonic_s   seconds: for all waits
        """
        parsed = parse_topic(topic)
        if parsed is None:
            return Received()
        payload = sparkplug_payload.decode(data)
        key = (parsed.group, parsed.node)
        if len(self._nodes) >= NODES and key not in self._nodes:
            raise WireError(f"more than {NODES} edge nodes; subscribe to fewer groups")
        node = self._nodes.setdefault(key, _Node())
        if parsed.kind == "NDEATH":
            return self._died(parsed, node, payload)
        digest = hashlib.blake2b(topic.encode() + b"\0" + data, digest_size=16).digest()
        if _is_repeated(node, parsed, payload, digest):
            return Received()
        message = _Message(parsed, payload, digest)
        if parsed.kind == "NBIRTH":
            _begin(node, payload, monotonic_s)
            self._waiting.pop(key, None)
        elif not node.born:
            return _request_rebirth(parsed, node, now_s, monotonic_s)
        elif payload.seq is None or not _is_next(node, payload.seq):
            return self._wait(key, node, message, now_s, monotonic_s)
        return self._take(key, node, message, now_s, monotonic_s)

    def overdue(self, now_s: float, monotonic_s: float) -> list[Received]:
        """Rebirth requests to nodes whose missing messages did not arrive in REORDER_S."""
        late = [k for k, n in self._waiting.items() if monotonic_s >= n.waiting_s + REORDER_S]
        found = []
        for key in late:
            node = self._waiting.pop(key)
            first = next(iter(node.waiting.values()))
            _lose(node)
            found.append(_request_rebirth(first.topic, node, now_s, monotonic_s))
        return found

    def disconnected(self) -> list[Frame]:
        """The connection is lost: a frame of bad quality for every asset."""
        frames = []
        self._waiting.clear()
        for (_, name), node in self._nodes.items():
            _lose(node)
            frames += _bad_frames(name, node)
        return frames

    def _died(self, topic: Topic, node: _Node, payload: Payload) -> Received:
        """A death counts if its bdSeq is that of the last birth, or that birth had none."""
        if not node.born or node.bd_seq not in (None, _bd_seq(payload, node.names)):
            return Received()
        _lose(node)
        self._waiting.pop((topic.group, topic.node), None)
        return Received(_bad_frames(topic.node, node))

    def _wait(
        self, key: tuple[str, str], node: _Node, message: _Message, now_s: float, monotonic_s: float
    ) -> Received:
        """Keep a message for its predecessors; one too far ahead, or behind, needs a rebirth."""
        seq = message.payload.seq
        if seq is None or not 0 <= seq <= 255 or not 0 < (seq - node.seq) % 256 <= WAITING:
            _lose(node)
            self._waiting.pop(key, None)
            return _request_rebirth(message.topic, node, now_s, monotonic_s)
        if not node.waiting:
            node.waiting_s = monotonic_s
        node.waiting.setdefault(seq, message)
        self._waiting[key] = node
        return Received()

    def _take(
        self, key: tuple[str, str], node: _Node, message: _Message, now_s: float, monotonic_s: float
    ) -> Received:
        """Apply a message, and those that waited for it."""
        frames, historical, is_unknown = list[Frame](), 0, False
        node.taken_s = monotonic_s
        following: _Message | None = message
        while following is not None:
            node.seq = following.payload.seq or 0
            node.recent.append((following.payload.seq, following.digest))
            changed = _changed(following.topic, node, following.payload, now_s)
            frames += changed.frames
            historical += changed.historical
            is_unknown |= changed.is_unknown
            following = node.waiting.pop((node.seq + 1) % 256, None)
        if node.waiting:
            node.waiting_s = monotonic_s
        else:
            self._waiting.pop(key, None)
        asked = Received()
        if is_unknown:
            asked = _request_rebirth(message.topic, node, now_s, monotonic_s)
        return Received(frames, asked.rebirth, historical)


def _is_repeated(node: _Node, topic: Topic, payload: Payload, digest: bytes) -> bool:
    """Whether a message was applied already; a birth that was requested since is a new one."""
    if topic.kind == "NBIRTH" and node.requested_s >= node.born_s:
        return False
    return node.born and (payload.seq, digest) in node.recent


def _is_next(node: _Node, seq: int) -> bool:
    return seq == (node.seq + 1) % 256


def _lose(node: _Node) -> None:
    """Forget the node's session: nothing of it is believed until the next birth."""
    node.born = False
    node.recent.clear()
    node.waiting.clear()


def _request_rebirth(topic: Topic, node: _Node, now_s: float, monotonic_s: float) -> Received:
    if node.born_s >= node.requested_s and node.taken_s - node.born_s >= STEADY_S:
        node.pause_s = 0.0
    if monotonic_s - node.requested_s < node.pause_s:
        return Received()
    node.pause_s = min(LONGEST_S, node.pause_s * 2) or REBIRTH_S
    node.requested_s = monotonic_s
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


def _begin(node: _Node, payload: Payload, monotonic_s: float) -> None:
    """Start a node's session with its birth; earlier state is discarded."""
    _lose(node)
    node.born, node.assets, node.names, node.kinds = True, {}, {}, {}
    node.bd_seq, node.born_s = _bd_seq(payload, {}), monotonic_s


def _bd_seq(payload: Payload, names: dict[int, tuple[str, int]]) -> int | None:
    """The bdSeq of a birth or death, by its name or the birth's alias; None without one."""
    for metric in payload.metrics:
        alias = -1 if metric.alias is None else metric.alias
        name = metric.name or names.get(alias, ("", 0))[0]
        if name == BD_SEQ:
            return metric.value if isinstance(metric.value, int) else None
    return None


class _Change(NamedTuple):
    """is_unknown: whether a device or an alias was not declared by a birth."""

    frames: list[Frame]
    historical: int = 0
    is_unknown: bool = False


def _changed(topic: Topic, node: _Node, payload: Payload, now_s: float) -> _Change:
    if topic.kind == "DDEATH":
        latest = node.assets.get(topic.device)
        return _Change([_bad(latest, topic.asset)] if latest else [])
    if len(node.assets) >= DEVICES and topic.device not in node.assets:
        raise WireError(f"more than {DEVICES} devices of one edge node")
    is_unknown = topic.kind == "DDATA" and topic.device not in node.assets
    latest = node.assets.setdefault(topic.device, LatestValues())
    changed = historical = 0
    for metric in payload.metrics:
        name = _named(topic, node, metric)
        is_unknown |= not name
        if metric.historical:
            historical += 1
        elif name and not name.startswith(("Node Control/", "Device Control/", BD_SEQ)):
            latest.put(name, _value(topic, node, name, metric, payload, now_s))
            changed += 1
    return _Change([latest.frame(topic.asset)] if changed else [], historical, is_unknown)


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
