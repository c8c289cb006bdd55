"""The database of a new controller: its schema is made once in each process of tests."""

import functools
import tempfile
from pathlib import Path

from shoal.controller.store.io.database import Store


def new_store(folder: Path) -> Store:
    """An empty database in `folder`, migrated: a copy costs a fifth of the migrations."""
    path = folder / "controller.db"
    path.write_bytes(_empty())
    return Store.open(f"sqlite:///{path}")


@functools.cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "controller.db"
        Store.open(f"sqlite:///{path}").close()
        return path.read_bytes()
