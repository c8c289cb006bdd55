"""Where other people's packages are, if they are anywhere: each in an environment of its own."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def python_with(module: str, peer: str) -> str:
    """The interpreter that has `module`; skips the test, and says why, where there is none.

    peer   "flower": .venv-peers/flower, or what SHOAL_FLOWER_PYTHON names
    """
    variable, folder = f"SHOAL_{peer.upper()}_PYTHON", f".venv-peers/{peer}"
    python = os.environ.get(variable, str(ROOT / folder / "bin/python"))
    try:
        found = subprocess.run([python, "-c", f"import {module}"], capture_output=True)
    except OSError:
        pytest.skip(f"no {module} here: {variable}, or {folder} with it installed")
    if found.returncode != 0:
        pytest.skip(f"{python} has no {module}")
    return python
