"""Who stands out in a round, and who does not."""

import msgspec
import numpy as np
import pytest

from digits import LocalTrainer, homes_of
from shoal.controller.federated.aggregation.outlier_scores import FEWEST, score
from shoal.controller.federated.updates import Update

#: What a liar multiplies its update by, and what is said of it.
LIES = {
    "sign flip": (-1.0, "against-the-others"),
    "scaled": (10.0, "far-longer"),
    "scaled and turned": (-10.0, "against-the-others"),
    "hardly anything": (0.001, "far-shorter"),
}


def learned(devices: int = 20) -> list[Update]:
    """Updates of devices whose digits are not alike, after one round; all of them honest."""
    homes, _ = homes_of(devices, np.random.default_rng(0))
    trainer, random = LocalTrainer(), np.random.default_rng(0)
    return [
        Update(
            device=f"d{i:02}",
            delta=trainer.train(trainer.theta, rows, 1, random) - trainer.theta,
            examples=len(rows.y),
            loss=2.3,
        )
        for i, rows in enumerate(homes)
    ]


HONEST = learned()
SIZE = HONEST[0].delta.size
WHOLE = [slice(0, SIZE)]


def lied(update: Update, by: float) -> Update:
    return msgspec.structs.replace(update, delta=np.float32(by) * update.delta)


@pytest.mark.parametrize("name", LIES)
def test_two_malicious_devices_of_twenty_are_suspect_with_the_reason(name: str) -> None:
    lie, why = LIES[name]
    largest = sorted(HONEST, key=lambda u: -float(np.linalg.norm(u.delta)))[2:4]
    liars = {update.device for update in largest}
    updates = [lied(u, lie) if u.device in liars else u for u in HONEST]

    found = {one.device: one.suspect for one in score(lambda _: updates, WHOLE)}

    assert {device for device, reason in found.items() if reason == why} >= liars


def test_devices_whose_data_differ_honestly_are_hardly_suspect() -> None:
    found = [one for one in score(lambda _: HONEST, WHOLE) if one.suspect]

    assert len(found) <= 2, found


def test_the_order_in_which_updates_are_read_changes_nothing() -> None:
    assert score(lambda _: HONEST, WHOLE) == score(lambda _: HONEST[::-1], WHOLE)


def test_a_long_update_does_not_dominate_the_direction_of_the_others() -> None:
    updates = [lied(HONEST[0], -1000), *HONEST[1:]]

    found = score(lambda _: updates, WHOLE)

    assert found[0].cosine < 0 < np.median([one.cosine for one in found[1:]])


def test_an_update_of_nothing_has_no_direction_and_breaks_nothing() -> None:
    updates = [lied(u, 0) for u in HONEST]

    found = score(lambda _: updates, WHOLE)

    assert {(one.norm, one.cosine, one.suspect) for one in found} == {(0.0, 0.0, "")}


def test_of_few_updates_none_is_suspect_because_the_spread_is_unknown() -> None:
    few = [lied(HONEST[0], 1000), *HONEST[1 : FEWEST - 1]]

    assert not [one.suspect for one in score(lambda _: few, WHOLE) if one.suspect]
