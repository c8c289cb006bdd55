"""Fixtures of scenarios: a disk in memory, an empty cloud, a federation of fake clients."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices import Cloud
from fake_clients import FakeFederation
from fakes import memory_folder


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A folder in memory (see power.Disk)."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="shoal-") as folder:
        yield Path(folder)


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def federation() -> Iterator[FakeFederation]:
    with memory_folder() as folder:
        yield FakeFederation(folder)
