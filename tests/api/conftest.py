"""A fresh controller for each test, copied from one that was made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from api.controller_app import ControllerApp, make_template


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def controller(template: Path, tmp_path: Path) -> Iterator[ControllerApp]:
    made = ControllerApp(template, tmp_path / "controller")
    yield made
    made.ctx.store.close()
