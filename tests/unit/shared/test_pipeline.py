"""The pipeline: the same numbers on the controller and on the device, and nothing made up."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import manifest, pipeline
from shoal.errors import BundleError, InputError, SettingError
from shoal.pipeline import IDENTITY, Input, Pipeline, Stretch
from shoal.preparation import Preparation, convert
from shoal.units import UNITS, conversion

NUMBER = st.floats(-1e6, 1e6)
UNIT_PAIRS = [(a, b) for a in UNITS for b in UNITS if UNITS[a].dimension == UNITS[b].dimension]


@st.composite
def inputs(draw: st.DrawFn, name: str) -> Input:
    bound = draw(st.floats(0, 1e5))
    given_unit, unit = draw(st.sampled_from([("", ""), *UNIT_PAIRS]))
    return Input(
        name=name,
        source=draw(st.sampled_from(["", f"plant/{name}"])),
        given=given_unit,
        unit=unit,
        low=draw(st.sampled_from([None, -bound])),
        high=draw(st.sampled_from([None, bound])),
        outside=draw(st.sampled_from(["keep", "missing", "clip"])),
        missing=draw(st.sampled_from([None, "refuse", "last", "mean", "constant"])),
        fill=draw(NUMBER),
        scale=draw(st.floats(0.01, 100)),
        offset=draw(NUMBER),
    )


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    names = [f"x{i}" for i in range(draw(st.integers(1, 4)))]
    missing = draw(st.sampled_from(["refuse", "last", "constant"]))
    return Pipeline(inputs=[draw(inputs(name)) for name in names], missing=missing)


def features(line: Pipeline) -> list[str]:
    return [i.name for i in line.inputs]


def plant_names(line: Pipeline) -> tuple[str, ...]:
    return tuple(i.source or i.name for i in line.inputs)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Pipeline, np.ndarray]:
    line = draw(pipelines())
    cell = st.one_of(NUMBER, st.sampled_from([np.nan, np.inf, -np.inf]))
    wide = len(line.inputs)
    rows = draw(st.lists(st.lists(cell, min_size=wide, max_size=wide), min_size=1, max_size=6))
    return line, np.array(rows, np.float64)


@given(cases())
def test_a_device_makes_of_a_row_what_the_controller_made_of_it(
    case: tuple[Pipeline, np.ndarray],
) -> None:
    line, rows = case
    table = convert(line, features(line), rows)
    for row, wanted in zip(rows, table, strict=True):
        fresh = Preparation(line, features(line))  # no value before it to repeat
        made = fresh.rows(0.0, plant_names(line), row[None]).values[0]
        np.testing.assert_array_equal(made, wanted)


@given(cases(), st.randoms())
def test_the_order_of_columns_and_columns_of_others_change_nothing(
    case: tuple[Pipeline, np.ndarray], random: "np.random.Generator"
) -> None:
    line, rows = case
    names = [*plant_names(line), "another", "and another"]
    wide = np.concatenate([rows, np.ones((len(rows), 2))], axis=1)
    order = list(range(len(names)))
    random.shuffle(order)
    mixed = tuple(names[i] for i in order)
    made = Preparation(line, features(line)).rows(0.0, mixed, wide[:, order])
    wanted = Preparation(line, features(line)).rows(0.0, plant_names(line), rows)
    np.testing.assert_array_equal(made.values, wanted.values)


@given(cases())
def test_a_value_that_may_not_be_filled_stays_missing_for_the_model_to_refuse_by_name(
    case: tuple[Pipeline, np.ndarray],
) -> None:
    line, rows = case
    table = convert(line, features(line), rows)
    for column, one in enumerate(line.inputs):
        if (one.missing or line.missing) in ("mean", "constant"):
            assert np.isfinite(table[:, column]).all()
        else:
            assert np.isnan(table[~np.isfinite(rows[:, column]), column]).all()


@given(pipelines())
def test_a_pipeline_survives_its_own_json_and_a_manifest_that_carries_it_is_checked(
    line: Pipeline,
) -> None:
    pipeline.check(line, features(line))
    assert pipeline.parse(msgspec.json.encode(line)) == line


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2))
def test_without_inputs_every_number_reaches_the_model_bit_for_bit(row: list[float]) -> None:
    given_rows = np.array([row], np.float32)
    made = Preparation(IDENTITY, ["a", "b"]).rows(0.0, ("a", "b"), given_rows).values
    assert made.dtype == np.float32
    assert made.tobytes() == given_rows.tobytes()


def test_a_whole_tensor_is_scaled_without_naming_each_of_its_values() -> None:
    line = Pipeline(scale=1 / 255, offset=-0.5)
    pixels = np.array([[0, 255]], np.uint8)
    made = Preparation(line, ["a", "b"]).rows(0.0, (), pixels).values
    assert made.tolist() == [[-0.5, 0.5]]
    assert convert(line, ["a", "b"], pixels).tolist() == made.tolist()


@given(st.sampled_from(UNIT_PAIRS), st.floats(-1e4, 1e4))
def test_a_unit_converted_there_and_back_is_the_same(pair: tuple[str, str], value: float) -> None:
    gain, bias = conversion(*pair)
    back_gain, back_bias = conversion(*pair[::-1])
    assert (value * gain + bias) * back_gain + back_bias == pytest.approx(value, abs=1e-5, rel=1e-9)


@pytest.mark.parametrize(
    ("given_unit", "wanted", "value", "right"),
    [("°F", "°C", 32, 0), ("psi", "bar", 1, 0.0689476), ("rpm", "Hz", 60, 1), ("%", "1", 5, 0.05),
     ("C", "K", 0, 273.15), ("m3/h", "l/min", 6, 100), ("g", "m/s2", 1, 9.80665)],
)  # fmt: skip
def test_units_are_converted_as_a_table_of_physics_has_it(
    given_unit: str, wanted: str, value: float, right: float
) -> None:
    gain, bias = conversion(given_unit, wanted)
    assert value * gain + bias == pytest.approx(right, rel=1e-5)


# ------------------------------------------------------------------------------------- memory


def test_the_last_value_is_repeated_until_it_is_stale_and_then_missing_again() -> None:
    line = Pipeline(missing="last", stale_s=10.0)
    at_work = Preparation(line, ["a", "b"])
    at_work.rows(0.0, ("a", "b"), np.array([[1.0, 2.0]]))
    made = at_work.rows(10.0, ("b",), np.array([[5.0]])).values
    assert made.tolist() == [[1.0, 5.0]]
    late = at_work.rows(10.5, ("b",), np.array([[6.0]])).values
    assert np.isnan(late[0, 0])
    assert late[0, 1] == 6.0


def windowed(samples: int, rate_hz: float = 0.0, every: int = 1, **choices: str) -> Preparation:
    line = Pipeline(
        inputs=[Input(name="x", scale=2.0), Input(name="y")],
        stretch=Stretch(samples=samples, rate_hz=rate_hz, every=every),
        **choices,
    )
    return Preparation(line, [f"{i}" for i in range(2 * samples)])


def at(work: Preparation, time_s: float, x: float) -> list[list[float]]:
    return work.rows(time_s, ("x", "y"), np.array([[x, -x]])).values.tolist()


def test_a_stretch_holds_the_last_samples_oldest_first_with_every_input() -> None:
    work = windowed(3)
    assert at(work, 0, 1) == at(work, 1, 2) == []
    assert at(work, 2, 3) == [[2, -1, 4, -2, 6, -3]]
    assert at(work, 3, 4) == [[4, -2, 6, -3, 8, -4]]


def test_a_stretch_is_what_the_controller_makes_of_the_same_samples_in_a_row_of_a_table() -> None:
    work = windowed(3)
    made = [at(work, t, x) for t, x in enumerate([1.5, 2.25, 3.0])][-1]
    line = work._pipeline
    table = convert(line, [f"{i}" for i in range(6)], np.array([[1.5, -1.5, 2.25, -2.25, 3, -3]]))
    assert table.tolist() == made


def test_an_answer_is_due_every_so_many_samples() -> None:
    work = windowed(2, every=3)
    assert [len(at(work, t, t)) for t in range(8)] == [0, 0, 1, 0, 0, 1, 0, 0]


def test_of_several_readings_in_one_period_the_first_counts() -> None:
    work = windowed(2, rate_hz=1.0)
    assert at(work, 0.0, 1) == at(work, 0.4, 9) == []
    assert at(work, 1.0, 2) == [[2, -1, 4, -2]]
    assert at(work, 1.9, 9) == at(work, 0.5, 9) == []


def test_a_gap_repeats_the_last_value_where_the_pipeline_sets_it() -> None:
    work = windowed(3, rate_hz=1.0, missing="last")
    at(work, 0.0, 1)
    assert at(work, 2.0, 3) == [[2, -1, 2, -1, 6, -3]]


def test_a_gap_that_may_not_be_filled_restarts_the_window_and_names_the_input() -> None:
    work = windowed(2, rate_hz=1.0)
    at(work, 0.0, 1)
    with pytest.raises(InputError, match="'x' is missing: the stretch of 2 samples restarts"):
        at(work, 5.0, 2)
    assert at(work, 6.0, 3) == []
    assert at(work, 7.0, 4) == [[6, -3, 8, -4]]


@settings(max_examples=50)
@given(
    st.integers(1, 5), st.integers(1, 3),
    st.lists(st.floats(0, 0.3), min_size=1, max_size=40),
)  # fmt: skip
def test_whatever_the_arrival_times_a_stretch_is_whole_and_its_samples_are_in_order(
    samples: int, every: int, steps: list[float]
) -> None:
    work = windowed(samples, rate_hz=10.0, every=every, missing="last")
    time_s = 0.0
    for number, step in enumerate(steps):
        time_s += step
        for stretch in at(work, time_s, float(number)):
            xs = stretch[::2]
            assert len(xs) == samples
            assert xs == sorted(xs)


# ------------------------------------------------------------------------------------- refused

BAD = [
    (Pipeline(inputs=[Input(name="a"), Input(name="a")]), "'a' is there twice"),
    (Pipeline(inputs=[Input(name="b"), Input(name="a")]), "in the same order"),
    (Pipeline(inputs=[Input(name="a", given="bar", unit="°C")]), "is pressure, .°C. is"),
    (Pipeline(inputs=[Input(name="a", given="furlong", unit="m")]), "no unit 'furlong'"),
    (Pipeline(inputs=[Input(name="a", low=2, high=1)]), "low 2 above high 1"),
    (Pipeline(inputs=[Input(name="a", missing="mean")]), "filled with a mean and has no fill"),
    (Pipeline(inputs=[Input(name="a", scale=0)]), "scale 0"),
    (Pipeline(missing="constant"), "needs inputs with a fill"),
    (Pipeline(scale=0), "scale is 0"),
    (Pipeline(inputs=[Input(name="a")], offset=1), "beside inputs"),
    (Pipeline(stretch=Stretch(samples=2)), "do not make the model's"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "why"), BAD, ids=[why for _, why in BAD])
def test_a_pipeline_that_cannot_be_is_refused_by_name(line: Pipeline, why: str) -> None:
    names = ["a", "b"] if len(line.inputs) == 2 else ["a"]
    with pytest.raises(SettingError, match=why.replace("°", ".")):
        pipeline.check(line, names)


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b'{"missing": "guess"}', b'{"inputs": [{}]}', b'{"stretch": {}}', b"\xff"]
)
def test_what_is_no_pipeline_is_refused(text: bytes) -> None:
    with pytest.raises(SettingError, match="pipeline"):
        pipeline.parse(text)


def test_a_manifest_whose_pipeline_does_not_fit_its_features_is_refused(
    a_manifest: manifest.Manifest,
) -> None:
    odd = msgspec.structs.replace(a_manifest, pipeline=Pipeline(inputs=[Input(name="other")]))
    assert manifest.parse(manifest.encode(a_manifest)) == a_manifest
    with pytest.raises(BundleError, match="its inputs are other"):
        manifest.parse(manifest.encode(odd))


def test_a_frame_of_another_width_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \[1, 3\], \[rows, 2\] is needed"):
        Preparation(IDENTITY, ["a", "b"]).rows(0.0, (), np.zeros((1, 3)))


@pytest.fixture
def a_manifest() -> manifest.Manifest:
    from devices import Cloud

    return Cloud().manifest(1, 1, "lot-codes", b"")


# ------------------------------------------------------------------ images


def test_an_image_is_declared_with_the_model_with_its_format() -> None:
    line = pipeline.parse(b'{"image": {"width": 4, "height": 3, "mode": "L"}, "scale": 0.5}')
    assert line.image is not None
    assert (line.image.values, str(line.image)) == (12, "4x3 L chw")
    pipeline.check(line, [f"p{i}" for i in range(12)])
    assert b"image" not in msgspec.json.encode(IDENTITY), "older agents read what they always read"


@pytest.mark.parametrize(
    ("text", "features", "says"),
    [
        (b'{"image": {"width": 4, "height": 3}}', 12, "36 values, the model reads 12"),
        (b'{"image": {"width": 4, "height": 3}, "inputs": [{"name": "p0"}]}', 1, "beside inputs"),
        (b'{"image": {"width": 0, "height": 3}}', 0, "width"),
        (b'{"image": {"width": 4, "height": 3, "mode": "CMYK"}}', 12, "mode"),
    ],
)
def test_an_image_that_cannot_be_is_refused_by_name(text: bytes, features: int, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        pipeline.check(pipeline.parse(text), [f"p{i}" for i in range(features)])
