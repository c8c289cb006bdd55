"""Where other people's packages are, if they are anywhere: each in an environment of its own."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def python_with(module: str, variable: str) -> str:
    """The interpreter that has `module`; skips the test, and says why, where there is none.

    variable   of the environment that names it, instead of .venv-peers
    """
    python = os.environ.get(variable, str(ROOT / ".venv-peers/bin/python"))
    try:
        found = subprocess.run([python, "-c", f"import {module}"], capture_output=True)
    except OSError:
        pytest.skip(f"no {module} here: {variable}, or .venv-peers with it installed")
    if found.returncode != 0:
        pytest.skip(f"{python} has no {module}")
    return python
