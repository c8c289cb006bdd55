"""The code on the pages runs as it stands."""

import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[3] / "docs/federated"


@pytest.mark.parametrize("page", ["strategies.md", "differential-privacy.md", "compression.md"])
def test_the_code_on_the_page_runs_as_it_stands(page: str) -> None:
    random = np.random.default_rng(0)
    there: dict = {
        "os": os,
        "file": tempfile.TemporaryFile(),  # noqa: SIM115
        "delta": random.normal(size=2_000).astype(np.float32),
        "residual": np.zeros(2_000, np.float32),
        "theta": np.zeros(9, np.float32),
        "deltas": {f"d{i}": random.normal(size=9).astype(np.float32) for i in range(5)},
    }
    codes = re.findall(r"```python\n(.*?)```", (FOLDER / page).read_text(), re.DOTALL)
    assert codes
    for code in codes:
        exec(code, there)
    if page == "strategies.md":
        assert there["server"].rounds == 1
    elif page == "compression.md":
        assert np.abs(there["received"] - there["delta"]).max() < 0.05
        assert np.count_nonzero(there["residual"]) >= 1_980
    else:
        assert there["epsilon"](there["spent"], 1e-6) < 8


def test_every_reason_to_refuse_or_to_leave_out_is_in_the_documents() -> None:
    root = FOLDER.parents[1]
    pages = (FOLDER / "rounds.md").read_text() + (FOLDER / "secure-aggregation.md").read_text()
    sources = (
        "agent/shoal/agent/federated/eligibility.py",
        "agent/shoal/agent/federated/secagg.py",
        "controller/shoal/controller/federated/planning/client_selection.py",
        "controller/shoal/controller/federated/rounds/machine.py",
        "shared/shoal/federated/chunks.py",
    )
    slugs = {
        slug
        for source in sources
        for slug in re.findall(r'"([a-z]+(?:-[a-z]+)+)"', (root / source).read_text())
    }
    assert len(slugs) >= 20
    assert sorted(slug for slug in slugs if f"`{slug}`" not in pages) == []
