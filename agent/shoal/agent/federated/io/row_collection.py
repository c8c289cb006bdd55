"""Which rows are kept on the device to learn from: what agent.toml says, and nothing else."""

from collections.abc import Callable, Sequence

from shoal.agent.federated.io.row_buffer import Buffer
from shoal.agent.serving.engine import Engine
from shoal.sketch import F32


class Keeping:
    """What sources and the endpoint hand their rows to.

    rows   None where nothing is kept
    what   "nothing", "labelled" or "served"
    labelled, served, given   None where such rows are not wanted
    """

    def __init__(self, rows: Buffer | None, what: str) -> None:
        self._rows = rows
        kept = rows is not None
        self.labelled: Callable[[Engine, F32, Sequence[str]], None] | None = (
            self._labelled if kept and what in ("labelled", "served") else None
        )
        self.served: Callable[[Engine, F32, str], None] | None = (
            self._served if kept and what == "served" else None
        )

        self.given: Callable[[str, list[str], F32, Sequence[str]], None] | None = (
            rows.add if rows is not None and self.labelled is not None else None
        )

    def _labelled(self, engine: Engine, rows: F32, labels: Sequence[str]) -> None:
        assert self._rows is not None
        features = [f.name for f in engine.manifest.features]
        self._rows.add(engine.manifest.model, features, rows, labels)

    def _served(self, engine: Engine, rows: F32, asked: str) -> None:
        """Rows without a label yet; those of a larger request are ID/0, ID/1, ..."""
        assert self._rows is not None
        keys = [asked] if len(rows) == 1 else [f"{asked}/{i}" for i in range(len(rows))]
        features = [f.name for f in engine.manifest.features]
        self._rows.add(engine.manifest.model, features, rows, [None] * len(rows), keys)
