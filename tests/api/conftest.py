"""A fresh controller for each test, copied from one that was made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import plant
from api.controller_app import ControllerApp, make_template


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def controller(template: Path, tmp_path: Path) -> Iterator[ControllerApp]:
    made = ControllerApp(template, tmp_path / "controller")
    yield made
    made.ctx.store.close()


@pytest.fixture(scope="session")
def large(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[plant.Large]:
    """A plant of 10 000 devices, made once; no test changes it."""
    made = ControllerApp(template, tmp_path_factory.mktemp("plant") / "controller")
    seeded = plant.build(made.ctx)
    made.sign_in()
    yield plant.Large(made, seeded)
    made.ctx.store.close()
