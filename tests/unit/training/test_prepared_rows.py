"""A release says how its rows are made, and was measured on rows made that very way."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from shoal.agent.serving.io.session import OrtSession
from shoal.controller.data import frames, table_files
from shoal.controller.data.records import DatasetVersion
from shoal.controller.releases.records import Built
from shoal.controller.training.io import build
from shoal.controller.training.jobs import Job
from shoal.errors import DatasetError, SettingError
from shoal.pipeline import Pipeline
from shoal.preparation import Preparation
from shoal.profile import SessionOptions
from shoal.signature import rows_signature

LINE = {
    "inputs": [
        {"name": "temperature", "source": "TT-1", "given": "°F", "unit": "°C", "scale": 0.01},
        {"name": "pressure", "given": "bar", "unit": "kPa", "low": 0, "high": 900,
         "outside": "missing"},
    ]
}  # fmt: skip


@pytest.fixture(scope="module")
def plant_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Plant units: 212 °F and 1 bar; hot is a fault. Ten pressures are of a broken sensor."""
    folder, rng = tmp_path_factory.mktemp("plant"), np.random.default_rng(1)
    table = pd.DataFrame(
        {"temperature": rng.uniform(32, 212, 400), "pressure": rng.uniform(1, 3, 400)}
    )
    table["fault"] = np.where(table["temperature"] > 122, "hot", "fine")
    table.loc[:9, "pressure"] = 1e6
    path = folder / "plant.csv"
    table.to_csv(path, index=False)
    columns = frames.describe(
        table_files.read_frame(path), label="fault", site="", split="", drop=()
    )
    version = DatasetVersion(
        name="plant", version=1, sha256="", size=0, rows=400, columns=columns, label="fault",
        site="", split="", parents=[], how="", created_at=0, created_by="",
    )  # fmt: skip
    return Job(
        model="m", dataset=version, table=path, estimator="imported", labels=["fine", "hot"],
        onnx=celsius_model(folder / "model.onnx"),
    )  # fmt: skip


def celsius_model(path: Path) -> Path:
    """Hot above 0.5, which is 50 °C after the pipeline's scale of 0.01."""
    weights = numpy_helper.from_array(np.array([[-60, 60], [0, 0]], np.float32), "W")
    bias = numpy_helper.from_array(np.array([30, -30], np.float32), "b")
    nodes = [
        helper.make_node("Gemm", ["input", "W", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["output"], axis=1),
    ]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 2])
    said = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph(nodes, "g", [given], [said], [weights, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def built(job: Job, **params: object) -> Built:
    return build.build(replace(job, params=params), lambda fraction, step: None)


def test_an_imported_model_is_measured_on_rows_that_went_through_its_pipeline(
    plant_job: Job,
) -> None:
    made = built(plant_job, pipeline=LINE)
    assert made.metrics["accuracy"] > 0.98
    assert built(plant_job).metrics["accuracy"] < 0.8
    assert made.pipeline.inputs[0].source == "TT-1"
    assert 0 <= made.features[0].low < made.features[0].high <= 1  # the model's own units
    assert made.features[1].high <= 300
    assert "10 rows were left out: value missing after the pipeline" in made.card


def test_a_device_answers_the_plants_own_units_as_the_controller_did(
    plant_job: Job, tmp_path: Path
) -> None:
    made = built(plant_job, pipeline=LINE)
    path = tmp_path / "fp32.onnx"
    path.write_bytes(made.files["fp32"])
    session = OrtSession(path, SessionOptions(), rows_signature("input", 2, "output", 2))
    work = Preparation(made.pipeline, [f.name for f in made.features])
    for fahrenheit, label in ((40.0, "fine"), (200.0, "hot")):
        reading = np.array([[2.0, fahrenheit]])
        rows = work.rows(0.0, ("pressure", "TT-1"), reading).values
        assert made.labels[int(session.run(rows).argmax())] == label


def test_a_model_trained_here_refuses_missing_values_by_default(
    plant_job: Job,
) -> None:
    job = replace(plant_job, onnx=None, labels=[], estimator="logistic")
    assert built(job).pipeline == Pipeline(missing="refuse")
    assert built(job, missing="last").pipeline == Pipeline(missing="last")
    mean = built(job, missing="mean").pipeline
    assert [i.name for i in mean.inputs] == ["temperature", "pressure"]
    assert mean.inputs[0].fill == pytest.approx(122, abs=10)


def test_a_pipeline_that_does_not_fit_the_dataset_is_refused(plant_job: Job) -> None:
    with pytest.raises(SettingError, match="the model's are temperature, pressure"):
        built(plant_job, pipeline={"inputs": [{"name": "torque"}]})
    nothing = {"inputs": [LINE["inputs"][0], LINE["inputs"][1] | {"low": -1, "high": -0.5}]}
    with pytest.raises(DatasetError, match="the pipeline leaves 0 rows to train on"):
        built(plant_job, pipeline=nothing)
