"""A window as it is kept, and its columns: the rows that ingest adds and everything else reads."""

from collections.abc import Mapping
from typing import Any, NamedTuple

#: What a device names a window by: device, boot, sequence number.
WindowKey = tuple[str, str, int]


class NewWindow(NamedTuple):
    """A window to be kept, its sketches as received.

    start_at      Unix seconds of its first row, by the controller's clock; received_at: of arrival
    latency       counts of shoal.sketch.Latency, without trailing zeros
    health        shoal.wire.Health, and whether the device's clock was right
    inputs, outputs   shoal.sketch.Sketch bytes by the release's reference; both may be empty
    merged        windows that the device merged into this one
    """

    device: str
    boot: str
    seq: int
    site: str
    model: str
    release: str
    reference: str
    start_at: float
    window_s: float
    received_at: float
    rows: int
    errors: int
    slow: int
    labelled: int
    correct: int
    merged: int
    latency: list[int]
    health: Mapping[str, Any]
    inputs: bytes
    outputs: bytes

    @property
    def key(self) -> WindowKey:
        return self.device, self.boot, self.seq


class StoredWindow(NamedTuple):
    """A kept window. id rises by one from window to window in order of arrival."""

    id: int
    device: str
    boot: str
    seq: int
    site: str
    model: str
    release: str
    reference: str
    start_at: float
    window_s: float
    received_at: float
    rows: int
    errors: int
    slow: int
    labelled: int
    correct: int
    merged: int
    latency: list[int]
    health: dict[str, Any]
    inputs: bytes
    outputs: bytes
