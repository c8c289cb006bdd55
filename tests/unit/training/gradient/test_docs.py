"""docs/federated/train-graph.md says what is true."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from unit.training.gradient.models import classes, mlp
from unit.training.gradient.running import OPERATORS

PAGE = (Path(__file__).parents[4] / "docs/federated/train-graph.md").read_text()


def test_the_page_lists_every_operator_that_has_a_gradient_and_no_other() -> None:
    [listed] = re.findall(r"<!-- operators -->(.*?)<!-- /operators -->", PAGE, re.DOTALL)
    assert listed.replace("\n", " ").strip().split(", ") == OPERATORS


def test_the_code_on_the_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(mlp("Softmax"), "model.onnx")
    there = {"batches": [classes(32, seed=seed) for seed in range(200)]}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, there)
    assert there["loss"] < 0.5
    assert isinstance(there["trained"], onnx.ModelProto)
    assert np.isfinite(there["theta"]).all()
