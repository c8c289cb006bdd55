"""External programs that tests run; a test without its program is skipped, with the reason."""

import os
import shutil
from pathlib import Path

import pytest

from shoal.controller.broker.io.nats import find_binary
from shoal.errors import SettingError


def nats_server() -> Path:
    """The embedded broker."""
    try:
        return find_binary(os.environ)
    except SettingError as error:
        pytest.skip(str(error))


def mosquitto(name: str = "mosquitto") -> str:
    """The distribution's broker, or another program of its package."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"no {name}; apt-get install mosquitto")
    return found
