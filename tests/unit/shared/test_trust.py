"""A stolen key, a liar in between or a wiped cache: none of them gets a release onto a device."""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from tuf.api.metadata import Metadata, Targets

from repositories import DAY, NOW, Repository
from shoal.errors import (
    LinkError,
    MisdirectedError,
    ShoalError,
    StaleError,
    TrustError,
    UntrustedError,
)
from shoal.orders import Order
from shoal.trust import (
    ImageRepository,
    check_ring,
    director_expiry_s,
    removal,
    target_path,
    verify_orders,
)

MANIFEST = b'{"any": "bytes"}'


@pytest.fixture
def repository() -> Repository:
    return Repository()


@pytest.fixture
def order(repository: Repository) -> Order:
    return repository.add("release", "lot-codes", 3, MANIFEST)


def device(repository: Repository, cache: Path, root: bytes | None = None) -> ImageRepository:
    return ImageRepository(cache, root or repository.root, repository.fetch)


# ------------------------------------------------------------------------------ assignments


def verify(repository: Repository, signed: bytes, floor: int = 0, now: float = NOW):
    return verify_orders(
        signed, director_root=repository.director_root, device="cam-1", floor=floor, now_s=now
    )


def test_an_assignment_for_this_device_is_read_whole(repository: Repository, order: Order) -> None:
    orders = verify(repository, repository.orders("cam-1", 5, [order]))
    assert (orders.device, orders.version, orders.orders) == ("cam-1", 5, [order])
    assert orders.signed_s == NOW


@pytest.mark.parametrize("ring", ["stable", "canary"])
def test_an_order_to_remove_is_read_and_no_ring_takes_it_for_a_release(
    repository: Repository, order: Order, ring: str
) -> None:
    """So an agent that does not know it refuses it, and goes on serving."""
    gone = removal("pumps", rollout="u-1", attempt=1)
    read = verify(repository, repository.orders("cam-1", 5, [order, gone])).orders
    assert read == [order, gone]
    assert [one.removes for one in read] == [False, True]
    with pytest.raises(MisdirectedError):
        check_ring(gone, ring)


def signed_at(repository: Repository, signed_s: object) -> bytes:
    """An empty assignment that says so of itself, signed by the director."""
    metadata = Metadata[Targets].from_bytes(repository.orders("cam-1", 5, []))
    metadata.signed.unrecognized_fields["shoal"]["signed_s"] = signed_s
    metadata.sign(repository.keys["director"])
    return metadata.to_bytes()


def test_no_assignment_vouches_for_a_time_beyond_what_offline_keys_signed(
    repository: Repository,
) -> None:
    latest = director_expiry_s(repository.director_root)
    assert verify(repository, signed_at(repository, str(NOW + 1))).signed_s == NOW + 1
    assert verify(repository, signed_at(repository, str(NOW + 36_500 * DAY))).signed_s == latest


@pytest.mark.parametrize("signed_s", ["inf", "nan", "-inf", 10**400, "soon"])
def test_an_assignment_that_was_signed_at_no_time_is_refused(
    repository: Repository, signed_s: object
) -> None:
    with pytest.raises(TrustError):
        verify(repository, signed_at(repository, signed_s))


def test_the_same_assignment_may_come_again(repository: Repository, order: Order) -> None:
    verify(repository, repository.orders("cam-1", 5, [order]), floor=5)


def test_an_empty_assignment_is_one(repository: Repository) -> None:
    assert verify(repository, repository.orders("cam-1", 1, [])).orders == []


def misplaced(order: Order) -> Order:
    return msgspec.structs.replace(order, path=target_path("release", "lot-codes", 4))


ASSIGNMENTS: dict[str, tuple[Callable[[Repository, Order], bytes], type[TrustError]]] = {
    "for another device": (lambda r, o: r.orders("cam-2", 5, [o]), MisdirectedError),
    "older than one already seen": (lambda r, o: r.orders("cam-1", 3, [o]), StaleError),
    "expired": (lambda r, o: r.orders("cam-1", 5, [o], days=-1), StaleError),
    "signed by another key": (
        lambda r, o: r.orders("cam-1", 5, [o], signer="intruder"),
        UntrustedError,
    ),
    "signed by the release key": (
        lambda r, o: r.orders("cam-1", 5, [o], signer="release-lot-codes"),
        UntrustedError,
    ),
    "changed after signing": (
        lambda r, o: r.orders("cam-1", 5, [o]).replace(b"r-1", b"r-2"),
        UntrustedError,
    ),
    "not signed": (
        lambda r, o: r.orders("cam-1", 5, [o]).replace(b'"sig"', b'"gis"'),
        TrustError,
    ),
    "naming a path of another version": (
        lambda r, o: r.orders("cam-1", 5, [misplaced(o)]),
        MisdirectedError,
    ),
    "no metadata": (lambda r, o: b"{}", TrustError),
    "no JSON": (lambda r, o: b"\xff\x00", TrustError),
    "deep JSON": (lambda r, o: b"[" * 100_000, TrustError),
    "endless": (lambda r, o: b" " * 300_000, TrustError),
    "metadata of another kind": (lambda r, o: r.files["timestamp.json"], TrustError),
}


@pytest.mark.parametrize("kind", ASSIGNMENTS)
def test_an_assignment_is_refused_that_is(kind: str, repository: Repository, order: Order) -> None:
    make, error = ASSIGNMENTS[kind]
    with pytest.raises(error):
        verify(repository, make(repository, order), floor=4)


@pytest.mark.parametrize(
    ("role", "ring", "welcome"),
    [
        ("release", "stable", True),
        ("release", "canary", True),
        ("candidate", "canary", True),
        ("candidate", "stable", False),
        ("rounds", "canary", False),
        ("release", "beta", False),
    ],
)
def test_the_ring_decides_whose_signature_is_enough(
    role: str, ring: str, welcome: bool, repository: Repository
) -> None:
    order = repository.add(role, "lot-codes", 3, MANIFEST)
    if welcome:
        check_ring(order, ring)
    else:
        with pytest.raises(MisdirectedError, match="ring"):
            check_ring(order, ring)


# ------------------------------------------------------------------------------ images


def test_what_both_repositories_name_may_be_installed(
    repository: Repository, order: Order, tmp_path: Path
) -> None:
    images = device(repository, tmp_path)
    assert images.refresh(NOW).versions == {"timestamp": 2, "snapshot": 2}
    images.check(order)


def test_nothing_may_be_installed_before_metadata_was_fetched(
    repository: Repository, order: Order, tmp_path: Path
) -> None:
    with pytest.raises(TrustError):
        device(repository, tmp_path).check(order)


def freeze(repository: Repository) -> None:
    repository.now = NOW - 2 * DAY
    repository.publish()


def roll_back(repository: Repository) -> None:
    repository.version["timestamp"] = 0
    repository.publish()


def roll_targets_back(repository: Repository) -> None:
    repository.version["targets"] = 0
    repository.publish()


def sign_with(role: str) -> Callable[[Repository], None]:
    def attack(repository: Repository) -> None:
        repository.publish(lambda name: "intruder" if name == role else name)

    return attack


def mix_and_match(repository: Repository) -> None:
    """Another validly signed list of releases in place of the one that the snapshot names."""
    repository.publish()
    version = repository.version["targets"]
    older = repository.files[f"{version - 1}.targets.json"]
    repository.files[f"{version}.targets.json"] = older


def endless(repository: Repository) -> None:
    repository.files["timestamp.json"] += b" " * 1_000_000


def garbage(repository: Repository) -> None:
    repository.files["timestamp.json"] = b'{"signed"'


def usurp(repository: Repository) -> None:
    """A new root that the old root's keys did not sign."""
    repository.rotate("timestamp", signers=("intruder",))
    repository.publish()


ATTACKS: dict[str, tuple[Callable[[Repository], None], type[ShoalError]]] = {
    "freezing it in the past": (freeze, StaleError),
    "rolling the timestamp back": (roll_back, StaleError),
    "rolling the targets back": (roll_targets_back, StaleError),
    "forging the timestamp": (sign_with("timestamp"), UntrustedError),
    "forging the snapshot": (sign_with("snapshot"), UntrustedError),
    "forging the targets": (sign_with("targets"), UntrustedError),
    "mixing lists of releases": (mix_and_match, UntrustedError),
    "sending endless metadata": (endless, LinkError),
    "sending garbage": (garbage, TrustError),
    "usurping the root": (usurp, UntrustedError),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_new_is_installed_by(
    attack: str, repository: Repository, order: Order, tmp_path: Path
) -> None:
    images = device(repository, tmp_path)
    images.refresh(NOW)
    repository.publish()
    images.refresh(NOW)
    act, error = ATTACKS[attack]
    act(repository)
    with pytest.raises(error):
        images.refresh(NOW)


def test_a_release_signed_by_another_models_key_is_refused(
    repository: Repository, order: Order, tmp_path: Path
) -> None:
    """The path tells the role: what role lists it elsewhere does not count."""
    repository.releases["release-other"] = repository.releases.pop("release-lot-codes")
    repository.keys["release-other"] = repository.keys["release-lot-codes"]
    repository.publish()
    images = device(repository, tmp_path)
    images.refresh(NOW)
    with pytest.raises(UntrustedError, match="not in the image repository"):
        images.check(order)


def test_orders_of_several_models_are_checked_at_once(
    repository: Repository, tmp_path: Path
) -> None:
    orders = [repository.add("release", f"model-{i}", 1, MANIFEST) for i in range(8)]
    images = ImageRepository(tmp_path, repository.root, repository.fetch, threading.Lock())

    def check(order: Order) -> None:
        for _ in range(10):
            images.refresh(NOW)
            images.check(order)

    with ThreadPoolExecutor(len(orders)) as threads:
        assert list(threads.map(check, orders)) == [None] * len(orders)


def test_a_director_alone_cannot_invent_a_release(
    repository: Repository, order: Order, tmp_path: Path
) -> None:
    images = device(repository, tmp_path)
    images.refresh(NOW)
    invented = msgspec.structs.replace(
        order, version=9, path=target_path("release", "lot-codes", 9)
    )
    with pytest.raises(UntrustedError, match="not in the image repository"):
        images.check(invented)


def test_a_director_alone_cannot_change_a_release(
    repository: Repository, order: Order, tmp_path: Path
) -> None:
    images = device(repository, tmp_path)
    images.refresh(NOW)
    with pytest.raises(UntrustedError, match="disagree"):
        images.check(msgspec.structs.replace(order, sha256="0" * 64))


def test_a_wiped_cache_does_not_reopen_rollback(repository: Repository, tmp_path: Path) -> None:
    repository.publish()
    floors = device(repository, tmp_path).refresh(NOW)
    shutil.rmtree(tmp_path)
    old = Repository()
    old.keys, old.root = repository.keys, repository.root
    old.files["1.root.json"] = repository.root
    old.version = dict.fromkeys(old.version, 0)
    old.publish()
    with pytest.raises(StaleError, match="older"):
        device(old, tmp_path).refresh(NOW, floors)


def test_a_cache_cut_short_by_a_power_cut_is_fetched_again(
    repository: Repository, order: Order, tmp_path: Path
) -> None:
    device(repository, tmp_path).refresh(NOW)
    for path in tmp_path.rglob("*.json"):
        if "root" not in path.name and not path.is_symlink():
            path.write_bytes(path.read_bytes()[:20])
    images = device(repository, tmp_path)
    images.refresh(NOW)
    images.check(order)


def test_a_stolen_timestamp_key_is_recovered_from_by_rotating_it(
    repository: Repository, order: Order, tmp_path: Path
) -> None:
    repository.version["timestamp"] = 10**6
    repository.publish()
    images = device(repository, tmp_path)
    images.refresh(NOW)
    repository.version["timestamp"] = 5
    repository.rotate("timestamp")
    repository.publish()
    images.refresh(NOW)
    images.check(order)


def test_out_of_reach_is_not_distrust(repository: Repository, tmp_path: Path) -> None:
    def nobody(name: str) -> bytes:
        raise LinkError("no route")

    with pytest.raises(LinkError):
        ImageRepository(tmp_path, repository.root, nobody).refresh(NOW)
