"""Fixtures: a server of downloads, and a device that fetches from it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.update.flaky_server import Server, getter
from shoal.controller.fleet.io.ca import Authority


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authority") / "pki"
    Authority.create(folder, names=["localhost"], now=time.time())
    return folder


@pytest.fixture
def server(pki: Path) -> Iterator[Server]:
    server = Server(pki)
    yield server
    server.stop()


@pytest.fixture
def fetch(server: Server, pki: Path, tmp_path: Path) -> Callable[..., int]:
    return getter(server, pki / "ca.pem", tmp_path)
