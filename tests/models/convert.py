"""Fits small models of the libraries that people use and exports them to ONNX; run by
.venv-converters/bin/python: `convert.py FOLDER`.

For each: FOLDER/NAME.onnx, and FOLDER/NAME.npz, a sample: an array for each input, items along a
new first axis.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxmltools
from lightgbm import LGBMClassifier, LGBMRegressor
from onnxmltools.convert.common.data_types import FloatTensorType as XFloat
from skl2onnx import to_onnx
from skl2onnx.common.data_types import (
    DoubleTensorType,
    FloatTensorType,
    Int64TensorType,
    StringTensorType,
)
from sklearn.base import is_regressor
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from xgboost import XGBClassifier, XGBRegressor

N, F, ITEMS = 400, 5, 24
TEXTS = ["pump leaks oil", "bearing is hot", "all good", "oil is low", "noise in the gear", "good"]


class Exported(NamedTuple):
    """An ONNX model, and items for it: input name -> (items, ...)."""

    model: Any
    sample: dict[str, np.ndarray]


def rows(dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (N, F), a class of three and a value for each row."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, F)).astype(dtype)
    value = x[:, 0] * 2 - x[:, 1] + 0.1 * rng.normal(size=N)
    return x, np.digitize(value, [-1, 1]), value


def items(x: np.ndarray) -> np.ndarray:
    return x[:ITEMS, None]


def of_sklearn(model: Any, dtype: type = np.float32, **options: Any) -> Exported:
    x, label, value = rows(dtype)
    target = value if is_regressor(model) else label
    model.fit(x, target)
    kind = {np.float32: FloatTensorType, np.float64: DoubleTensorType}[dtype]
    chosen = {"options": {id(model): options}} if options else {}
    made = to_onnx(model, initial_types=[("x", kind([None, F]))], **chosen)
    return Exported(made, {"x": items(x)})


def of_boosters(model: Any, convert: Callable[..., Any]) -> Exported:
    x, label, value = rows()
    model.fit(x, label if "Classifier" in type(model).__name__ else value)
    kinds = [("x", XFloat([None, F]))]
    return Exported(convert(model, initial_types=kinds, target_opset=15), {"x": items(x)})


def anomalies() -> Exported:
    x, _, _ = rows()
    model = IsolationForest(n_estimators=50, random_state=0).fit(x)
    kinds = [("x", FloatTensorType([None, F]))]
    ops = {"": 17, "ai.onnx.ml": 3}
    return Exported(to_onnx(model, initial_types=kinds, target_opset=ops), {"x": items(x)})


def clusters() -> Exported:
    x, _, _ = rows()
    model = KMeans(4, random_state=0, n_init=2).fit(x)
    return Exported(to_onnx(model, x[:1]), {"X": items(x)})


def texts() -> Exported:
    known = np.array(TEXTS * 10)[:, None]
    model = make_pipeline(
        ColumnTransformer([("words", TfidfVectorizer(token_pattern=r"[a-z]+"), 0)]),
        LogisticRegression(),
    ).fit(known, np.arange(len(known)) % len(TEXTS))
    options = {TfidfVectorizer: {"locale": "C"}, LogisticRegression: {"zipmap": False}}
    made = to_onnx(model, initial_types=[("text", StringTensorType([None, 1]))], options=options)
    return Exported(made, {"text": known[:ITEMS, None]})


def integers() -> Exported:
    x = np.random.default_rng(0).integers(0, 50, (N, 4))
    model = RandomForestClassifier(20, random_state=0).fit(x, x[:, 0] > x[:, 1])
    made = to_onnx(model, initial_types=[("counts", Int64TensorType([None, 4]))],
                   options={id(model): {"zipmap": False}})  # fmt: skip
    return Exported(made, {"counts": items(x)})


def columns_of_three_types() -> Exported:
    rng = np.random.default_rng(0)
    machine = rng.choice(["press", "lathe", "mill"], (N, 1))
    heat = rng.normal(60, 9, (N, 1)).astype(np.float32)
    shift = rng.integers(1, 4, (N, 1))
    import pandas as pd

    frame = pd.DataFrame({"machine": machine[:, 0], "heat": heat[:, 0], "shift": shift[:, 0]})
    model = make_pipeline(
        ColumnTransformer(
            [
                ("name", OneHotEncoder(), ["machine"]),
                ("number", StandardScaler(), ["heat", "shift"]),
            ]
        ),
        LogisticRegression(),
    ).fit(frame, heat[:, 0] > 60)
    kinds = [
        ("machine", StringTensorType([None, 1])),
        ("heat", FloatTensorType([None, 1])),
        ("shift", Int64TensorType([None, 1])),
    ]
    sample = {"machine": items(machine), "heat": items(heat), "shift": items(shift)}
    return Exported(to_onnx(model, initial_types=kinds), sample)


def exports() -> Iterator[tuple[str, Exported]]:
    yield "logistic-with-maps", of_sklearn(LogisticRegression(max_iter=500))
    yield "logistic", of_sklearn(LogisticRegression(max_iter=500), zipmap=False)
    yield "hist-gradient-boosting", of_sklearn(HistGradientBoostingClassifier(max_iter=20))
    yield "hist-gradient-boosting-regressor", of_sklearn(HistGradientBoostingRegressor(max_iter=20))
    yield "gaussian-process-float64", of_sklearn(GaussianProcessRegressor(alpha=0.1), np.float64)
    yield "ridge-float64", of_sklearn(Ridge(), np.float64)
    yield "isolation-forest", anomalies()
    yield "k-means", clusters()
    yield "tf-idf", texts()
    yield "forest-int64", integers()
    yield "columns-of-three-types", columns_of_three_types()
    boosted = {"n_estimators": 20, "max_depth": 3}
    yield "xgboost", of_boosters(XGBClassifier(**boosted), onnxmltools.convert_xgboost)
    yield "xgboost-regressor", of_boosters(XGBRegressor(**boosted), onnxmltools.convert_xgboost)
    quiet = boosted | {"verbose": -1}
    yield "lightgbm", of_boosters(LGBMClassifier(**quiet), onnxmltools.convert_lightgbm)
    yield "lightgbm-regressor", of_boosters(LGBMRegressor(**quiet), onnxmltools.convert_lightgbm)


def main() -> None:
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, exported in exports():
        (folder / f"{name}.onnx").write_bytes(exported.model.SerializeToString())
        np.savez(folder / f"{name}.npz", **exported.sample)
        print(name)


if __name__ == "__main__":
    main()
