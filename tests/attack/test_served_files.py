"""Attack: a device serves another file than its release has, and its inventory says so."""

from collections.abc import Iterator

import pytest

from fakes import memory_folder
from fleet import MODEL, Fleet
from shoal import topics, wire
from shoal.controller.alerts import alerts
from shoal.controller.ingest.ingest import ingest
from shoal.controller.releases import releases
from shoal.wire import Installed, Inventory


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with memory_folder() as folder:
        fleet = Fleet(folder)
        fleet.release()
        fleet.station("cam-1", start=False)
        yield fleet


def report(fleet: Fleet, **change: object) -> list[tuple[str, str]]:
    """Title and state of the alerts after an inventory of what `change` says is served."""
    variant = releases.manifest_of(fleet.ctx, f"{MODEL}@1")[0].variants[0]
    plain = {"model": MODEL, "release": f"{MODEL}@1", "variant": variant.name, "slot": "a",
             "sha256": variant.file.sha256, "role": "release", "since_s": 1.0}  # fmt: skip
    inventory = Inventory(
        device="cam-1", boot="", seq=0, sent_s=1.0, agent="0.1.0", profile="rpi4", ring="stable",
        site="north", line="", labels={}, facts={}, installed=[Installed(**plain | change)],
        floors={},
    )  # fmt: skip
    ingest(fleet.ctx, [(topics.up("cam-1", "inventory"), wire.encode(inventory))])
    return [(alert.title, alert.state) for alert in alerts.list_alerts(fleet.ctx)]


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"variant": "no-such"}])
def test_the_controller_says_so_until_it_serves_its_release_again(
    fleet: Fleet, change: dict[str, str]
) -> None:
    title = "cam-1 serves a model that is not its release's"
    assert report(fleet, **change) == [(title, "open")]
    assert report(fleet) == [(title, "closed")]


def test_nothing_is_said_of_what_a_release_has_or_of_one_that_was_deleted(fleet: Fleet) -> None:
    assert report(fleet) == []
    assert report(fleet, release=f"{MODEL}@7", sha256="0" * 64) == []
