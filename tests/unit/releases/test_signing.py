"""What the controller signs, a device verifies: both sides of the trust, on real metadata."""

import hashlib
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from controllers import NOW, Clock, repository_fetch
from shoal.controller.releases.io.signing import DAYS, Signer
from shoal.errors import (
    MisdirectedError,
    RevokedError,
    SettingError,
    StaleError,
    TrustError,
    UntrustedError,
)
from shoal.orders import Order
from shoal.trust import ImageRepository, check_ring, removal, verify_orders

MANIFEST = b'{"model":"lot-codes"}'


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def signer(tmp_path: Path, clock: Clock) -> Signer:
    return Signer.create(tmp_path, clock)


@pytest.fixture
def device(tmp_path: Path, signer: Signer) -> ImageRepository:
    return ImageRepository(tmp_path / "cache", signer.root, repository_fetch(tmp_path))


def order(
    role: str = "release", version: int = 3, data: bytes = MANIFEST, model: str = "lot-codes"
) -> Order:
    return Order(
        model=model,
        version=version,
        path=f"{role}/{model}/{version}/manifest.json",
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        rollout="r1",
        attempt=1,
        deadline_s=NOW + 60.5,
    )


def test_a_signed_release_is_one_that_a_device_accepts(
    signer: Signer, device: ImageRepository
) -> None:
    assert signer.add_target("release", "lot-codes", 3, MANIFEST) == order().path
    device.refresh(NOW)
    device.check(order())


def test_an_unsigned_release_is_refused(signer: Signer, device: ImageRepository) -> None:
    signer.add_target("candidate", "lot-codes", 3, MANIFEST)
    device.refresh(NOW)
    with pytest.raises(UntrustedError, match="not in the image repository"):
        device.check(order("release"))


def test_a_release_that_was_taken_out_of_the_metadata_is_refused_and_the_others_are_not(
    signer: Signer, device: ImageRepository
) -> None:
    for role, version in (("candidate", 3), ("release", 3), ("release", 4)):
        signer.add_target(role, "lot-codes", version, MANIFEST)
    device.refresh(NOW)
    device.check(order())
    signer.remove_target("lot-codes", 3)
    device.refresh(NOW)
    for role in ("candidate", "release"):
        with pytest.raises(UntrustedError, match="not in the image repository"):
            device.check(order(role))
    device.check(order(version=4))


def test_taking_out_what_is_not_listed_changes_nothing(signer: Signer) -> None:
    signer.add_target("release", "lot-codes", 3, MANIFEST)
    before = signer.timestamp
    signer.remove_target("lot-codes", 9)
    signer.remove_target("pump", 1)
    assert signer.timestamp == before


def test_a_revocation_is_signed_once_in_the_next_epoch_of_both_roles(
    signer: Signer, device: ImageRepository
) -> None:
    for role, version in (("candidate", 3), ("release", 3), ("release", 4)):
        signer.add_target(role, "lot-codes", version, MANIFEST)
    assert [signer.revoke_target("lot-codes", version) for version in (3, 3, 9)] == [2, 2, 3]
    signer.add_target("release", "lot-codes", 5, MANIFEST)
    device.refresh(NOW)
    for role in ("candidate", "release"):
        with pytest.raises(RevokedError, match="lot-codes@3 was revoked, in security epoch 3"):
            device.check(order(role))
    assert device.check(order(version=4)) == device.check(order(version=5)) == 3
    assert device.epoch("lot-codes").revoked == [3, 9]
    assert device.epoch("pump").epoch == 1


def test_an_assignment_names_epochs_only_where_a_release_was_revoked(signer: Signer) -> None:
    def read(*named: dict[str, int]) -> dict[str, int]:
        signed = signer.sign_orders("cam-1", 4, [order()], NOW, *named)
        root = signer.director_root
        return verify_orders(signed, director_root=root, device="cam-1", floor=4, now_s=NOW).epochs

    assert read() == {}
    assert read({"lot-codes": 2}) == {"lot-codes": 2}
    assert b"epochs" not in signer.sign_orders("cam-1", 4, [order()], NOW, {})


def test_an_order_to_remove_reads_as_it_was_signed(signer: Signer) -> None:
    gone = removal("pump", rollout="u-1", attempt=2)
    signed = signer.sign_orders("cam-1", 4, [order(), gone], NOW)
    read = verify_orders(
        signed, director_root=signer.director_root, device="cam-1", floor=4, now_s=NOW
    )
    assert gone in read.orders
    assert [(one.removes, one.release) for one in read.orders] == [
        (False, "lot-codes@3"),
        (True, ""),
    ]


def test_a_release_of_other_bytes_than_ordered_is_refused(
    signer: Signer, device: ImageRepository
) -> None:
    signer.add_target("release", "lot-codes", 3, MANIFEST)
    device.refresh(NOW)
    with pytest.raises(UntrustedError, match="disagree"):
        device.check(order(data=b"something else"))


def test_the_key_for_candidates_cannot_sign_a_release(
    tmp_path: Path, signer: Signer, device: ImageRepository
) -> None:
    """A stolen automation key: it writes the release role's file, and every device refuses it."""
    signer.add_target("candidate", "lot-codes", 3, MANIFEST)
    keys = tmp_path / "keys"
    (keys / "release-lot-codes.pem").write_bytes((keys / "candidate-lot-codes.pem").read_bytes())
    thief = Signer.open(tmp_path, lambda: NOW)
    thief.add_target("release", "lot-codes", 3, MANIFEST)
    device.refresh(NOW)
    with pytest.raises(UntrustedError):
        device.check(order("release"))


def test_one_models_key_signs_no_other_models_release(signer: Signer) -> None:
    signer.add_target("release", "lot-codes", 1, MANIFEST)
    signer.add_target("release", "pump", 1, MANIFEST)
    version = Metadata.from_bytes(signer.timestamp).signed.snapshot_meta.version
    snapshot = Metadata.from_file(str(signer.metadata_folder / f"{version}.snapshot.json"))
    at = snapshot.signed.meta["targets.json"].version
    targets = Metadata.from_file(str(signer.metadata_folder / f"{at}.targets.json")).signed
    roles = targets.delegations.roles
    assert roles["release-pump"].keyids != roles["release-lot-codes"].keyids
    assert not roles["release-pump"].is_delegated_path("release/lot-codes/1/manifest.json")
    assert all(role.terminating for role in roles.values())


def test_an_assignment_reads_as_it_was_ordered(signer: Signer) -> None:
    ordered = [order(), order("candidate", 9, model="pump")]
    signed = signer.sign_orders("cam-1", 4, ordered, NOW)
    read = verify_orders(
        signed, director_root=signer.director_root, device="cam-1", floor=4, now_s=NOW
    )
    assert (read.version, read.signed_s) == (4, NOW)
    assert {o.path: o.attempt for o in read.orders} == {
        "release/lot-codes/3/manifest.json": 1, "candidate/pump/9/manifest.json": 1
    }  # fmt: skip
    assert {o.release for o in read.orders} == {"lot-codes@3", "pump@9"}
    assert read.orders[0].deadline_s == int(NOW + 60)


def test_an_assignment_of_two_releases_of_one_model_is_refused(signer: Signer) -> None:
    signed = signer.sign_orders("cam-1", 4, [order(), order("candidate", 9)], NOW)
    root = signer.director_root
    with pytest.raises(TrustError, match="two releases of one model"):
        verify_orders(signed, director_root=root, device="cam-1", floor=4, now_s=NOW)


def test_an_assignment_is_for_one_device_and_for_a_week(signer: Signer) -> None:
    signed = signer.sign_orders("cam-1", 4, [order()], NOW)
    root = signer.director_root
    with pytest.raises(MisdirectedError):
        verify_orders(signed, director_root=root, device="cam-2", floor=0, now_s=NOW)
    late = NOW + DAYS["director"] * 86_400 + 1
    with pytest.raises(StaleError):
        verify_orders(signed, director_root=root, device="cam-1", floor=0, now_s=late)


def test_another_controllers_director_is_not_obeyed(tmp_path: Path, signer: Signer) -> None:
    other = Signer.create(tmp_path / "other", lambda: NOW)
    signed = other.sign_orders("cam-1", 4, [order()], NOW)
    with pytest.raises(UntrustedError):
        verify_orders(
            signed, director_root=signer.director_root, device="cam-1", floor=0, now_s=NOW
        )


def test_a_stable_device_takes_no_candidate() -> None:
    check_ring(order("candidate"), "canary")
    with pytest.raises(MisdirectedError):
        check_ring(order("candidate"), "stable")


def test_keys_are_the_owners_alone(tmp_path: Path, signer: Signer) -> None:
    signer.add_target("release", "lot-codes", 1, MANIFEST)
    folder = tmp_path / "keys"
    names = {path.stem for path in folder.iterdir()}
    assert names == {
        "root-1", "root-2", "root-3", "targets", "snapshot", "timestamp", "director",
        "release-lot-codes", "candidate-lot-codes",
    }  # fmt: skip
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_without_renewal_devices_install_nothing_new_after_a_day(
    signer: Signer, device: ImageRepository, clock: Clock
) -> None:
    device.refresh(clock())
    with pytest.raises(StaleError):
        device.refresh(clock.pass_days(1.01))


@pytest.mark.parametrize("days", [0.6, 4, 8, 50, 100, 200, 400])
def test_what_ages_is_signed_anew_before_it_expires(
    signer: Signer, device: ImageRepository, clock: Clock, days: float
) -> None:
    """Half a life at a time, as the engine's ticks do it, a device follows all the way."""
    signer.add_target("release", "lot-codes", 3, MANIFEST)
    end = clock() + days * 86_400
    while clock() < end:
        signer.refresh_timestamps(clock.pass_days(min(10, days)))
    device.refresh(clock())
    device.check(order())


def test_nothing_is_signed_anew_while_it_is_fresh(signer: Signer, clock: Clock) -> None:
    assert signer.refresh_timestamps(clock()) == []
    assert signer.refresh_timestamps(clock.pass_days(0.6)) == ["timestamp"]
    assert signer.refresh_timestamps(clock()) == []


def test_keys_that_were_moved_offline_are_asked_for_by_name(
    tmp_path: Path, signer: Signer, clock: Clock
) -> None:
    signer.add_target("release", "lot-codes", 3, MANIFEST)
    for name in ("root-1", "root-2", "root-3", "targets", "release-lot-codes"):
        (tmp_path / "keys" / f"{name}.pem").unlink()
    poorer = Signer.open(tmp_path, clock)
    with pytest.raises(SettingError, match="release-lot-codes is not in"):
        poorer.add_target("release", "lot-codes", 4, MANIFEST)
    poorer.add_target("candidate", "lot-codes", 4, MANIFEST)
    poorer.refresh_timestamps(clock.pass_days(4))


def test_a_write_that_the_power_cut_short_is_done_anew(
    tmp_path: Path, signer: Signer, device: ImageRepository
) -> None:
    """The role's file was written and timestamp.json was not: the old repository is whole."""
    signer.add_target("release", "lot-codes", 1, MANIFEST)
    before = signer.timestamp
    signer.add_target("release", "lot-codes", 3, MANIFEST)
    (signer.metadata_folder / "timestamp.json").write_bytes(before)
    device.refresh(NOW)
    with pytest.raises(UntrustedError):
        device.check(order())
    signer.add_target("release", "lot-codes", 3, MANIFEST)
    device.refresh(NOW)
    device.check(order())


SIGN_MANY = """
import sys
from pathlib import Path
from shoal.controller.releases.io.signing import Signer
signer = Signer.open(Path(sys.argv[1]), lambda: float(sys.argv[3]))
for version in range(1, 6):
    signer.add_target("release", sys.argv[2], version, b"{}")
"""


def test_processes_that_sign_at_once_lose_nothing(
    tmp_path: Path, signer: Signer, device: ImageRepository
) -> None:
    models = ["lot-codes", "pump"]
    running = [
        subprocess.Popen([sys.executable, "-c", SIGN_MANY, tmp_path, model, str(NOW)])
        for model in models
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    device.refresh(NOW)
    for version in range(1, 6):
        device.check(order(version=version, data=b"{}"))


def test_the_error_for_a_folder_without_keys_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="shoal-controller init"):
        Signer.open(tmp_path)
