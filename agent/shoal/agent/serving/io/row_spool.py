"""How rows of a program's own session, whose truth it knew, reach the agent that learns from them.

    spool/<µs>-<random>.rows    one Examples, MessagePack, whole before it is named

As with windows (spool.py) the program writes, the agent takes a file in and deletes it. Who keeps
nothing to learn from (agent.toml) writes nothing, and takes nothing in.
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

#: Rows of a program in memory; files that may wait; bytes of one; files taken at once.
ROWS, KEPT, LONGEST, AT_ONCE = 1_000, 60, 16 << 20, 4
_MODE = 0o640


class Examples(msgspec.Struct, frozen=True, kw_only=True):
    """x: float32 (n, len(features)) little-endian, row by row; labels: n of them."""

    model: str
    features: list[str]
    labels: list[str]
    x: bytes


class Giving:
    """What a program's session knows the truth of, gathered until it is handed over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: collections.deque[tuple[str, list[str], F32, str]] = collections.deque(
            maxlen=ROWS
        )

    def add(self, engine: Engine, rows: F32, truth: F32) -> None:
        """Rows (n, F) as the model reads them; truth (n,): class index, or value."""
        manifest = engine.manifest
        features, labels = [f.name for f in manifest.features], manifest.labels
        for row, value in zip(rows, truth, strict=True):
            if labels and not 0 <= value < len(labels):
                continue
            label = labels[int(value)] if labels else f"{float(value)!r}"
            self._waiting.append((manifest.model, features, row.astype("<f4"), label))

    def hand_over(self, name: str) -> None:
        """Write what waits; it is lost when the disk refuses: an example is no measurement."""
        found = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not found or len(list(self._folder.glob("*.rows"))) >= KEPT:
            return
        model, features = found[0][:2]
        same = [(row, label) for of, names, row, label in found if (of, names) == (model, features)]
        examples = Examples(
            model=model,
            features=features,
            labels=[label for _, label in same],
            x=b"".join(row.tobytes() for row, _ in same),
        )
        try:
            self._folder.mkdir(exist_ok=True)
            path = self._folder / f"{name}.rows"
            write_durable(path, msgspec.msgpack.encode(examples), _MODE)
        except (OSError, StorageError) as error:
            _log.warning("%s: %s", self._folder, error)


def take(folder: Path, keep: Callable[[str, list[str], F32, Sequence[str]], None] | None) -> None:
    """Hand what waits to `keep` (model, features, rows, labels); None: delete it."""
    for path in sorted(folder.glob("*.rows"))[:AT_ONCE]:
        try:
            with path.open("rb") as file:
                data = file.read(LONGEST)
            found = msgspec.msgpack.decode(data, type=Examples)
            rows = np.frombuffer(found.x, "<f4").reshape(len(found.labels), len(found.features))
            if keep is not None:
                keep(found.model, found.features, rows, found.labels)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            _log.warning("%s of a program here: %s", path.name, error)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s stays: %s", path, error)
