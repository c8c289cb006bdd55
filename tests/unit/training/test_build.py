"""From a table to a model with its variants, measured on rows that it has not seen."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

from controllers import HYDRAULIC, OTHER_CONDITIONS, csv, digits, numbers, shared_data
from shoal.controller.data import frames, table_files
from shoal.controller.data.records import DatasetVersion
from shoal.controller.releases.records import Built
from shoal.controller.training.io import (
    build,
    onnx_graph,
    quantize,
    reference_sketches,
    row_candidates,
    rows,
    runtime,
)
from shoal.controller.training.jobs import Job
from shoal.errors import DatasetError, ModelError, SettingError
from shoal.estimators import read_params
from shoal.profile import load_recipes
from shoal.sketch import References

INT8 = ["int8-u8s8-pc", "int8-u8s8-pc-rr", "int8-s8s8-pc"]


def silent(fraction: float, step: str) -> None:
    assert 0 <= fraction <= 1
    assert step


def dataset(path: Path, label: str, site: str = "", split: str = "", drop: tuple[str, ...] = ()):  # type: ignore[no-untyped-def]
    frame = table_files.read_frame(path)
    return DatasetVersion(
        name="d", version=1, sha256="", size=0, rows=len(frame),
        columns=frames.describe(frame, label=label, site=site, split=split, drop=drop),
        label=label, site=site, split=split, parents=[], how="", created_at=0, created_by="",
    )  # fmt: skip


def job(path: Path, version: DatasetVersion, **more: object) -> Job:
    return Job(model="m", dataset=version, table=path, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def digit_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    path = tmp_path_factory.mktemp("digits") / "digits.csv"
    digits().to_csv(path, index=False)
    return job(path, dataset(path, "digit", "station"))


@pytest.fixture(scope="module")
def digit_model(digit_job: Job) -> Built:
    return build.build(digit_job, silent)


@pytest.fixture(scope="module")
def hydraulic() -> Callable[..., Built]:
    path = shared_data(HYDRAULIC)
    version = dataset(path, "pump_leak", "cooler_pct", "group", tuple(OTHER_CONDITIONS))

    def train(**params: object) -> Built:
        return build.build(job(path, version, params=params), silent)

    return train


# --- the split ----------------------------------------------------------------------------------


def test_rows_of_one_group_are_never_torn_apart() -> None:
    path = shared_data(HYDRAULIC)
    version = dataset(path, "pump_leak", "cooler_pct", "group", tuple(OTHER_CONDITIONS))
    frame = table_files.read_frame(path)
    data = rows.prepare(job(path, version), read_params("mlp", {}), "classification")
    names = frames.features_of(version)
    group_of = {
        row.tobytes(): group
        for row, group in zip(frame[names].to_numpy(np.float32), frame["group"], strict=True)
    }
    train = {group_of[row.tobytes()] for row in data.train.x}
    held = {group_of[row.tobytes()] for row in data.held.x}
    assert not train & held
    assert set(data.held.y) == set(data.train.y) == {0, 1, 2}
    assert set(data.held.site) == {"100", "20", "3"}


def test_the_same_seed_holds_the_same_rows_back(digit_job: Job) -> None:
    def held(seed: int) -> bytes:
        params = read_params("mlp", {"seed": seed})
        return rows.prepare(digit_job, params, "classification").held.x.tobytes()

    assert held(1) == held(1) != held(2)


def test_rows_with_a_missing_value_are_left_out_and_counted(tmp_path: Path) -> None:
    heat = numbers()
    heat[:5] = np.nan
    path = csv(tmp_path / "t.csv", {"heat": heat, "leak": [i % 2 for i in range(60)]})
    data = rows.prepare(job(path, dataset(path, "leak")), read_params("mlp", {}), "classification")
    assert (sum(data.left_out.values()), len(data.train.y) + len(data.held.y)) == (5, 55)


def test_a_table_that_is_mostly_gaps_names_the_worst_column(tmp_path: Path) -> None:
    heat = numbers()
    heat[:50] = np.nan
    path = csv(tmp_path / "t.csv", {"heat": heat, "leak": [i % 2 for i in range(60)]})
    with pytest.raises(DatasetError, match=r"10 of 60 rows.*heat"):
        build.build(job(path, dataset(path, "leak")), silent)


def test_a_label_of_many_numbers_asks_for_regression(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", {"heat": numbers(), "wear": numbers(seed=1)})
    with pytest.raises(DatasetError, match="regression"):
        build.build(job(path, dataset(path, "wear")), silent)


@pytest.mark.parametrize(
    ("estimator", "params", "words"),
    [
        ("xgboost", {}, "there are: mlp, logistic"),
        ("mlp", {"hiden": [4]}, "its parameters are: .*hidden"),
        ("mlp", {"hidden": []}, "hidden"),
        ("mlp", {"holdout": 0.95}, "holdout"),
    ],
)
def test_a_wrong_parameter_lists_the_valid_ones(
    estimator: str, params: dict[str, object], words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        read_params(estimator, params)


# --- digits -------------------------------------------------------------------------------------


def test_digits_are_learned(digit_model: Built) -> None:
    assert digit_model.metrics["accuracy"] > 0.95
    assert digit_model.labels == [str(d) for d in range(10)]
    assert set(digit_model.by_site) == {"s0", "s1", "s2"}
    assert digit_model.metrics["worst_site"] == min(digit_model.by_site.values())
    assert digit_model.metrics["noise_10pct"] > 0.9
    assert digit_model.why_refused == ""


def test_an_int8_variant_of_digits_is_real_and_loses_less_than_its_gate(
    digit_model: Built,
) -> None:
    passed = {(v.profile, v.variant) for v in digit_model.verdicts if v.passed}
    assert passed > {("rpi4", INT8[0]), ("rpi5", INT8[0]), ("rpi5", INT8[2])}
    for name in (INT8[0], INT8[2]):
        operators = [
            node.op_type for node in onnx.load_from_string(digit_model.files[name]).graph.node
        ]
        assert operators.count("QuantizeLinear") >= 3
        assert len(digit_model.files[name]) < 0.6 * len(digit_model.files["fp32"])


def test_every_variant_has_the_same_face(digit_model: Built) -> None:
    x = load_digits().data[:5].astype(np.float32)
    for name, data in digit_model.files.items():
        session = runtime.open_session(data, name)
        (inside,), (outside,) = session.get_inputs(), session.get_outputs()
        assert (inside.name, inside.shape, inside.type) == ("input", ["N", 64], "tensor(float)")
        assert (outside.name, outside.shape) == ("output", ["N", 10])
        answers = runtime.run(session, x, name)
        assert answers.dtype == np.float32
        np.testing.assert_allclose(answers.sum(1), 1, atol=2e-2)


def test_a_weight_range_is_halved_where_the_cpu_would_saturate(digit_model: Built) -> None:
    rows_of = row_candidates.batches(load_digits().data.astype(np.float32))
    made = quantize.Quantizer(onnx.load_from_string(digit_model.files["fp32"]), rows_of)

    def largest(name: str) -> int:
        model = onnx.load_from_string(made.make(load_recipes()[name], name))
        weights = [numpy_helper.to_array(t) for t in model.graph.initializer]
        return max(
            int(np.abs(w.astype(int)).max()) for w in weights if w.dtype == np.int8 and w.ndim == 2
        )

    assert largest("int8-u8s8-pc") > 100
    assert largest("int8-u8s8-pc-rr") <= 64


def test_golden_vectors_hold_every_class_and_each_variants_own_answers(digit_model: Built) -> None:
    import io

    with np.load(io.BytesIO(digit_model.golden)) as golden:
        inputs = golden["inputs"]
        assert inputs.shape[1] == 64
        assert 32 <= len(inputs) <= 40
        for name, data in digit_model.files.items():
            answers = runtime.outputs(data, inputs, name)
            np.testing.assert_allclose(golden[f"output:{name}"], answers, atol=1e-6)
        assert set(golden["output:fp32"].argmax(1)) == set(range(10))


def test_references_describe_the_training_rows(digit_model: Built) -> None:
    found = msgspec.json.decode(digit_model.references, type=References)
    assert [f.name for f in found.inputs.features] == [f"p{i}" for i in range(64)]
    score, prediction = found.outputs.features
    assert (score.name, prediction.name) == ("score", "prediction")
    assert 0.5 in score.edges
    assert len(score.edges) == 19
    assert prediction.edges == [k + 0.5 for k in range(9)]
    assert sum(prediction.counts) == sum(found.inputs.features[0].counts) == 1347


def test_the_score_is_cut_exactly_at_an_odd_threshold() -> None:
    assert 0.37 in reference_sketches.score_edges(0.37)
    assert reference_sketches.prediction_edges(2) == [0.5]
    assert len(reference_sketches.prediction_edges(500)) <= 64


def test_the_same_seed_gives_the_same_model(digit_job: Job, digit_model: Built) -> None:
    again = build.build(digit_job, silent)
    assert again.files["fp32"] == digit_model.files["fp32"]
    assert again.metrics == digit_model.metrics


def test_a_forest_stays_fp32_with_a_reason(digit_job: Job) -> None:
    forest = build.build(
        msgspec.structs.replace(digit_job, estimator="random-forest", params={"trees": 20}), silent
    )
    assert list(forest.files) == ["fp32"]
    assert "tree ensembles do not quantize" in forest.card
    assert all(v.passed == (v.variant == "fp32") for v in forest.verdicts)


@pytest.mark.parametrize("estimator", ["ridge", "mlp-regressor", "random-forest-regressor"])
def test_a_quantity_is_learned_too(tmp_path: Path, estimator: str) -> None:
    heat, speed = numbers(300, 1), numbers(300, 2)
    path = csv(tmp_path / "t.csv", {"heat": heat, "speed": speed, "wear": 2 * heat - speed + 5})
    made = build.build(job(path, dataset(path, "wear"), estimator=estimator), silent)
    assert made.metrics["r2"] > 0.8
    assert runtime.outputs(made.files["fp32"], np.zeros((2, 2), np.float32), "m").shape == (2, 1)
    outputs = msgspec.json.decode(made.references, type=References).outputs.features
    assert [f.name for f in outputs] == ["score"]


@pytest.mark.parametrize("estimator", ["mlp", "logistic", "random-forest"])
def test_a_yes_or_no_has_two_columns_and_its_score_is_that_of_yes(
    tmp_path: Path, estimator: str
) -> None:
    heat = numbers(400)
    columns = {"heat": heat, "night": heat > 9, "leak": np.where(heat > 0.5, "yes", "no")}
    path = csv(tmp_path / "t.csv", columns)
    made = build.build(job(path, dataset(path, "leak"), estimator=estimator), silent)
    assert made.labels == ["no", "yes"]
    said = runtime.outputs(made.files["fp32"], np.array([[3, 0], [-3, 0]], np.float32), "m")
    assert said.shape == (2, 2)
    assert said[0, 1] > 0.9 > 0.1 > said[1, 1]
    score, prediction = msgspec.json.decode(made.references, type=References).outputs.features
    assert 0.5 in score.edges
    assert prediction.edges == [0.5]
    assert prediction.counts[1] == sum(score.counts[score.edges.index(0.5) + 1 :])


def test_noise_teaches_nothing_and_the_release_is_refused(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", {"heat": numbers(400), "leak": [i % 2 for i in range(400)]})
    made = build.build(job(path, dataset(path, "leak"), estimator="logistic"), silent)
    assert "guessing" in made.why_refused


# --- the hydraulic rig --------------------------------------------------------------------------


def test_trained_at_one_cooling_regime_the_rig_model_fails_at_the_others_and_pooling_repairs_it(
    hydraulic: Callable[..., Built],
) -> None:
    alone, pooled = hydraulic(sites=["100"]), hydraulic()
    assert alone.by_site["100"] > 0.95
    assert alone.by_site["20"] < 0.8
    assert alone.by_site["3"] < 0.6
    assert min(pooled.by_site.values()) > 0.93
    assert "trained on site 100 only" in alone.card
    assert {v.profile for v in pooled.verdicts if v.variant == INT8[0] and v.passed} >= {"rpi4"}


def test_a_site_that_is_not_there_is_named_with_those_that_are(
    hydraulic: Callable[..., Built],
) -> None:
    with pytest.raises(DatasetError, match="no rows of site '7'; sites are: 3, 20, 100"):
        hydraulic(sites=["7"])


# --- models from elsewhere ----------------------------------------------------------------------


def linear(width: int = 64, columns: int = 10, *, softmax: bool = True) -> onnx.ModelProto:
    """A model as another exporter would name it."""
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.normal(size=(width, columns)).astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", ["pixels", "w"], ["logits"])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["probs"], axis=1))
    last = "probs" if softmax else "logits"
    body = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", columns])],
        [weights],
    )  # fmt: skip
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def import_onnx(digit_job: Job, folder: Path, model: onnx.ModelProto | bytes) -> Built:
    path = folder / "own.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    imported = msgspec.structs.replace(digit_job, estimator="imported", onnx=path)
    return build.build(imported, silent)


def test_a_column_that_is_the_label_is_named_in_notes_and_card(tmp_path: Path) -> None:
    path = tmp_path / "parts.csv"
    rng = np.random.default_rng(1)
    heat = rng.normal(size=400)
    bad = heat + rng.normal(size=400) > 0
    table = {"heat": heat, "load": rng.normal(size=400), "code": 3 - bad, "defect": bad}
    pd.DataFrame(table).to_csv(path, index=False)
    built = build.build(job(path, dataset(path, "defect"), estimator="logistic"), silent)
    assert "column 'code' alone predicts 'defect'" in built.notes[0]
    assert built.notes[0] in built.card
    assert not built.why_refused


def test_whole_numbers_that_were_taken_for_classes_are_named_and_two_of_them_are_not(
    tmp_path: Path,
) -> None:
    heat = numbers()
    grade = np.digitize(heat, np.quantile(heat, [0.3, 0.6]))
    path = csv(tmp_path / "t.csv", {"heat": heat, "grade": grade, "bad": grade > 1})
    built = build.build(job(path, dataset(path, "grade"), estimator="logistic"), silent)
    assert any("'grade' holds 3 different numbers, which were taken for classes" in note
               and note.endswith("--task regression") for note in built.notes)  # fmt: skip
    table = {"heat": heat, "bad": (grade > 1) * 1}
    path = csv(tmp_path / "two.csv", table)
    built = build.build(job(path, dataset(path, "bad"), estimator="logistic"), silent)
    assert not any("taken for" in note for note in built.notes)


def test_a_trained_model_from_elsewhere_gets_variants_and_golden_vectors(
    digit_job: Job, digit_model: Built, tmp_path: Path
) -> None:
    made = import_onnx(digit_job, tmp_path, digit_model.files["fp32"])
    assert made.metrics == digit_model.metrics
    assert {INT8[0], INT8[2], "fp32"} <= set(made.files)


def test_logits_get_a_softmax_and_the_card_mentions_it(digit_job: Job, tmp_path: Path) -> None:
    made = import_onnx(digit_job, tmp_path, linear(softmax=False))
    assert "softmax was added" in made.card
    answers = runtime.outputs(made.files["fp32"], np.ones((1, 64), np.float32), "m")
    assert answers.sum() == pytest.approx(1, abs=1e-5)


def test_names_that_collide_with_ours_are_made_room_for() -> None:
    model = linear()
    for node in model.graph.node:
        node.input[:] = [{"logits": "output"}.get(n, n) for n in node.input]
        node.output[:] = [{"logits": "output"}.get(n, n) for n in node.output]
    own = onnx_graph.normalise(model, "probs", 64, 10)
    answers = runtime.outputs(own.SerializeToString(), np.ones((2, 64), np.float32), "m")
    np.testing.assert_allclose(answers.sum(1), 1, atol=1e-5)


def with_opset(version: int) -> onnx.ModelProto:
    model = linear()
    model.opset_import[0].version = version
    return model


def with_operator(name: str, domain: str = "") -> onnx.ModelProto:
    model = linear()
    model.graph.node[0].op_type, model.graph.node[0].domain = name, domain
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def with_external_data() -> onnx.ModelProto:
    model = linear()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../../etc/passwd")
    return model


def with_input(kind: int) -> onnx.ModelProto:
    model = linear()
    model.graph.input[0].type.tensor_type.elem_type = kind
    return model


def with_fixed_batch() -> onnx.ModelProto:
    model = linear()
    model.graph.node.insert(0, helper.make_node("Reshape", ["pixels", "shape"], ["one"]))
    model.graph.node[1].input[0] = "one"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 64]), "shape"))
    return model


BROKEN: dict[str, tuple[Callable[[], onnx.ModelProto | bytes], str]] = {
    "no ONNX": (lambda: b"hello, I am a model", "not an ONNX"),
    "empty": (lambda: b"", "not an ONNX"),
    "an opset of the future": (lambda: with_opset(999), "opset 999"),
    "an operator of the future": (lambda: with_operator("Telepathy"), "Telepathy"),
    "a custom operator": (lambda: with_operator("Foo", "com.acme"), "com.acme"),
    "weights in other files": (
        with_external_data,
        "other files.*was not given; shoal model import takes it",
    ),
    "too few inputs": (lambda: linear(width=63), "63.*64 features"),
    "too few classes": (lambda: linear(columns=9), r"\(3, 9\) for 3 rows, \(3, 10\) is needed"),
    "double precision": (
        lambda: with_input(TensorProto.DOUBLE),
        "takes DOUBLE; export it",
    ),
    "a fixed batch": (with_fixed_batch, "batch dimension"),
}


@pytest.mark.parametrize(("make", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_model_that_cannot_serve_is_refused_with_what_to_change(
    digit_job: Job, tmp_path: Path, make: Callable[[], onnx.ModelProto | bytes], words: str
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        import_onnx(digit_job, tmp_path, make())
    assert caught.value.hint


def test_what_is_quantized_already_is_not_quantized_again(digit_model: Built) -> None:
    model = onnx.load_from_string(digit_model.files["int8-u8s8-pc"])
    assert quantize.not_quantizable(model) == "it is already quantized"


def test_labels_that_the_imported_model_does_not_know_are_named(
    digit_job: Job, digit_model: Built, tmp_path: Path
) -> None:
    path = tmp_path / "own.onnx"
    path.write_bytes(digit_model.files["fp32"])
    imported = msgspec.structs.replace(
        digit_job, estimator="imported", onnx=path, labels=[str(d) for d in range(9)]
    )
    with pytest.raises(DatasetError, match="labels the model does not know: 9"):
        build.build(imported, silent)
