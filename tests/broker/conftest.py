"""Fixtures: a running broker of each kind, with a CA and two enrolled devices."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.real import Mosquitto, Nats, Site, free_port
from shoal.controller.io.ca import Authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("authority") / "pki"
    return Authority.create(folder, names=["localhost", "127.0.0.1"], now=time.time())


@pytest.fixture(scope="session")
def foreign_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("foreign") / "pki"
    return Authority.create(folder, names=["127.0.0.1"], now=time.time())


@pytest.fixture(params=[Nats, Mosquitto], ids=["nats-server", "mosquitto"])
def site(request: pytest.FixtureRequest, tmp_path: Path, authority: Authority) -> Iterator[Site]:
    """A running broker that knows ENROLLED."""
    broker = request.param(tmp_path / "broker", authority.folder, free_port())
    broker.start()
    made = Site(broker, tmp_path, authority)
    yield made
    made.end()
