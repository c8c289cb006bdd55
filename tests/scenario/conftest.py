"""What stories begin with: a disk in memory, a cloud with nothing in it, a school of pupils."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices import Cloud
from fake_clients import School
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
def school() -> Iterator[School]:
    with memory_folder() as folder:
        yield School(folder)
