"""Log on disk of predictions that are not published yet, in segments.

    <name>.kept/<number of its first>.log    records, one after the other, each with its length
                                             and CRC-32 before it

A record is in the kernel when `append` returns, so that kill -9 loses none; a power cut loses what
the kernel has not written yet, half a minute at most. Nothing waits for the disk. A damaged record
ends its segment; the others are still read. The oldest segment is deleted beyond the limits.
"""

import errno
import os
import struct
import zlib
from pathlib import Path

import msgspec
import numpy as np

from shoal.agent.feeds.frames import Prediction, Quality
from shoal.errors import StorageError

#: Bytes of all segments; of one.
LIMIT, SEGMENT = 32 << 20, 1 << 20
#: Least number of segments of a full log.
_PARTS = 8
_HEAD = struct.Struct("<II")


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """A prediction on disk. scores: float32 bytes, little-endian."""

    time_s: float
    asset: str
    model: str
    release: str
    quality: int
    labels: tuple[str, ...]
    scores: bytes
    label: str


class PredictionLog:
    """The log in one folder. Not thread-safe: its owner has a lock.

    limit  records; beyond it the oldest segment is deleted
    last   number of the last record, 0 before the first
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._counts: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._open: int | None = None
        self.last = 0

    def load(self) -> list[Prediction]:
        """Records of an earlier process, oldest first; StorageError."""
        found: list[Prediction] = []
        try:
            for path in sorted(self._folder.glob("*.log")):
                records = _read(path.read_bytes())
                first = int(path.stem)
                self._counts[first], self._sizes[first] = len(records), path.stat().st_size
                self.last = max(self.last, first + len(records) - 1)
                found += records
        except (OSError, ValueError) as error:
            raise StorageError(f"{self._folder}: {error}", "check the disk") from error
        return found

    def append(self, prediction: Prediction) -> None:
        """Append a record; StorageError when the disk refuses it."""
        data = msgspec.msgpack.encode(_record(prediction))
        whole = _HEAD.pack(len(data), zlib.crc32(data)) + data
        try:
            first = self._segment(len(whole))
            if os.write(self._descriptor(first), whole) < len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.close()
            raise StorageError(f"{self._folder}: {error.strerror}", "free disk space") from error
        self.last += 1
        self._counts[first] += 1
        self._sizes[first] += len(whole)
        self._bound()

    def discard(self, number: int) -> None:
        """Delete segments with records up to this number only: they are published."""
        for first in [f for f, count in self._counts.items() if f + count - 1 <= number]:
            self._delete(first)

    def close(self) -> None:
        if self._open is not None:
            os.close(self._open)
        self._open = None

    def _segment(self, size: int) -> int:
        """Number of the segment to append to: a new one when the newest is full."""
        newest = max(self._counts, default=0)
        most = max(1, self._limit // _PARTS)
        full = not newest or self._counts[newest] >= most or self._sizes[newest] + size > SEGMENT
        if not full and self._open is not None:
            return newest
        self.close()
        newest = self.last + 1
        self._counts[newest] = self._sizes[newest] = 0
        return newest

    def _descriptor(self, first: int) -> int:
        if self._open is None:
            self._folder.mkdir(exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._open = os.open(self._path(first), flags, 0o640)
        return self._open

    def _bound(self) -> None:
        while len(self._counts) > 1 and (
            sum(self._counts.values()) > self._limit + self._limit // _PARTS
            or sum(self._sizes.values()) > LIMIT
        ):
            self._delete(min(self._counts))

    def _delete(self, first: int) -> None:
        if first == max(self._counts):
            self.close()
        del self._counts[first], self._sizes[first]
        self._path(first).unlink(missing_ok=True)

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:016d}.log"


def _read(data: bytes) -> list[Prediction]:
    """The records of a segment, up to the first truncated or damaged one."""
    found, at = [], 0
    while at + _HEAD.size <= len(data):
        size, checksum = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        body = data[at : at + size]
        if len(body) < size or zlib.crc32(body) != checksum:
            break
        at += size
        try:
            found.append(_prediction(msgspec.msgpack.decode(body, type=_Record)))
        except (msgspec.MsgspecError, ValueError):
            break
    return found


def _record(prediction: Prediction) -> _Record:
    scores = prediction.scores.astype("<f4").tobytes()
    quality = int(prediction.quality)
    return _Record(*prediction._replace(scores=scores, quality=quality))  # type: ignore[arg-type]


def _prediction(record: _Record) -> Prediction:
    return Prediction(
        time_s=record.time_s,
        asset=record.asset,
        model=record.model,
        release=record.release,
        quality=Quality(record.quality),
        labels=record.labels,
        scores=np.frombuffer(record.scores, "<f4"),
        label=record.label,
    )
