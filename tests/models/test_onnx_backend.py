"""The ONNX standard's own tests: what onnxruntime loads is imported as tensors, and the endpoint
answers it bit for bit as onnxruntime does; what it cannot serve is refused by name.

Source: onnx.backend.test, which the onnx package carries; its node cases are made in memory.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests

from endpoints import inference_of, served
from shoal.agent.serving.io.runtime import OrtLoader
from shoal.controller.training.io import model_checks, runtime, tensor_runs
from shoal.errors import ShoalError
from shoal.golden import GoldenTensors
from shoal.profile import profile
from shoal.tensors import Array
from tensor_models import MODEL, TensorModel, ask, put_tensors, same, slot_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")
PROFILE = profile("x86-vnni")


class Case(NamedTuple):
    """A model and one set of inputs, with the answers of the standard's reference."""

    name: str
    data: bytes
    inputs: list[Array]
    answers: list[Any]
    rtol: float
    atol: float


def cases() -> Iterator[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in KINDS:
            for test in load_model_tests(kind=kind):
                model, inputs, answers = _read(test)
                yield Case(test.name, model, inputs, answers, test.rtol, test.atol)


def _read(test: Any) -> tuple[bytes, list[Array], list[Any]]:
    if test.model is not None:
        inputs, answers = (test.data_sets or [([], [])])[0]
        return test.model.SerializeToString(), _arrays(inputs), [_plain(a) for a in answers]
    data = Path(test.model_dir, "model.onnx").read_bytes()
    folder = Path(test.model_dir, "test_data_set_0")
    return data, _arrays(_stored(folder, "input")), [_plain(a) for a in _stored(folder, "output")]


def _stored(folder: Path, which: str) -> list[TensorProto]:
    count = len(list(folder.glob(f"{which}_*.pb")))
    paths = [folder / f"{which}_{i}.pb" for i in range(count)]
    return [TensorProto.FromString(path.read_bytes()) for path in paths]


def _arrays(values: list[Any]) -> list[Array]:
    return [np.asarray(_plain(value)) for value in values if not isinstance(value, list)]


def _plain(value: Any) -> Any:
    array = numpy_helper.to_array(value) if isinstance(value, TensorProto) else value
    if isinstance(array, np.ndarray) and array.dtype.kind in "SUO":
        texts = [t.decode() if isinstance(t, bytes) else str(t) for t in array.ravel()]
        return np.array(texts, object).reshape(array.shape)
    return array


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Case -> "answered", "answered otherwise" than the standard, "refused", or what went wrong."""
    folder = tmp_path_factory.mktemp("case")
    onnxruntime.set_default_logger_severity(4)
    return {case.name: outcome(case, folder) for case in cases()}


def outcome(case: Case, folder: Path) -> str:
    try:
        model, checked = imported(case)
    except ShoalError as error:
        named = case.name in str(error)
        return "refused" if named else f"refused without its name: {error}"
    except Exception as error:
        return f"{type(error).__name__} at import: {error!s:.200}"
    try:
        found = answered(model, folder)
    except Exception as error:
        return f"{type(error).__name__} on the device: {error!s:.200}"
    wanted = raw(case, model)
    for name in checked:
        if not same(found[name], wanted[name]):
            return f"{name} is not what onnxruntime answers"
    return "answered" if _is_standard(case, list(found.values())) else "answered otherwise"


def imported(case: Case) -> tuple[TensorModel, list[str]]:
    """What an import makes of it, and the outputs that do not differ from run to run."""
    facts = model_checks.check_model(onnx.load_model_from_string(case.data), case.name)
    model_checks.check_servable(facts, case.name)
    session = runtime.open_session(case.data, case.name)
    names = [tensor.name for tensor in facts.inputs]
    sample = dict(zip(names, case.inputs, strict=False))
    measured = tensor_runs.measure(session, facts, case.name, [sample])
    golden = msgspec.msgpack.decode(measured.golden, type=GoldenTensors)
    checked = list(golden.vectors[0].outputs["fp32"])
    return TensorModel(case.data, measured.signature, [sample]), checked


def answered(model: TensorModel, folder: Path) -> dict[str, Array]:
    """The endpoint's answer to one binary request, from a release on disk."""
    put_tensors(folder, model)
    engine = OrtLoader(lambda model, slot: folder).load(slot_of(), PROFILE)
    return ask(inference_of({MODEL: served(engine)}), model.feeds[0])


def raw(case: Case, model: TensorModel) -> dict[str, Array]:
    session = runtime.open_session(case.data, case.name)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(model.feeds[0])), strict=True))


def _is_standard(case: Case, found: list[Array]) -> bool:
    return all(
        _is_close(got, np.asarray(want), case)
        for got, want in zip(found, case.answers, strict=False)
    )


def _is_close(got: Array, want: Array, case: Case) -> bool:
    if got.shape != want.shape:
        return False
    if want.dtype.kind not in "fc":
        return bool((got == want).all())
    rtol, atol = max(case.rtol, 1e-3), max(case.atol, 1e-5)
    both = got.astype(np.float64), want.astype(np.float64)
    return bool(np.allclose(*both, rtol=rtol, atol=atol, equal_nan=True))


def test_no_case_ends_otherwise_than_answered_or_refused_by_name(outcomes: dict[str, str]) -> None:
    known = {"answered", "answered otherwise", "refused"}
    assert {name: how for name, how in outcomes.items() if how not in known} == {}


def test_every_case_that_onnxruntime_runs_is_answered_as_it_does(outcomes: dict[str, str]) -> None:
    counts = Counter(outcomes.values())
    assert counts["answered"] + counts["answered otherwise"] >= 1_688
    assert counts["answered"] >= 1_666
