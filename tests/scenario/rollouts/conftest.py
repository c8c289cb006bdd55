"""Fixtures of rollouts."""

import contextlib
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection

from shoal.controller.store.io.database import Store


@pytest.fixture
def held_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """CPU seconds for which each write transaction held the lock; clear it where it is to begin."""
    held, real = list[float](), Store.write

    @contextlib.contextmanager
    def timed(store: Store) -> Iterator[Connection]:
        with real(store) as db:
            begun = time.thread_time()
            yield db
        held.append(time.thread_time() - begun)

    monkeypatch.setattr(Store, "write", timed)
    return held
