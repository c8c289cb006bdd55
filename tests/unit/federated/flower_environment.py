"""Where Flower is, if it is anywhere."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def flower_python() -> str:
    """The interpreter that has flwr; skips the test, and says why, where there is none."""
    python = os.environ.get("SHOAL_FLOWER_PYTHON", str(ROOT / ".venv-peers/bin/python"))
    try:
        found = subprocess.run([python, "-c", "import flwr"], capture_output=True)
    except OSError:
        pytest.skip("no Flower here: SHOAL_FLOWER_PYTHON, or .venv-peers with flwr installed")
    if found.returncode != 0:
        pytest.skip(f"{python} has no flwr")
    return python
