"""Rows in the plant's units at the endpoint: the release's pipeline makes the model's of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices import MODEL, engine
from endpoints import Running, inference_of, served
from shoal.agent import Client
from shoal.agent.serving.engine import Engine
from shoal.agent.serving.routes import Request
from shoal.errors import InputError
from shoal.pipeline import Input, Pipeline, Stretch
from shoal.preparation import Preparation, convert

NAMES = [feature.name for feature in engine(3).manifest.features]
LINE = Pipeline(
    inputs=[
        Input(name=NAMES[0], source="TT-101", given="°F", unit="°C", low=-40, outside="missing",
              missing="mean", fill=20.0, scale=0.01),
        Input(name=NAMES[1], source="PT-7", scale=2.0, offset=1.0),
    ]
)  # fmt: skip
RAW_ROWS = np.array([[212.0, 0.5], [-4_000.0, 0.25]], np.float32)
READY = np.array([[1.0, 2.0], [0.2, 1.5]], np.float32)


def asked(one: Engine, name: str, rows: Any, shape: list[int] | None = None) -> Any:
    tensor = {"name": name, "shape": shape or [len(rows), 2], "datatype": "FP32", "data": rows}
    body = json.dumps({"inputs": [tensor]}).encode()
    answer = inference_of({MODEL: served(one)}).respond(
        Request("POST", f"/v2/models/{MODEL}/infer", body)
    )
    said = json.loads(answer.body)
    return said["outputs"][0]["data"] if answer.status == 200 else (answer.status, said["error"])


def test_what_the_plant_measures_is_answered_as_what_the_model_reads_of_it():
    one = engine(3, pipeline=LINE)
    assert asked(one, "raw", RAW_ROWS.tolist()) == asked(one, "input", READY.tolist())
    np.testing.assert_allclose(convert(LINE, NAMES, RAW_ROWS), READY, rtol=1e-6)


def test_the_endpoint_and_a_source_make_the_same_of_the_same_readings():
    ready = Preparation(LINE, NAMES).rows(0.0, ("TT-101", "PT-7"), RAW_ROWS)
    one = engine(3, pipeline=LINE)
    assert one.raw is not None
    np.testing.assert_array_equal(one.raw.table(RAW_ROWS), ready.values)


def test_the_models_own_input_is_what_the_model_reads_whatever_the_pipeline():
    assert asked(engine(3, pipeline=LINE), "input", READY.tolist()) == asked(
        engine(3), "input", READY.tolist()
    )


def test_a_missing_value_is_filled_where_the_pipeline_says_so_and_refused_by_name_elsewhere():
    one = engine(3, pipeline=LINE)
    assert asked(one, "raw", [[None, 0.25]]) == asked(one, "input", [[0.2, 1.5]])
    status, why = asked(one, "raw", [[212.0, None]])
    assert status == 400
    assert NAMES[1] in why


def test_a_row_of_a_stretch_is_all_its_samples():
    line = Pipeline(inputs=[Input(name="t", scale=0.5)], stretch=Stretch(samples=2))
    one = engine(3, pipeline=line)
    assert asked(one, "raw", [[2.0, 4.0]]) == asked(one, "input", [[1.0, 2.0]])


def test_without_a_pipeline_raw_is_what_the_model_reads():
    assert asked(engine(3), "raw", READY.tolist()) == asked(engine(3), "input", READY.tolist())


def described(one: Engine) -> dict[str, Any]:
    answer = inference_of({MODEL: served(one)}).respond(Request("GET", f"/v2/models/{MODEL}", b""))
    return json.loads(answer.body)["parameters"]


def test_the_metadata_names_the_readings_and_their_units():
    assert described(engine(3, pipeline=LINE))["raw_input"] == {
        "name": "raw", "columns": ["TT-101", "PT-7"], "units": ["°F", ""], "samples": 1,
    }  # fmt: skip
    assert "raw_input" not in described(engine(3))


def test_another_name_or_shape_is_refused_with_both_names():
    status, why = asked(engine(3, pipeline=LINE), "rows", RAW_ROWS.tolist())
    assert status == 400
    assert "'input' (or 'raw', in the plant's units), got ['rows']" in why
    assert asked(engine(3, pipeline=LINE), "raw", [[1.0, 2.0]], [1, 3])[0] == 400


def test_a_program_sends_readings_through_client_and_serving(tmp_path: Path):
    running = Running(tmp_path, engine(3, pipeline=LINE))
    try:
        with Client(MODEL, tmp_path) as client:
            said = client.infer(RAW_ROWS, raw=True)
            np.testing.assert_array_equal(said, client.infer(READY))
        np.testing.assert_array_equal(running.serving.infer(RAW_ROWS, raw=True), said)
        with pytest.raises(InputError, match=r"\[rows, 2\]"):
            running.serving.infer(RAW_ROWS[:, :1], raw=True)
    finally:
        running.stop()
