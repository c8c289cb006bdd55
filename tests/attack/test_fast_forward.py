"""Attack: the thief of an online key signs the highest version there can be, to block all others.

Recovered from by a root, signed offline, with another key: what the stolen one signed is no floor.
"""

from pathlib import Path

import pytest

from devices import Cloud, Device
from repositories import NOW, Repository
from shoal.errors import StaleError
from shoal.trust import ImageRepository

HIGHEST = 2**40


@pytest.mark.parametrize("stolen", ["timestamp", "snapshot"])
@pytest.mark.parametrize("cache", ["kept", "deleted"])
def test_devices_take_releases_again_once_root_names_another_key(
    stolen: str, cache: str, tmp_path: Path
) -> None:
    repository = Repository()
    before = dict(repository.version)
    repository.version |= {"timestamp": HIGHEST, stolen: HIGHEST}
    repository.publish()
    device = ImageRepository(tmp_path / "a", repository.root, repository.fetch)
    seen = device.refresh(NOW)
    assert seen.versions[stolen] == HIGHEST + 1

    repository.version |= {"timestamp": before["timestamp"] + 5, stolen: before[stolen] + 5}
    repository.publish()
    with pytest.raises(StaleError):
        device.refresh(NOW, seen)
    repository.rotate("timestamp")
    repository.rotate("snapshot")
    repository.publish()
    again = ImageRepository(
        tmp_path / ("a" if cache == "kept" else "b"), repository.root, repository.fetch
    )
    after = again.refresh(NOW, seen)
    assert after.versions[stolen] < 100


def test_both_floors_fall_with_either_key(tmp_path: Path) -> None:
    """The thief held both; the second key is of no use without the first (TUF 5.3.11)."""
    repository = Repository()
    repository.version |= {"timestamp": HIGHEST, "snapshot": HIGHEST}
    repository.publish()
    device = ImageRepository(tmp_path, repository.root, repository.fetch)
    seen = device.refresh(NOW)
    repository.version |= {"timestamp": 5, "snapshot": 5}
    repository.rotate("timestamp")
    repository.publish()
    after = device.refresh(NOW, seen)
    assert after.versions == {"timestamp": 6, "snapshot": 6}


def test_a_key_that_is_only_added_lowers_nothing(tmp_path: Path) -> None:
    repository = Repository()
    repository.version["timestamp"] = HIGHEST
    repository.publish()
    seen = ImageRepository(tmp_path / "a", repository.root, repository.fetch).refresh(NOW)
    repository.version["timestamp"] = 5
    repository.rotate("targets")
    repository.publish()
    with pytest.raises(StaleError):
        ImageRepository(tmp_path / "b", repository.root, repository.fetch).refresh(NOW, seen)


def test_the_floors_of_a_device_fall_and_rise_again(device: Device, cloud: Cloud) -> None:
    repository = cloud.repository
    repository.version |= {"timestamp": HIGHEST, "snapshot": HIGHEST}
    device.assign(cloud.release(2))
    device.run(40)
    assert device.journal.floors().metadata["snapshot"] > HIGHEST
    repository.version |= {"timestamp": 50, "snapshot": 50}
    device.assign(cloud.release(3))
    device.run(40)
    assert (device.serves(), device.record.cause) == ("lot-codes@2", "stale")
    repository.rotate("timestamp")
    repository.rotate("snapshot")
    device.restart()
    device.assign(cloud.release(4))
    device.run(40)
    assert device.serves() == "lot-codes@4"
    assert device.journal.floors().metadata["snapshot"] < 100
    repository.version |= {"timestamp": 5, "snapshot": 5}
    device.assign(cloud.release(5))
    device.run(40)
    assert (device.serves(), device.record.cause) == ("lot-codes@4", "stale")


def test_the_highest_assignment_is_no_floor_once_the_director_has_another_key(
    device: Device, cloud: Cloud
) -> None:
    device.assign(version=2**53)
    device.run(3)
    assert device.journal.floors().assignment == 2**53
    cloud.repository.rotate_director()
    device.agent.on_director_root(cloud.repository.director_root)
    device.restart()
    device.assign(cloud.release(2), version=7)
    device.run(40)
    assert device.serves() == "lot-codes@2"
    assert device.journal.floors().assignment == 7
    device.assign(cloud.release(3), version=6)
    device.run(20)
    assert device.serves() == "lot-codes@2"
