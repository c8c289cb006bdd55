"""Messages of Sparkplug edge nodes, for tests."""

from typing import Any

from shoal.agent.feeds.sparkplug_payload import Metric, Payload, encode


def message(seq: int | None, *metrics: Metric, time_ms: int = 5_000) -> bytes:
    return encode(Payload(time_ms, list(metrics), seq))


def values_of(frame: Any) -> dict[str, float]:
    return dict(zip(frame.names, frame.rows[0].tolist(), strict=True))
