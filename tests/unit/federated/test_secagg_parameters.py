"""How many neighbours and shares are enough."""

import re
from pathlib import Path

import pytest
from scipy.stats import hypergeom

from shoal.controller.federated.secagg.parameters import assess, choose
from shoal.errors import SettingError


@pytest.mark.parametrize("malicious", [False, True])
@pytest.mark.parametrize(("devices", "corrupt", "lost"), [
    (50, 0.05, 0.1), (200, 0.1, 0.1), (500, 0.2, 0.1), (1000, 0.1, 0.2),
])  # fmt: skip
def test_what_is_chosen_is_safe_by_the_tails_that_scipy_computes(
    devices: int, corrupt: float, lost: float, malicious: bool
) -> None:
    found = choose(devices, corrupt, lost, malicious=malicious)
    opens = 2 * found.threshold - found.degree if malicious else found.threshold
    bad, gone = round(corrupt * devices + 0.49), round(lost * devices + 0.49)
    private = devices * hypergeom.sf(opens - 1, devices - 1, bad, found.degree)
    short = devices * hypergeom.sf(found.degree - found.threshold, devices - 1, gone, found.degree)
    assert private <= 2**-40 * 1.001
    assert short <= 2**-20 * 1.001
    assert 2 * found.threshold > found.degree


def test_a_malicious_controller_needs_more_neighbours_than_a_semi_honest_one() -> None:
    assert (
        choose(1000, 0.1, 0.1, malicious=True).degree
        > choose(1000, 0.1, 0.1, malicious=False).degree
    )


def test_the_degree_hardly_grows_with_the_fleet() -> None:
    assert choose(2000, 0.1, 0.1).degree < 1.5 * choose(500, 0.1, 0.1).degree


def test_where_no_graph_is_safe_the_error_has_the_bound() -> None:
    with pytest.raises(SettingError, match="a round may fail every time"):
        choose(4, 0.0, 0.5)
    with pytest.raises(SettingError, match="let more devices take part"):
        choose(6, 0.4, 0.4)


@pytest.mark.parametrize(("devices", "corrupt", "lost"), [(2, 0, 0), (9, 0.6, 0.4), (9, -0.1, 0)])
def test_what_cannot_be_is_refused(devices: int, corrupt: float, lost: float) -> None:
    with pytest.raises(SettingError, match="honest"):
        choose(devices, corrupt, lost)


def test_a_small_cohort_without_dropout_or_corruption_is_safe() -> None:
    found = choose(5, 0.0, 0.0)
    assert found.safe()
    assert assess(5, 4, 3, 0.0, 0.2).failure > float("-inf") or found.degree == 4


def test_the_table_in_the_documents_is_what_is_chosen() -> None:
    page = (Path(__file__).parents[3] / "docs/federated/secure-aggregation.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) == 7
    for devices, cells in rows:
        said = cells.split(" | ")
        cases = [(0.05, 0.05, True), (0.1, 0.1, True), (0.2, 0.1, True), (0.1, 0.1, False)]
        for (corrupt, lost, malicious), cell in zip(cases, said, strict=True):
            try:
                found = choose(int(devices), corrupt, lost, malicious=malicious)
            except SettingError:
                assert cell == "none"
            else:
                assert cell == f"{found.degree} / {found.threshold}"
