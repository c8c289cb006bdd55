"""Triton's and KServe's own clients work unchanged, JSON and binary.

They are installed in an environment of their own by scripts/clients.sh; without a package index
the tests are skipped.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from devices import MODEL, softmax
from endpoints import Running, named
from tensor_models import MODEL as TENSORS_MODEL
from tensor_models import identity, loaded, running_sum

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-clients/bin/python"
ROWS = np.array([[0.5, -0.5], [1, 2]], np.float32)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(700)]


@pytest.fixture(scope="module")
def clients() -> Path:
    made = subprocess.run(
        [ROOT / "scripts/clients.sh"], capture_output=True, text=True, timeout=600, check=False
    )
    if made.returncode:
        pytest.skip(f"the clients could not be installed: {made.stderr.strip()[-200:]}")
    return PYTHON


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.stop()


@pytest.mark.parametrize("which", ["triton-json", "triton-binary", "kserve-json", "kserve-binary"])
def test_a_client_works_unchanged(which: str, clients: Path, running: Running) -> None:
    script = Path(__file__).with_name("oip_clients.py")
    ran = subprocess.run(
        [clients, script, which, running.url, MODEL],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2_000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["live"] is found["ready"] is found["model_ready"] is True
    assert (found["id"], found["release"]) == ("7", [MODEL, "3"])
    for outputs in found["outputs"]:
        np.testing.assert_allclose(outputs, softmax(ROWS, 3), rtol=1e-5)
    assert "takes the one input 'input', got ['nope']" in found["refused"]
    if which.startswith("triton"):
        assert (found["version_ready"], found["other_ready"]) == (True, False)
        assert found["server"] == "shoal-agent"
        assert found["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 2]}]


@pytest.mark.parametrize("mode", ["json", "binary"])
def test_tritons_client_sends_strings_and_streams_sequences(
    mode: str, clients: Path, tmp_path: Path
) -> None:
    texts, sums = loaded(tmp_path / "t", identity("BYTES")), loaded(tmp_path / "s", running_sum())
    running = Running(tmp_path, texts, named("sums", sums))
    script = Path(__file__).with_name("oip_clients.py")
    ran = subprocess.run(
        [clients, script, f"triton-tensors-{mode}", running.url, TENSORS_MODEL],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    running.stop()
    assert ran.returncode == 0, ran.stderr[-2_000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert {"sequence", "sequence(string_id)"} <= set(found["extensions"])
    assert found["text"] == ["a", "é", ""]
    assert found["sums"] == [[[1, 2]], [[2, 4]], [[3, 6]]]
