"""Source and sink `mqtt`: JSON payloads; the source also reads Sparkplug B."""

import collections
import json
import math
import threading
from typing import Any, Literal

import msgspec

from shoal.agent.feeds.frames import FeedHealth, Frame, LatestValues, Prediction, Quality, Value
from shoal.agent.feeds.io.broker import Broker, BrokerSettings, Packet
from shoal.agent.feeds.io.connection import ReconnectingFeed
from shoal.agent.feeds.io.interface import Context, Emit
from shoal.agent.feeds.sparkplug_host import Host, Received
from shoal.agent.host.faults import Fault
from shoal.agent.serving.io.row_table import seconds
from shoal.agent.serving.labels import number
from shoal.errors import DatasetError, SettingError, ShoalError, WireError

#: Bytes of the largest message; most assets.
LIMIT, ASSETS = 1 << 20, 1_024
#: Units of a second; seconds up to which a time is one: 2001 for a guess, 2100.
_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_EARLY_S, _LATEST_S = 1_000_000_000.0, 4_102_444_800.0
_QUALITIES = {"good": Quality.GOOD, "uncertain": Quality.UNCERTAIN, "bad": Quality.BAD}


class MqttSourceSettings(BrokerSettings, frozen=True, kw_only=True):
    """Readings from an MQTT broker.

    topics     filters to subscribe to
    format     "json": an object of names and numbers, nested ones named "outer.inner", a list of
               such objects, each a frame, or a bare number, named by the last level of its topic;
               "sparkplug": Sparkplug B, where metrics are values, and each node and device is an
               asset
    asset      level of the topic that names the asset, from 0; -1 for none
    time       name of the object's field with its time, Unix or ISO 8601; "" for the time of
               arrival
    time_unit  of a Unix time: "s", "ms", "us" or "ns"
    quality    name of the field with its quality: "good", "uncertain" or "bad"; "" for good
    retained   a message that the broker had retained, and so of unknown age: "uncertain" for that
               quality, unless it has a time of its own; "use", or "ignore"
    qos        0 or 1
    """

    topics: list[str]
    format: Literal["json", "sparkplug"] = "json"
    asset: int = -1
    time: str = ""
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    quality: str = ""
    retained: Literal["use", "uncertain", "ignore"] = "uncertain"
    qos: Literal[0, 1] = 1


class MqttSource(ReconnectingFeed):
    """Each message is a frame: the latest values of its asset, updated by the message."""

    Settings = MqttSourceSettings

    def __init__(self, settings: MqttSourceSettings, context: Context, emit: Emit) -> None:
        super().__init__(context, settings.retry_s)
        if not settings.topics:
            raise SettingError(f"agent.toml: sources.{context.name}.topics is empty")
        self._settings, self._emit = settings, emit
        self._latest: dict[str, LatestValues] = {}
        self._host = Host()
        self._broker = Broker(
            settings,
            context.folder,
            subscriptions=[(topic, settings.qos) for topic in settings.topics],
            on_message=self._on_message,
            on_connected=self.tally.came_up,
            before_poll=self._request_overdue,
        )

    def serve(self, stopping: threading.Event) -> None:
        """One connection; when it ends, the latest values are discarded."""
        try:
            self._broker.serve(stopping)
        finally:
            self._latest.clear()
            self._host.disconnected()

    def _on_message(self, topic: str, data: bytes, is_retained: bool) -> None:
        is_sparkplug = self._settings.format == "sparkplug"
        if not data or (is_retained and (is_sparkplug or self._settings.retained == "ignore")):
            return  # empty: a retained message was cleared; Sparkplug's births are never retained
        try:
            if is_sparkplug:
                self._on_sparkplug(topic, data)
                return
            readings = flat(topic, data)
        except ShoalError as error:
            self._drop(topic, error)
            return
        for values in readings:
            try:
                self._emit_frame(self._frame(topic, values, is_retained))
            except ShoalError as error:
                self._drop(topic, error)

    def _drop(self, topic: str, error: ShoalError) -> None:
        self.tally.dropped += 1
        self.context.fault(Fault(error.code, f"{self.context.name}, {topic}: {error}"))

    def _on_sparkplug(self, topic: str, data: bytes) -> None:
        context = self.context
        received = self._host.receive(topic, data, context.wall(), context.monotonic())
        self._request_rebirth(received)
        self.tally.dropped += received.historical
        for frame in received.frames:
            self._emit_frame(frame)

    def _request_overdue(self) -> None:
        for received in self._host.overdue(self.context.wall(), self.context.monotonic()):
            self._request_rebirth(received)

    def _request_rebirth(self, received: Received) -> None:
        if received.rebirth is not None:
            self._broker.publish(Packet(*received.rebirth))

    def _emit_frame(self, frame: Frame) -> None:
        self.tally.gave(frame)
        self.tally.bad += frame.quality is Quality.BAD
        self._emit(frame)

    def _frame(self, topic: str, values: dict[str, Any], is_retained: bool) -> Frame:
        """The latest values of the message's asset, updated by these."""
        settings, now = self._settings, self.context.wall()
        own_time = values.pop(settings.time, None) if settings.time else None
        time_s = now if own_time is None else unix_time(own_time, settings.time_unit)
        word = str(values.pop(settings.quality, "good")).lower() if settings.quality else "good"
        quality = _QUALITIES.get(word, Quality.UNCERTAIN)
        if is_retained and own_time is None and settings.retained == "uncertain":
            quality = max(quality, Quality.UNCERTAIN)
        levels = topic.split("/")
        asset = levels[settings.asset] if 0 <= settings.asset < len(levels) else ""
        if asset not in self._latest and len(self._latest) >= ASSETS:
            self._latest.pop(next(iter(self._latest)))
        latest = self._latest.setdefault(asset, LatestValues())
        for name, value in values.items():
            latest.put(name, _value(value, time_s, quality))
        return latest.frame(asset)


class MqttSinkSettings(BrokerSettings, frozen=True, kw_only=True):
    """Predictions to an MQTT broker, as JSON, QoS 1.

    topic   may contain {asset} and {model}
    retain  whether the broker retains the last prediction for later subscribers
    keep    predictions queued while the broker is away; beyond it the oldest are dropped
    """

    topic: str = "predictions/{model}/{asset}"
    retain: bool = False
    keep: int = 10_000


class MqttSink(ReconnectingFeed):
    """Publishes each prediction at least once, in order; unacknowledged ones are sent again."""

    Settings = MqttSinkSettings

    def __init__(self, settings: MqttSinkSettings, context: Context) -> None:
        super().__init__(context, settings.retry_s)
        self._settings = settings
        try:
            topic_of(settings.topic, "model", "asset")
        except (KeyError, IndexError, ValueError) as error:
            raise SettingError(
                f"agent.toml: sinks.{context.name}.topic is {settings.topic!r}",
                "use {asset} and {model} only",
            ) from error
        self._queue: collections.deque[Prediction] = collections.deque()
        self._sent: collections.OrderedDict[int, Prediction] = collections.OrderedDict()
        self._lock, self._up = threading.Lock(), False
        self._broker = Broker(
            settings,
            context.folder,
            on_connected=self._connected,
            on_acknowledged=self._acknowledged,
            before_poll=self._send,
        )

    def write(self, prediction: Prediction) -> None:
        """Queue one; the oldest is dropped beyond the limit."""
        with self._lock:
            self._queue.append(prediction)
            if len(self._queue) > self._settings.keep:
                self._queue.popleft()
                self.tally.dropped += 1
        self.tally.count += 1
        self._broker.wake()

    def health(self) -> FeedHealth:
        """State and counters; waiting: not acknowledged yet."""
        self.tally.waiting = len(self._queue) + len(self._sent)
        return super().health()

    def serve(self, stopping: threading.Event) -> None:
        """One connection; predictions that it did not deliver are first in the next one."""
        try:
            self._broker.serve(stopping)
        finally:
            self._up = False
            with self._lock:
                self._queue.extendleft(reversed(self._sent.values()))
            self._sent.clear()

    def _connected(self) -> None:
        self._up = True
        self.tally.came_up()

    def _send(self) -> None:
        """Publish queued predictions, at most 100 in flight."""
        while self._up and len(self._sent) < 100:
            with self._lock:
                if not self._queue:
                    return
                prediction = self._queue.popleft()
            number_ = self._broker.publish(self._packet(prediction))
            self._sent[number_] = prediction

    def _acknowledged(self, number: int) -> None:
        self._sent.pop(number, None)

    def _packet(self, prediction: Prediction) -> Packet:
        topic = topic_of(self._settings.topic, prediction.model, prediction.asset)
        return Packet(topic, as_json(prediction), 1, self._settings.retain)


def as_json(prediction: Prediction) -> bytes:
    """A prediction as JSON: time_s, asset, model, release, quality, and its values."""
    common: dict[str, Any] = {
        "time_s": prediction.time_s,
        "asset": prediction.asset,
        "model": prediction.model,
        "release": prediction.release,
        "quality": prediction.quality.name.lower(),
    }
    return msgspec.json.encode(common | prediction.values)


def topic_of(pattern: str, model: str, asset: str) -> str:
    """The topic of a prediction; wildcards in the asset become "-".

    >>> topic_of("line/{asset}/{model}", "leaks", "pump/3+#")
    'line/pump-3--/leaks'
    """
    safe = asset.translate({ord(c): "-" for c in "/+#"})
    return pattern.format(model=model, asset=safe).replace("//", "/").strip("/")


def flat(topic: str, data: bytes) -> list[dict[str, Any]]:
    """Names and values of a JSON message, for each reading in it; WireError for anything else.

    >>> flat("a/b", b'{"t": 1, "motor": {"rpm": 2}}'), flat("a/b", b"21.5")
    ([{'t': 1, 'motor.rpm': 2}], [{'b': 21.5}])
    >>> flat("a/b", b'[{"t": 1}, {"t": 2}]')
    [{'t': 1}, {'t': 2}]
    """
    if len(data) > LIMIT:
        raise WireError(f"message of {len(data)} bytes, {LIMIT} allowed")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WireError(f"message is no JSON: {str(error)[:100]}") from error
    if not isinstance(found, list):
        return [_named(topic, found)]
    if not all(isinstance(each, dict) for each in found):
        raise WireError(
            f"a list of {len(found)}, not all of them objects", "send objects of names and numbers"
        )
    return [_named(topic, each) for each in found]


def _named(topic: str, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        return {topic.rpartition("/")[2]: found}
    values: dict[str, Any] = {}
    _flatten("", found, values)
    return values


def _flatten(prefix: str, values: dict[str, Any], into: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _flatten(f"{prefix}{name}.", value, into)
        else:
            into[prefix + name] = value


def unix_time(cell: Any, unit: str) -> float:
    """Unix seconds of a Unix time in `unit`, or of ISO 8601; WireError when it is neither.

    >>> unix_time("1970-01-01T00:00:10Z", "ms"), unix_time(10_000, "ms")
    (10.0, 10.0)
    """
    try:
        found = seconds(cell)
    except DatasetError as error:
        raise WireError(error.message) from error
    if math.isfinite(number(cell)):
        found /= _UNITS[unit]
    if 0 <= found < _LATEST_S:
        return found
    fits = [name for name, per_s in _UNITS.items() if _EARLY_S <= number(cell) / per_s < _LATEST_S]
    hint = f'is it in other units? set time_unit = "{fits[0]}"' if fits else ""
    raise WireError(f"{str(cell)[:40]!r} is no Unix time in {unit}", hint)


def _value(cell: Any, time_s: float, quality: Quality) -> Value:
    found = number(cell)
    return Value(found, time_s, quality if math.isfinite(found) else Quality.BAD)
