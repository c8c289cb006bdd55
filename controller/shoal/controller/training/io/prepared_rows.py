"""The pipeline of a release, and the rows of its dataset after it: as a device will make them."""

import numpy as np

from shoal import pipeline
from shoal.controller.training.io.rows import Data, Rows
from shoal.controller.training.jobs import Foreign, Params
from shoal.errors import DatasetError
from shoal.pipeline import Input, Pipeline
from shoal.preparation import convert


def pipeline_of(params: Params, data: Data) -> Pipeline:
    """What came with the model; else its columns as they are, and what becomes of missing ones.

    SettingError when it does not make the columns of the dataset.
    """
    if isinstance(params, Foreign) and params.pipeline is not None:
        pipeline.check(params.pipeline, data.features)
        return params.pipeline
    if params.missing != "mean":
        return Pipeline(missing=params.missing)
    means = data.train.x.mean(0, dtype=np.float64)
    inputs = [
        Input(name=name, fill=float(mean)) for name, mean in zip(data.features, means, strict=True)
    ]
    return Pipeline(missing="mean", inputs=inputs)


def as_the_model_reads(data: Data, line: Pipeline) -> Data:
    """The rows after the pipeline; those in which it leaves a value missing are left out.

    DatasetError when that leaves too few.
    """
    train, held, elsewhere = (
        _converted(rows, line, data.features) for rows in (data.train, data.held, data.elsewhere)
    )
    if len(train.y) < 10 or not len(held.y):
        raise DatasetError(
            f"the pipeline leaves {len(train.y)} rows to train on and {len(held.y)} held back",
            "the others have a value outside of its range: see low, high and given of its inputs",
        )
    lost = len(data.train.y) + len(data.elsewhere.y) - len(train.y) - len(elsewhere.y)
    return data._replace(
        train=train, held=held, elsewhere=elsewhere, incomplete=data.incomplete + lost
    )


def _converted(rows: Rows, line: Pipeline, features: list[str]) -> Rows:
    read = rows._replace(x=convert(line, features, rows.x))
    return read.take(np.logical_and.reduce(np.isfinite(read.x), axis=1))
