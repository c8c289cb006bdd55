"""Rows in the plant's units at the endpoint go through the release's pipeline."""

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


def outputs_of(one: Engine, name: str, rows: Any, shape: list[int] | None = None) -> Any:
    tensor = {"name": name, "shape": shape or [len(rows), 2], "datatype": "FP32", "data": rows}
    body = json.dumps({"inputs": [tensor]}).encode()
    response = inference_of({MODEL: served(one)}).respond(
        Request("POST", f"/v2/models/{MODEL}/infer", body)
    )
    found = json.loads(response.body)
    return (
        found["outputs"][0]["data"] if response.status == 200 else (response.status, found["error"])
    )


def test_raw_rows_have_the_outputs_of_the_rows_that_the_pipeline_makes():
    one = engine(3, pipeline=LINE)
    assert outputs_of(one, "raw", RAW_ROWS.tolist()) == outputs_of(one, "input", READY.tolist())
    np.testing.assert_allclose(convert(LINE, NAMES, RAW_ROWS), READY, rtol=1e-6)


def test_the_endpoint_and_a_source_prepare_the_same_readings_alike():
    ready = Preparation(LINE, NAMES).rows(0.0, ("TT-101", "PT-7"), RAW_ROWS)
    one = engine(3, pipeline=LINE)
    assert one.raw is not None
    np.testing.assert_array_equal(one.raw.table(RAW_ROWS), ready.values)


def test_the_models_own_input_bypasses_the_pipeline():
    assert outputs_of(engine(3, pipeline=LINE), "input", READY.tolist()) == outputs_of(
        engine(3), "input", READY.tolist()
    )


def test_a_missing_value_is_filled_where_the_pipeline_sets_it_and_refused_by_name_elsewhere():
    one = engine(3, pipeline=LINE)
    assert outputs_of(one, "raw", [[None, 0.25]]) == outputs_of(one, "input", [[0.2, 1.5]])
    status, why = outputs_of(one, "raw", [[212.0, None]])
    assert status == 400
    assert NAMES[1] in why


def test_a_row_of_a_stretch_has_all_its_samples():
    line = Pipeline(inputs=[Input(name="t", scale=0.5)], stretch=Stretch(samples=2))
    one = engine(3, pipeline=line)
    assert outputs_of(one, "raw", [[2.0, 4.0]]) == outputs_of(one, "input", [[1.0, 2.0]])


def test_without_a_pipeline_raw_is_what_the_model_reads():
    assert outputs_of(engine(3), "raw", READY.tolist()) == outputs_of(
        engine(3), "input", READY.tolist()
    )


def described(one: Engine) -> dict[str, Any]:
    response = inference_of({MODEL: served(one)}).respond(
        Request("GET", f"/v2/models/{MODEL}", b"")
    )
    return json.loads(response.body)["parameters"]


def test_the_metadata_names_the_readings_and_their_units():
    assert described(engine(3, pipeline=LINE))["raw_input"] == {
        "name": "raw", "columns": ["TT-101", "PT-7"], "units": ["°F", ""], "samples": 1,
    }  # fmt: skip
    assert "raw_input" not in described(engine(3))


def test_another_name_or_shape_is_refused_with_both_names():
    status, why = outputs_of(engine(3, pipeline=LINE), "rows", RAW_ROWS.tolist())
    assert status == 400
    assert "'input' (or 'raw', in the plant's units), got ['rows']" in why
    assert outputs_of(engine(3, pipeline=LINE), "raw", [[1.0, 2.0]], [1, 3])[0] == 400


def test_a_program_sends_readings_through_client_and_serving(tmp_path: Path):
    running = Running(tmp_path, engine(3, pipeline=LINE))
    try:
        with Client(MODEL, tmp_path) as client:
            outputs = client.infer(RAW_ROWS, raw=True)
            np.testing.assert_array_equal(outputs, client.infer(READY))
        np.testing.assert_array_equal(running.serving.infer(RAW_ROWS, raw=True), outputs)
        with pytest.raises(InputError, match=r"\[rows, 2\]"):
            running.serving.infer(RAW_ROWS[:, :1], raw=True)
    finally:
        running.stop()
