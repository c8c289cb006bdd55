"""Fixtures of attacks: a signing controller in memory, and a device that serves release 1."""

from pathlib import Path

import pytest

from api.conftest import controller, template  # noqa: F401 - fixtures
from devices import Cloud, Device


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def device(tmp_path: Path, cloud: Cloud) -> Device:
    device = Device(tmp_path / "device", cloud)
    device.assign(cloud.release(1))
    device.run(40)
    assert device.serves() == "lot-codes@1"
    return device
