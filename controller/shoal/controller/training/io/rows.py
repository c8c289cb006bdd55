"""Split a dataset into training rows and held-back rows."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from shoal.controller.data import splits
from shoal.controller.data.frames import features_of, in_order, left_out, names_of
from shoal.controller.data.table_files import read_frame
from shoal.controller.training.jobs import Job
from shoal.errors import DatasetError
from shoal.estimators import Params

#: Distinct labels above which a classifier is refused.
_MAX_LABELS = 1_000


class Rows(NamedTuple):
    """n rows: x float32 (n, F); y (n,), class index or target value; site names (n,)."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray
    site: npt.NDArray

    def take(self, mask: npt.NDArray) -> "Rows":
        return Rows(self.x[mask], self.y[mask], self.site[mask])


class Data(NamedTuple):
    """Split rows of a dataset.

    train        rows of the chosen sites; held: held-back rows of the same sites
    elsewhere    held-back rows of every site, for evaluation per site
    left_out     number of rows that are in none of them, by reason
    """

    features: list[str]
    labels: list[str]
    train: Rows
    held: Rows
    elsewhere: Rows
    left_out: dict[str, int]


def prepare(job: Job, params: Params, task: str) -> Data:
    """Read the job's table and split it deterministically; DatasetError when that is impossible."""
    frame = read_frame(job.table, job.dataset.ref, job.dataset.csv)
    features = features_of(job.dataset)
    excluded = left_out(frame, job.dataset.columns)
    complete = ~np.logical_or.reduce([*excluded.values()])
    if complete.sum() < max(20, len(frame) // 2):
        raise DatasetError(
            f"{job.dataset.ref}: only {complete.sum()} of {len(frame)} rows have every value",
            f"drop the columns with most missing values: {_emptiest(frame, features)}",
        )
    kept = frame[complete]
    labels, y = _targets(kept[job.dataset.label], job, task)
    site = names_of(kept[job.dataset.site]) if job.dataset.site else np.full(len(kept), "")
    group = names_of(kept[job.dataset.split]) if job.dataset.split else None
    rows = Rows(kept[features].to_numpy(np.float32), y, site)
    chosen = np.isin(site, params.sites) if params.sites else np.full(len(y), True)
    _check_sites(params.sites, site, job.dataset.site)
    strata = _strata(rows, task)
    held = splits.held_back(strata, group, holdout=params.holdout, seed=params.seed)
    data = Data(
        features, labels, rows.take(chosen & ~held), rows.take(chosen & held), rows.take(held),
        {reason: int(which.sum()) for reason, which in excluded.items() if which.any()},
    )  # fmt: skip
    _check_split(data, task)
    return data


def _targets(values: "pd.Series", job: Job, task: str) -> tuple[list[str], npt.NDArray]:
    if task == "regression":
        if not pd.api.types.is_numeric_dtype(values):
            raise DatasetError(f"label {job.dataset.label!r} is not numeric", "use a classifier")
        return [], values.to_numpy(np.float64)
    names = names_of(values)
    found = in_order(names)
    labels = job.labels or found
    if strangers := [name for name in found if name not in labels]:
        raise DatasetError(
            f"{job.dataset.ref} has labels the model does not know: {', '.join(strangers[:9])}",
            f"the model's labels, by output column, are: {', '.join(labels[:40])}",
        )
    if len(labels) > min(_MAX_LABELS, len(values) // 2):
        raise DatasetError(
            f"label {job.dataset.label!r} has {len(labels)} distinct values",
            "use an estimator for regression, such as ridge",
        )
    index = {name: i for i, name in enumerate(labels)}
    return labels, np.array([index[name] for name in names])


def _strata(rows: Rows, task: str) -> npt.NDArray:
    """Label and site as one number each, or site alone for regression: shape (n,)."""
    _, site = np.unique(rows.site, return_inverse=True)
    return site if task == "regression" else site * (int(rows.y.max()) + 1) + rows.y


def _check_sites(wanted: list[str], site: npt.NDArray, column: str) -> None:
    known = in_order(site) if column else []
    if missing := [name for name in wanted if name not in known]:
        raise DatasetError(f"no rows of site {missing[0]!r}", f"sites are: {', '.join(known)}")


def _check_split(data: Data, task: str) -> None:
    if len(data.train.y) < 10 or not len(data.held.y):
        raise DatasetError(
            f"{len(data.train.y)} rows to train on and {len(data.held.y)} held back", "add rows"
        )
    if task != "regression" and len(np.unique(data.train.y)) < 2:
        raise DatasetError("the rows to train on have one label only", "add sites or groups")


def _emptiest(frame: "pd.DataFrame", features: list[str]) -> str:
    missing = frame[features].isna().sum().sort_values(ascending=False)
    return ", ".join(map(str, missing[missing > 0].index[:8]))
