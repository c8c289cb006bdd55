"""A plant, its broker, and clients at it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from feed_doubles import Plant
from feeds.mosquitto import Client, PlantBroker


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return Plant(tmp_path)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[PlantBroker]:
    made = PlantBroker(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def client(broker: PlantBroker) -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def join(*topics: str, **more: Any) -> Client:
        made.append(Client(broker, *topics, **more))
        return made[-1]

    yield join
    for each in made:
        each.stop()
