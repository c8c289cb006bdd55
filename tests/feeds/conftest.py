"""A recorder for feeds, a plant's broker, and clients of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from feed_doubles import Recorder
from feeds.mosquitto import Client, PlantBroker


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


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
