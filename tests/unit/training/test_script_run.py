"""A training script in its process: what it is given, what it may take, and how its end is told."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from shoal.controller.data.records import Column, DatasetVersion
from shoal.controller.training.io import script_run
from shoal.controller.training.io.rows import Data, Rows
from shoal.controller.training.jobs import ScriptLimits
from shoal.errors import ModelError
from shoal.estimators import ScriptParams

LIMITS = ScriptLimits(cpu_s=20, memory_mb=1_024, file_mb=8)


def run(folder: Path, code: str, limits: ScriptLimits = LIMITS, **params: Any) -> tuple[bytes, Any]:
    """The model that a script leaves, and its notes."""

    def rows(n: int) -> Rows:
        return Rows(np.ones((n, 2), np.float32), np.arange(n) % 2, np.full(n, "north"))

    data = Data(["heat", "load"], ["good", "bad"], rows(30), rows(10), rows(10), 0)
    dataset = DatasetVersion(
        name="parts", version=2, sha256="", size=0, rows=40, label="state", site="plant", split="",
        columns=[Column(name="heat", dtype="float64", role="feature", missing=0)],
        parents=[], how="", created_at=0, created_by="",
    )  # fmt: skip
    script = folder / "uploaded"
    script.write_text(code)
    given = script_run.Given(
        ScriptParams(name="fit", **params), data, "m", "classification", dataset
    )
    with script_run.run(script, given, limits) as left:
        return left.onnx.read_bytes(), left.notes


def test_a_script_gets_training_rows_and_what_it_needs_to_know(tmp_path: Path) -> None:
    code = """
import json, pandas
table = pandas.read_parquet("train.parquet")
job = json.load(open("job.json"))
open("model.onnx", "wb").write(b"onnx")
print(*({name: value} for name, value in job.items()), {"table": len(table)},
      list(table[job["label"]][:2]), sep="\\n", file=open("notes.txt", "w"))
"""
    onnx, notes = run(tmp_path, code, values={"depth": 4}, seed=7)
    assert onnx == b"onnx"
    for words in (
        "'rows': 30", "'held_back': 10", "'features': ['heat', 'load']",
        "'labels': ['good', 'bad']",
        "'dataset': 'parts@2'", "'role': 'feature'", "'site': 'plant'", "'seed': 7",
        "'params': {'depth': 4}", "'table': 30", "['good', 'bad']",
    ):  # fmt: skip
        assert words in "\n".join(notes)


def test_nothing_of_the_controllers_environment_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_PASSWORD", "secret")
    code = """
import os
open("model.onnx", "wb").write(b"onnx")
print("SHOAL_PASSWORD" in os.environ, os.listdir(os.environ["HOME"]), file=open("notes.txt", "w"))
"""
    assert run(tmp_path, code)[1] == ["False []"]


def test_a_function_of_the_script_is_called_with_the_folder(tmp_path: Path) -> None:
    code = "def fit(folder):\n    (folder / 'model.onnx').write_bytes(b'onnx')\n"
    assert run(tmp_path, code, entry="fit")[0] == b"onnx"


def test_what_it_reports_is_noted_as_its_own_claim(tmp_path: Path) -> None:
    code = "open('model.onnx', 'wb'); open('metrics.json', 'w').write('{\"f1\": 0.5}')"
    assert run(tmp_path, code)[1] == ["reported by the script, not measured here: f1 0.5"]


ENDS = {
    "an exception": ("x = 1\nraise ValueError('no rows')", ["line 2", "ValueError: no rows"]),
    "deep in a library": ("import json\n\njson.loads('{')", ["fit.py, line 3 (json.loads('{'))"]),
    "a status": ("import sys\nsys.exit(3)", ["line 2", "ended itself with 3"]),
    "memory": ("b = bytearray(2 << 30)", ["more than 1024 MB of memory, line 1"]),
    "a large file": (
        "f = open('big', 'wb')\nfor _ in range(20):\n    f.write(bytes(1 << 20))",
        ["more than 8 MB, line 3", "script_file_mb"],
    ),
    "a crash": ("import os\nos.kill(os.getpid(), 11)", ["SIGSEGV"]),
    "its own kill": ("import os\nos.kill(os.getpid(), 9)", ["SIGKILL"]),
    "no model": ("open('model.pkl', 'w')", ["left no model.onnx", "model.pkl"]),
    "a link": ("import os\nos.symlink('/etc/passwd', 'model.onnx')", ["left no model.onnx"]),
    "no numbers": (
        "open('model.onnx', 'w'); open('metrics.json', 'w').write('[1]')",
        ["metrics.json is no object of numbers"],
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_script_that_fails_is_told_with_its_line_and_the_next_step(
    tmp_path: Path, end: str
) -> None:
    code, words = ENDS[end]
    with pytest.raises(ModelError) as caught:
        run(tmp_path, code)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_script_that_never_ends_is_ended_after_its_cpu_time(tmp_path: Path) -> None:
    limits = msgspec.structs.replace(LIMITS, cpu_s=1)
    with pytest.raises(ModelError, match="after 1 s of CPU"):
        run(tmp_path, "while True: pass", limits)
