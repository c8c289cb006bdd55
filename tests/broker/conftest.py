"""Fixtures: a running broker of each kind, with a CA and two enrolled devices."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.real import Mosquitto, Nats, Site, running_site
from broker.served import Served, init
from programs import nats_server
from shoal.controller.fleet.io.ca import Authority


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
    with running_site(request.param, tmp_path, authority) as made:
        yield made


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A controller that is made and not started; ended after the test."""
    nats_server()
    folder = tmp_path / "controller"
    made = Served(folder)
    made.facts = json.loads(init(folder, "--json", "--window-s", "1"))
    yield made
    if made.process is not None:
        made.end()
