"""Spool of labelled rows: from a program's own session to the agent, for federated learning.

    spool/<µs>-<random>.rows    one LabelledRows, MessagePack, complete before it is named

As with windows (window_spool.py) the program writes, the agent reads a file and deletes it. Nothing
is written or read when agent.toml collects no rows.
"""

import collections
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from shoal.agent.serving.engine import Engine
from shoal.durable import write_durable
from shoal.errors import StorageError
from shoal.sketch import F32

_log = logging.getLogger(__name__)

#: Rows of a program in memory; files that may wait; bytes of one; files read at once.
ROWS, KEPT, LONGEST, AT_ONCE = 1_000, 60, 16 << 20, 4
_MODE = 0o640


class LabelledRows(msgspec.Struct, frozen=True, kw_only=True):
    """x: float32 (n, len(features)) little-endian, row by row; labels: n of them."""

    model: str
    features: list[str]
    labels: list[str]
    x: bytes


class LabelledRowWriter:
    """Collects a session's labelled rows until they are written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: collections.deque[tuple[str, list[str], F32, str]] = collections.deque(
            maxlen=ROWS
        )

    def add(self, engine: Engine, rows: F32, truth: F32) -> None:
        """Add rows (n, F) as the model reads them; truth (n,): class index, or value."""
        manifest = engine.manifest
        features, labels = [f.name for f in manifest.features], manifest.labels
        for row, value in zip(rows, truth, strict=True):
            if labels and not 0 <= value < len(labels):
                continue
            label = labels[int(value)] if labels else f"{float(value)!r}"
            self._waiting.append((manifest.model, features, row.astype("<f4"), label))

    def write(self, name: str) -> None:
        """Write the collected rows; they are lost when the disk refuses: no measurement is."""
        found = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not found or len(list(self._folder.glob("*.rows"))) >= KEPT:
            return
        model, features = found[0][:2]
        same = [(row, label) for of, names, row, label in found if (of, names) == (model, features)]
        rows = LabelledRows(
            model=model,
            features=features,
            labels=[label for _, label in same],
            x=b"".join(row.tobytes() for row, _ in same),
        )
        try:
            self._folder.mkdir(exist_ok=True)
            path = self._folder / f"{name}.rows"
            write_durable(path, msgspec.msgpack.encode(rows), _MODE)
        except (OSError, StorageError) as error:
            _log.warning("%s: %s", self._folder, error)


def take(folder: Path, keep: Callable[[str, list[str], F32, Sequence[str]], None] | None) -> None:
    """Pass waiting rows to `keep` (model, features, rows, labels) if given, and delete them."""
    for path in sorted(folder.glob("*.rows"))[:AT_ONCE]:
        try:
            with path.open("rb") as file:
                data = file.read(LONGEST)
            found = msgspec.msgpack.decode(data, type=LabelledRows)
            rows = np.frombuffer(found.x, "<f4").reshape(len(found.labels), len(found.features))
            if keep is not None:
                keep(found.model, found.features, rows, found.labels)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            _log.warning("%s, of a session on this machine: %s", path.name, error)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s cannot be deleted: %s", path, error)
