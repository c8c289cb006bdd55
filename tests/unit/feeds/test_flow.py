"""Flow: a frame through the release's pipeline and the model to the sinks."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from devices import FEATURES, LABELS, MODEL, engine, softmax
from feed_doubles import Recorder, feeds_of, serving_of
from shoal.agent.feeds.flow import Flow
from shoal.agent.feeds.frames import TAGS, Frame, LatestValues, Prediction, Quality, Value, frame_of
from shoal.agent.serving.engine import Engine
from shoal.agent.serving.served_model import ServedModel
from shoal.errors import InputError, SettingError
from shoal.pipeline import Input, Pipeline, Stretch
from shoal.signature import Signature
from shoal.wire import Health
from tensor_models import engine_of, tensor

ROW = {"contrast": 0.5, "blur": -0.5}


class Line:
    """One source's flow into models; records the predictions."""

    def __init__(self, served: dict[str, ServedModel], model: str = "", sink: str = "") -> None:
        self.predictions: list[Prediction] = []
        self.faults: list[Any] = []
        self.flow = Flow(
            "line",
            model,
            serving=lambda: served,
            sinks=[(sink, self.predictions.append)],
            fault=self.faults.append,
        )


class Doubles:
    """A model of one output: twice the first column."""

    def run(self, rows: np.ndarray) -> np.ndarray:
        return rows[:, :1] * 2


def with_pipeline(**line: Any) -> ServedModel:
    return serving_of(engine(1, pipeline=Pipeline(**line)))


def test_a_frame_is_run_counted_in_the_window_and_written_to_the_sink() -> None:
    serving = serving_of(engine(1))
    line = Line({MODEL: serving})
    assert line.flow(frame_of(10.0, ROW, asset="pump-3")) == 1
    right = softmax(np.array([[0.5, -0.5]]), 1)[0]
    found = line.predictions[0]
    np.testing.assert_allclose(found.scores, right, rtol=1e-5)
    assert (found.time_s, found.asset, found.release) == (10.0, "pump-3", f"{MODEL}@1")
    assert found.label == LABELS[int(right.argmax())]
    assert found.values["score"] == pytest.approx(right.max(), rel=1e-5)
    assert (serving.vitals.requests, serving.vitals.rows) == (1, 1)


def test_a_frame_of_bad_quality_is_not_run() -> None:
    serving = serving_of(engine(1))
    bad = {"contrast": Quality.BAD, "blur": Quality.BAD}
    assert Line({MODEL: serving}).flow(frame_of(1.0, ROW, qualities=bad)) == 0
    assert serving.vitals.requests == 0


def test_an_uncertain_quality_reaches_the_sink_with_the_prediction() -> None:
    line = Line({MODEL: serving_of(engine(1))})
    line.flow(frame_of(1.0, ROW, qualities={"blur": Quality.UNCERTAIN}))
    assert line.predictions[0].quality is Quality.UNCERTAIN


def test_a_missing_value_is_refused_by_name_and_counted_unless_the_pipeline_fills_it() -> None:
    bad, refuses = {"blur": Quality.BAD}, serving_of(engine(1))
    line = Line({MODEL: refuses})
    assert line.flow(frame_of(1.0, ROW, qualities=bad)) == 0
    assert "'blur' is missing" in line.faults[0].detail
    assert refuses.vitals.errors == 1
    inputs = [Input(name="contrast"), Input(name="blur", missing="constant", fill=-0.5)]
    fills = Line({MODEL: with_pipeline(inputs=inputs)})
    assert fills.flow(frame_of(1.0, ROW, qualities=bad)) == 1
    np.testing.assert_allclose(fills.predictions[0].scores, softmax(np.array([[0.5, -0.5]]), 1)[0],
                               rtol=1e-5)  # fmt: skip


def test_the_model_reads_the_plants_tags_in_its_own_units() -> None:
    inputs = [
        Input(name="contrast", source="PT-7", given="bar", unit="kPa", scale=0.01),
        Input(name="blur", source="TT-9"),
    ]
    line = Line({MODEL: with_pipeline(inputs=inputs)})
    line.flow(frame_of(1.0, {"TT-9": -0.5, "other": 9.0, "PT-7": 0.5}))
    np.testing.assert_allclose(line.predictions[0].scores, softmax(np.array([[0.5, -0.5]]), 1)[0],
                               rtol=1e-5)  # fmt: skip


def test_each_asset_has_its_own_last_values_and_a_new_release_resets_them() -> None:
    serving = with_pipeline(missing="last")
    line = Line({MODEL: serving})
    line.flow(frame_of(1.0, ROW, asset="a"))
    assert line.flow(frame_of(2.0, {"contrast": 1.0}, asset="a")) == 1
    assert line.flow(frame_of(2.0, {"contrast": 1.0}, asset="b")) == 0
    serving.swap(engine(2, pipeline=Pipeline(missing="last")), Health())
    assert line.flow(frame_of(3.0, {"contrast": 1.0}, asset="a")) == 0


def test_a_model_that_reads_a_stretch_runs_once_the_stretch_is_complete() -> None:
    stretch = Pipeline(inputs=[Input(name="x")], stretch=Stretch(samples=len(FEATURES)))
    line = Line({MODEL: serving_of(engine(1, pipeline=stretch))})
    assert [line.flow(frame_of(t, {"x": float(t)})) for t in range(3)] == [0, 1, 1]
    np.testing.assert_allclose(line.predictions[1].scores, softmax(np.array([[1.0, 2.0]]), 1)[0],
                               rtol=1e-5)  # fmt: skip


def test_a_tensor_needs_no_names_and_a_wrong_shape_is_reported() -> None:
    line = Line({MODEL: serving_of(engine(1))})
    assert line.flow(Frame(1.0, (), np.array([[0.5, -0.5]]))) == 1
    assert line.flow(Frame(1.0, (), np.zeros((1, 3)))) == 0
    assert "[rows, 2] is needed" in line.faults[0].detail


def test_a_frame_of_another_plant_is_an_error_in_the_models_window() -> None:
    serving = serving_of(engine(1))
    line = Line({MODEL: serving})
    assert line.flow(frame_of(1.0, {"torque": 1.0})) == 0
    assert "no value named contrast, blur" in line.faults[0].detail
    assert (serving.vitals.requests, serving.vitals.errors) == (1, 1)


def test_a_source_and_a_sink_are_bound_to_their_models() -> None:
    served = {MODEL: serving_of(engine(1)), "other": serving_of(engine(1), "other")}
    assert Line(served).flow(frame_of(1.0, ROW)) == 2
    bound = Line(served, model=MODEL, sink="other")
    assert bound.flow(frame_of(1.0, ROW)) == 1
    assert bound.predictions == []
    assert Line(served, model="absent").flow(frame_of(1.0, ROW)) == 0


def test_before_the_first_release_frames_are_dropped() -> None:
    empty = ServedModel(MODEL, clock=float, timer=float, lock=Line)  # type: ignore[arg-type]
    assert Line({MODEL: empty}).flow(frame_of(1.0, ROW)) == 0


def test_a_regression_writes_its_value() -> None:
    loaded = engine(1, task="regression", labels=[])
    loaded.session = Doubles()
    line = Line({MODEL: serving_of(loaded)})
    line.flow(frame_of(1.0, ROW))
    assert line.predictions[0].label == ""
    assert line.predictions[0].values == {"value": 1.0}


def test_latest_values_are_kept_until_the_connection_is_lost() -> None:
    latest = LatestValues(["a", "b"])
    latest.put("b", Value(2.0, 7.0))
    frame = latest.frame("")
    assert (frame.names, frame.quality, frame.time_s) == (("a", "b"), Quality.UNCERTAIN, 7.0)
    np.testing.assert_array_equal(frame.rows, [[np.nan, 2.0]])
    latest.put("a", Value(1.0, 8.0, Quality.UNCERTAIN))
    assert latest.frame("").quality is Quality.UNCERTAIN
    latest.degrade(Quality.BAD)
    assert latest.frame("").quality is Quality.BAD


def test_the_number_of_tags_is_bounded() -> None:
    latest = LatestValues([f"t{i}" for i in range(TAGS)])
    latest.put("t0", Value(1.0, 1.0))
    with pytest.raises(InputError, match="more than"):
        latest.put("another", Value(1.0, 1.0))


# ------------------------------------------------------------------------------------- by name


def test_an_unknown_plugin_is_refused_with_a_list_of_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no 'kafka' among shoal.sources; there are: .*replay"):
        feeds_of(Recorder(tmp_path), {}, {"x": {"kind": "kafka"}})


def test_the_status_has_the_health_of_every_feed(tmp_path: Path) -> None:
    feeds = feeds_of(Recorder(tmp_path), {}, {"file": {"kind": "replay", "path": "x.csv"}})
    health = msgspec.to_builtins(feeds.health())
    assert [(f["name"], f["kind"], f["up"]) for f in health] == [("file", "replay", False)]


@pytest.mark.parametrize("bound", [True, False], ids=["bound-to-it", "feeding-every-model"])
def test_a_source_has_no_rows_for_a_release_of_tensors(bound: bool) -> None:
    tensors, rows = serving_of(tensor_engine()), serving_of(engine(1))
    line = Line({"any": tensors, MODEL: rows}, model="any" if bound else "")
    assert line.flow(frame_of(1.0, ROW)) == (0 if bound else 1)
    told = "any@1 takes tensors (x), not rows; send it requests through the endpoint"
    assert [fault.detail for fault in line.faults] == ([f"source line: {told}"] if bound else [])
    assert (tensors.vitals.requests, tensors.vitals.errors) == ((1, 1) if bound else (0, 0))


def tensor_engine() -> Engine:
    one, other = tensor("x", "INT64", ["N"]), tensor("y", "INT64", ["N"])
    return engine_of(Signature(inputs=[one], outputs=[other]))
