"""Apply the feature pipeline of a release to its dataset, as a device will apply it to rows."""

import numpy as np

from shoal import pipeline
from shoal.controller.training.io.rows import Data, Rows
from shoal.errors import DatasetError
from shoal.estimators import ImportParams, Params
from shoal.pipeline import Input, Pipeline
from shoal.preparation import convert


def pipeline_of(params: Params, data: Data) -> Pipeline:
    """The imported pipeline; else the columns unchanged, with the handling of missing values.

    SettingError when it does not fit the columns of the dataset.
    """
    if isinstance(params, ImportParams) and params.pipeline is not None:
        pipeline.check(params.pipeline, data.features)
        return params.pipeline
    if params.missing != "mean":
        return Pipeline(missing=params.missing)
    means = data.train.x.mean(0, dtype=np.float64)
    inputs = [
        Input(name=name, fill=float(mean)) for name, mean in zip(data.features, means, strict=True)
    ]
    return Pipeline(missing="mean", inputs=inputs)


def apply_pipeline(data: Data, steps: Pipeline) -> Data:
    """The rows after the pipeline, without those with a missing value.

    DatasetError when too few rows remain.
    """
    train, held, elsewhere = (
        _converted(rows, steps, data.features) for rows in (data.train, data.held, data.elsewhere)
    )
    if len(train.y) < 10 or not len(held.y):
        raise DatasetError(
            f"the pipeline leaves {len(train.y)} rows to train on and {len(held.y)} held back",
            "the others have a value outside of its range: see low, high and given of its inputs",
        )
    dropped = len(data.train.y) + len(data.elsewhere.y) - len(train.y) - len(elsewhere.y)
    left_out = data.left_out | ({"value missing after the pipeline": dropped} if dropped else {})
    return data._replace(train=train, held=held, elsewhere=elsewhere, left_out=left_out)


def _converted(rows: Rows, steps: Pipeline, features: list[str]) -> Rows:
    converted = rows._replace(x=convert(steps, features, rows.x))
    return converted.take(np.logical_and.reduce(np.isfinite(converted.x), axis=1))
