"""Collection of rows for training, as far as `learning.keep` in agent.toml allows it."""

from collections.abc import Callable, Sequence

from shoal.agent.federated.io.row_buffer import Buffer
from shoal.agent.serving.engine import Engine
from shoal.sketch import F32


class RowCollection:
    """Adds rows of sources, the endpoint and other programs to the buffer.

    rows   None where nothing is kept
    keep   "nothing", "labelled" or "served"
    labelled, served, given   None where such rows are not kept
    """

    def __init__(self, rows: Buffer | None, keep: str) -> None:
        self._rows = rows
        kept = rows is not None
        self.labelled: Callable[[Engine, F32, Sequence[str]], None] | None = (
            self._labelled if kept and keep in ("labelled", "served") else None
        )
        self.served: Callable[[Engine, F32, str], None] | None = (
            self._served if kept and keep == "served" else None
        )

        self.given: Callable[[str, list[str], F32, Sequence[str]], None] | None = (
            rows.add if rows is not None and self.labelled is not None else None
        )

    def _labelled(self, engine: Engine, rows: F32, labels: Sequence[str]) -> None:
        assert self._rows is not None
        features = [f.name for f in engine.manifest.features]
        self._rows.add(engine.manifest.model, features, rows, labels)

    def _served(self, engine: Engine, rows: F32, request_id: str) -> None:
        """Add rows without a label; keys of a larger request are ID/0, ID/1, ..."""
        assert self._rows is not None
        keys = [request_id] if len(rows) == 1 else [f"{request_id}/{i}" for i in range(len(rows))]
        features = [f.name for f in engine.manifest.features]
        self._rows.add(engine.manifest.model, features, rows, [None] * len(rows), keys)
