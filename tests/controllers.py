"""A controller in a folder, without its processes: real database, keys and blobs."""

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from shoal.controller.data import datasets
from shoal.controller.data.records import DatasetVersion
from shoal.controller.host.context import Context
from shoal.controller.host.settings import Settings
from shoal.controller.operations import operations
from shoal.controller.operations.operations import Operation
from shoal.controller.releases.io.blobs import Blobs
from shoal.controller.releases.io.signing import Signer
from shoal.controller.store.io.database import Store
from shoal.controller.wiring import operation_kinds
from shoal.errors import AbsentError
from stores import new_store

NOW = 1_800_000_000.0
HYDRAULIC = "demo/hydraulic_uci447_features.csv.gz"
OTHER_CONDITIONS = ["cycle", "valve_pct", "accumulator_bar", "unstable"]


class Clock:
    """A virtual clock."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def pass_days(self, days: float) -> float:
        self.now += days * 86_400
        return self.now


def make_context(folder: Path, clock: Callable[[], float] | None = None) -> Context:
    """Create a controller in `folder`."""
    clock = clock or Clock()
    return Context(
        folder=folder,
        settings=Settings(),
        store=new_store(folder),
        blobs=Blobs(folder / "blobs"),
        signer=Signer.create(folder, clock),
        clock=clock,
        random=random.Random(7),
    )


def reopened(folder: Path, clock: Callable[[], float] | None = None) -> Context:
    """The controller that is in `folder`, for instance a copy of another's."""
    clock = clock or Clock()
    return Context(
        folder=folder,
        settings=Settings(),
        store=Store.open(f"sqlite:///{folder / 'controller.db'}"),
        blobs=Blobs(folder / "blobs"),
        signer=Signer.open(folder, clock),
        clock=clock,
        random=random.Random(8),  # not the ids that were drawn already
    )


def run(ctx: Context, operation: Operation) -> Operation:
    """Run an operation to its end, as the engine's subprocess would."""
    claimed = operations.claim_next(ctx)
    assert claimed is not None
    assert claimed.id == operation.id
    return operations.run(ctx, claimed.id, operation_kinds())


def digits(sites: int = 3) -> pd.DataFrame:
    """Real 8x8 images of digits, distributed over stations: p0..p63, digit, station."""
    images, labels = load_digits(return_X_y=True)
    frame = pd.DataFrame(images, columns=[f"p{i}" for i in range(images.shape[1])])
    return frame.assign(digit=labels, station=[f"s{i % sites}" for i in range(len(labels))])


def add_digits(ctx: Context, name: str = "stations") -> DatasetVersion:
    path = ctx.folder / "digits.csv"
    digits().to_csv(path, index=False)
    return datasets.add_dataset(
        ctx, actor="ana", path=path, filename="digits.csv", name=name, label="digit", site="station"
    )


def shared_data(name: str) -> Path:
    """A file of SHOAL_DATA, or of ../shared/data; the test is skipped where there is neither."""
    root = Path(os.environ.get("SHOAL_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (root / name).exists():
        pytest.skip(f"no {name}: set SHOAL_DATA to the folder of test data")
    return root / name


def repository_fetch(folder: Path) -> Callable[[str], bytes]:
    """Fetches /metadata as a device would from the artifact server."""

    def fetch(name: str) -> bytes:
        path = folder / "repository" / "metadata" / name
        if not path.exists():
            raise AbsentError("metadata", name)
        return path.read_bytes()

    return fetch


def csv(path: Path, columns: Mapping[str, object]) -> Path:
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def numbers(n: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n).round(3)
