"""Which test results are findings, and the drift alert made of them."""

import msgspec
import pytest

from shoal.controller.monitoring import findings
from shoal.controller.monitoring.records import Finding

FOUND = Finding(
    id=1, at=0.0, kind="drift", scope="device", subject="cam-3", model="lot-codes",
    release="lot-codes@4", feature="contrast", channel="mean",
    what="mean down by 0.8 sd", log10_p=-31.4, log10_alpha=-8.2, moved=0.8, psi=0.9, rows=120,
)  # fmt: skip


def found(**change):
    return msgspec.structs.replace(FOUND, **change)


def test_findings_of_one_site_are_one_alert_that_names_the_worst_first():
    draft = findings.alert_draft(
        "south",
        [
            found(feature="blur", log10_p=-9.0),
            found(),
            found(subject="cam-4"),
            found(scope="site", subject="south"),
            *(found(feature=f"p{i}") for i in range(9)),
        ],
        "retrain: shoal model train lot-codes --dataset codes",
    )
    assert draft.features[:2] == ["blur", "contrast"]
    assert len(draft.features) == 11
    for fact in ("and 7 more", "(cam-3, cam-4)", "mean down by 0.8 sd", "10^-31", "10^-8"):
        assert fact in draft.detail
    assert draft.key == findings.alert_key("south", "lot-codes", "lot-codes@4")
    assert draft.next_step.endswith("retrain: shoal model train lot-codes --dataset codes")


@pytest.mark.parametrize(("moved", "severity"), [(0.25, "warning"), (1.2, "critical")])
def test_the_severity_says_how_far_it_moved_and_not_how_far_from_training_it_is(moved, severity):
    one = found(moved=moved, psi=5.0)
    assert findings.alert_draft("south", [one], "retrain").severity == severity


def test_another_site_model_or_release_is_another_alert():
    keys = {
        findings.alert_draft(
            site, [found(model=model, release=f"{model}@{version}")], "retrain"
        ).key
        for site in ("north", "south")
        for model in ("lot-codes", "pumps")
        for version in (4, 5)
    }
    assert len(keys) == 8
