"""The controller learns the sum of those who stayed, exactly, or nothing."""

import itertools
import math
import random

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shoal.controller.federated.secagg.server import SecAggServer
from shoal.errors import ConflictError, InputError, RefusedError, UntrustedError
from shoal.federated.masks import add_mask, derive, pair_seed, self_seed
from shoal.federated.secure import Ending
from unit.federated.cohort import STAGES, Cohort, total


@pytest.mark.parametrize("count", [3, 4, 5, 6])
@pytest.mark.parametrize("stage", STAGES)
def test_the_sum_without_lost_devices_is_exact_or_there_is_none(count, stage) -> None:
    for size in range(count):
        for gone in itertools.combinations(range(count), size):
            cohort = Cohort(count, seed=size)
            numbers = cohort.numbers(33)
            lost = {cohort.names[i]: stage for i in gone}
            if count - size - 1 >= cohort.terms.threshold:
                found, alive = cohort.run(numbers, lost)
                expected = cohort.names if stage == STAGES[2] else sorted({*cohort.names} - {*lost})
                assert alive == expected
                assert np.array_equal(found, total(numbers, alive))
            else:
                with pytest.raises((ConflictError, RefusedError)):
                    cohort.run(numbers, lost)


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_however_many_are_lost_at_each_stage_the_sum_of_the_others_is_exact_or_there_is_none(
    count: int,
) -> None:
    for seed, fates in enumerate(
        itertools.combinations_with_replacement(("stays", *STAGES), count)
    ):
        cohort = Cohort(count, seed=seed)
        numbers = cohort.numbers(9)
        drawn = random.Random(seed).sample(fates, count)
        fate = dict(zip(cohort.names, drawn, strict=True))
        lost = {name: stage for name, stage in fate.items() if stage != "stays"}
        if fates.count("stays") - 1 >= cohort.terms.threshold:
            found, alive = cohort.run(numbers, lost)
            assert alive == [n for n in cohort.names if fate[n] in ("stays", STAGES[2])]
            assert np.array_equal(found, total(numbers, alive))
        else:
            with pytest.raises((ConflictError, RefusedError)):
                cohort.run(numbers, lost)


@pytest.mark.parametrize("seed", range(3))
def test_two_hundred_devices_lose_some_at_every_stage_and_the_sum_is_exact(seed: int) -> None:
    cohort = Cohort(200, degree=40, threshold=23, least=100, seed=seed)
    numbers, random_ = cohort.numbers(100), random.Random(seed)
    lost = {name: random_.choice(STAGES) for name in random_.sample(cohort.names, 24)}
    found, alive = cohort.run(numbers, lost)
    assert set(alive) >= {n for n in cohort.names if n not in lost}
    assert np.array_equal(found, total(numbers, alive))


def test_one_share_too_few_and_the_sum_stays_hidden() -> None:
    cohort = Cohort(6, threshold=4)
    numbers = cohort.numbers(50)
    server = cohort.begun(50)
    for name, device in cohort.devices.items():
        server.add_masked(name, device.masked(numbers[name], server.boxes_for(name)))
    ending = server.end()
    for name, device in cohort.devices.items():
        server.add_vote(name, device.vote(ending))
    for i, (name, device) in enumerate(cohort.devices.items()):
        if i == 4:  # d000's own mask has three shares
            with pytest.raises(ConflictError, match="own mask of d000: 3 shares, 4 needed"):
                server.value()
        server.add_shares(name, device.shares(server.votes_for(name)))
    assert np.array_equal(server.value(), total(numbers, cohort.names))


def _chi_square_of_bytes(data: bytes) -> float:
    """Standard deviations that a byte histogram lies from uniform."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    return float(((counts - expected) ** 2).sum() / expected - 255) / math.sqrt(2 * 255)


def test_a_masked_update_looks_like_noise_whatever_is_under_it() -> None:
    size = 50_000
    for number in (0, 1, 2**32 - 1):
        cohort = Cohort(4, seed=number % 97)
        server = cohort.begun(size)
        hidden = {
            name: device.masked(np.full(size, number, np.uint32), server.boxes_for(name))
            for name, device in cohort.devices.items()
        }
        for name in cohort.names:
            assert abs(_chi_square_of_bytes(hidden[name].tobytes())) < 5
            bits = np.unpackbits(hidden[name].view(np.uint8)).astype(float)
            assert abs(bits.mean() - 0.5) * 2 * math.sqrt(bits.size) < 5
            lagged = np.corrcoef(hidden[name][:-1].astype(float), hidden[name][1:].astype(float))
            assert abs(lagged[0, 1]) * math.sqrt(size) < 5
        for a, b in itertools.combinations(cohort.names, 2):
            both = np.corrcoef(hidden[a].astype(float), hidden[b].astype(float))[0, 1]
            assert abs(both) * math.sqrt(size) < 5


def test_no_two_masks_share_a_seed() -> None:
    draw = random.Random(4).randbytes
    keys = {f"d{i}": X25519PrivateKey.from_private_bytes(draw(32)) for i in range(12)}
    public = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    own = {name: draw(32) for name in keys}
    seeds = []
    for round_id in (b"0" * 16, b"1" * 16):
        for a, b in itertools.combinations(keys, 2):
            seed = pair_seed(keys[a], public[b], round_id, a, b)
            assert seed == pair_seed(keys[b], public[a], round_id, b, a)
            seeds.append(seed)
            seeds.append(derive(keys[a].exchange(keys[b].public_key()), "box", round_id, a, b))
            seeds.append(derive(keys[a].exchange(keys[b].public_key()), "box", round_id, b, a))
        seeds += [self_seed(own[name], round_id, name) for name in keys]
    assert len(set(seeds)) == len(seeds)
    assert derive(b"x" * 32, "pair", b"", "ab", "c") != derive(b"x" * 32, "pair", b"", "a", "bc")


def test_a_mask_that_is_put_on_and_taken_off_leaves_every_number() -> None:
    for size in (0, 1, 16_383, 16_384, 16_385, 40_000):
        vector = np.arange(size, dtype=np.uint32)
        add_mask(vector, b"s" * 32, +1)
        assert size < 2 or not np.array_equal(vector, np.arange(size))
        add_mask(vector, b"s" * 32, -1)
        assert np.array_equal(vector, np.arange(size))


# ---------------------------------------------------------------- what a device refuses


def voting(cohort: Cohort) -> tuple[SecAggServer, Ending]:
    server = cohort.begun(5)
    for name, device in cohort.devices.items():
        numbers = np.zeros(5, np.uint32)
        server.add_masked(name, device.masked(numbers, server.boxes_for(name)))
    return server, server.end()


@pytest.mark.parametrize(
    ("alive", "dead", "reason"),
    [
        ("012345", "5", "alive-and-dead"),
        ("12345", "0", "not-in-the-sum"),
        ("0123456789", "", "stranger"),
        ("012345", "8", "stranger"),
        ("01", "2345", "small-cohort"),
        ("012", "345", "threshold"),
    ],
)
def test_an_ending_that_could_open_one_update_is_refused(alive, dead, reason) -> None:
    cohort = Cohort(6, least=3)
    voting(cohort)
    ending = Ending(alive=[f"d00{i}" for i in alive], dead=[f"d00{i}" for i in dead])
    with pytest.raises(RefusedError) as refusal:
        cohort.devices["d000"].vote(ending)
    assert refusal.value.reason == reason
    with pytest.raises((ConflictError, RefusedError)):
        cohort.devices["d000"].shares({})


def test_a_device_votes_once_and_opens_once() -> None:
    cohort = Cohort(6)
    server, ending = voting(cohort)
    for name, device in cohort.devices.items():
        server.add_vote(name, device.vote(ending))
    device = cohort.devices["d000"]
    with pytest.raises(ConflictError, match="once"):
        device.vote(ending)
    device.shares(server.votes_for("d000"))
    with pytest.raises(ConflictError, match="once"):
        device.shares(server.votes_for("d000"))


def test_neighbours_that_signed_another_ending_reveal_no_shares() -> None:
    """The controller says to half of them that d005 is alive, and that it is lost to the rest."""
    cohort = Cohort(6)
    server, ending = voting(cohort)
    other = Ending(alive=ending.alive[:-1], dead=[*ending.dead, "d005"])
    for i, (name, device) in enumerate(cohort.devices.items()):
        if name != "d005":
            server.add_vote(name, device.vote(ending if i % 2 else other))
    for name in cohort.names[:5]:
        with pytest.raises((UntrustedError, RefusedError)):
            cohort.devices[name].shares(server.votes_for(name))


def test_too_few_votes_open_nothing() -> None:
    cohort = Cohort(6)
    server, ending = voting(cohort)
    for name, device in cohort.devices.items():
        server.add_vote(name, device.vote(ending))
    votes = dict(list(server.votes_for("d000").items())[: cohort.terms.threshold - 1])
    with pytest.raises(RefusedError, match="votes"):
        cohort.devices["d000"].shares(votes)


def test_a_roster_that_contradicts_its_digests_is_refused() -> None:
    def fresh() -> tuple[Cohort, SecAggServer]:
        cohort = Cohort(8, degree=4, threshold=3)
        adverts = {n: d.advert() for n, d in cohort.devices.items()}
        return cohort, SecAggServer(cohort.terms, adverts, 5)

    cohort, server = fresh()
    roster = server.roster_for("d000")
    forged = msgspec.structs.replace(roster.neighbours[0], mask=bytes(32))
    spoiled = msgspec.structs.replace(roster, neighbours=[forged, *roster.neighbours[1:]])
    with pytest.raises(RefusedError, match="not that of the roster"):
        cohort.devices["d000"].boxes(spoiled)

    cohort, server = fresh()
    roster = server.roster_for("d000")
    forged = msgspec.structs.replace(roster.neighbours[0], signature=bytes(64))
    digests = roster.digests | {forged.device: forged.digest()}
    order_kept = SecAggServer(  # whoever forges also recomputes the graph
        cohort.terms,
        {a.device: a for a in [*map(server._adverts.get, cohort.names)]} | {forged.device: forged},
        5,
    )
    assert order_kept.roster_for("d000").digests == digests
    near = order_kept.roster_for(forged.device).neighbours[0].device
    with pytest.raises(UntrustedError):
        cohort.devices[near].boxes(order_kept.roster_for(near))

    cohort, server = fresh()
    chosen = msgspec.structs.replace(
        server.roster_for("d000"), neighbours=server.roster_for("d001").neighbours
    )
    with pytest.raises(RefusedError, match="neighbours"):
        cohort.devices["d000"].boxes(chosen)


def test_a_cohort_below_what_the_device_itself_demands_is_refused() -> None:
    cohort = Cohort(6)
    cohort.devices["d000"] = cohort.participant("d000", least=7)
    with pytest.raises(RefusedError, match="6 devices, 7 needed"):
        cohort.begun(5)


def test_terms_under_which_half_the_neighbours_could_be_deceived_are_refused() -> None:
    with pytest.raises(RefusedError, match="half"):
        Cohort(9, degree=8, threshold=4)


def test_a_box_that_was_changed_on_its_way_is_not_opened_and_the_others_are() -> None:
    cohort = Cohort(4)
    server = cohort.begun(5)
    for name, device in cohort.devices.items():
        boxes = server.boxes_for(name)
        if name == "d000":
            boxes["d001"] = boxes["d001"][:-1] + bytes([boxes["d001"][-1] ^ 1])
        server.add_masked(name, device.masked(np.zeros(5, np.uint32), boxes))
    ending = server.end()
    for name, device in cohort.devices.items():
        server.add_vote(name, device.vote(ending))
    shares = cohort.devices["d000"].shares(server.votes_for("d000"))
    assert sorted(shares) == ["d002", "d003"]


@pytest.mark.parametrize("stage", ["alive", "lost"])
def test_one_faulty_device_among_enough_shares_is_named_and_the_sum_is_exact(stage: str) -> None:
    cohort = Cohort(6, threshold=3)
    lost = {"d000": STAGES[1]} if stage == "lost" else {}
    numbers = cohort.numbers(9)
    server = opened(cohort, numbers, lost, faulty=["d002"])
    assert np.array_equal(server.value(), total(numbers, sorted({*cohort.names} - {*lost})))
    assert server.faulty == {"d002"}


def test_more_wrong_shares_than_can_be_attributed_are_detected() -> None:
    for faulty, threshold in ((["d002"], 5), (["d002", "d003"], 4)):
        cohort = Cohort(6, threshold=threshold)
        server = opened(cohort, cohort.numbers(9), {}, faulty=faulty)
        with pytest.raises(InputError, match="do not give its own mask"):
            server.value()


def opened(cohort: Cohort, numbers: dict, lost: dict, faulty: list[str]) -> SecAggServer:
    """Up to the shares, with those of the faulty made up."""
    server = cohort.begun(9)
    for name in cohort.names:
        if name not in lost:
            device = cohort.devices[name]
            server.add_masked(name, device.masked(numbers[name], server.boxes_for(name)))
    ending = server.end()
    for name in ending.alive:
        server.add_vote(name, cohort.devices[name].vote(ending))
    for name in ending.alive:
        shares = cohort.devices[name].shares(server.votes_for(name))
        if name in faulty:
            shares["d000"] = bytes(33)
        server.add_shares(name, shares)
    return server


def test_a_key_that_is_a_trap_is_refused() -> None:
    own = X25519PrivateKey.from_private_bytes(bytes(range(32)))
    for peer in (bytes(32), b"short", bytes(31) + b"\x80"):
        with pytest.raises(InputError, match="key"):
            pair_seed(own, peer, b"r", "a", "b")


def test_late_second_and_foreign_messages_change_nothing() -> None:
    cohort = Cohort(4)
    numbers = cohort.numbers(5)
    server = cohort.begun(5)
    hidden = {n: d.masked(numbers[n], server.boxes_for(n)) for n, d in cohort.devices.items()}
    for name in cohort.names[:3]:
        server.add_masked(name, hidden[name])
    for spoiled in (hidden["d003"][:4], hidden["d003"].astype(np.float32)):
        with pytest.raises(InputError):
            server.add_masked("d003", spoiled)
    with pytest.raises(ConflictError):
        server.add_masked("d000", hidden["d000"])
    with pytest.raises(ConflictError):
        server.add_masked("stranger", hidden["d000"])
    with pytest.raises(ConflictError):
        server.add_boxes("d000", {})
    server.add_masked("d003", hidden["d003"])
    ending = server.end()
    with pytest.raises(ConflictError):
        server.add_masked("d003", hidden["d003"])
    for name, device in cohort.devices.items():
        server.add_vote(name, device.vote(ending))
    for name, device in cohort.devices.items():
        server.add_shares(name, device.shares(server.votes_for(name)))
    with pytest.raises(ConflictError):
        server.add_shares("d000", {})
    assert np.array_equal(server.value(), total(numbers, cohort.names))


def test_boxes_that_come_after_the_first_went_out_are_late_and_the_sum_stays_exact() -> None:
    cohort = Cohort(5)
    numbers = cohort.numbers(20)
    server = SecAggServer(cohort.terms, {n: d.advert() for n, d in cohort.devices.items()}, 20)
    boxes = {name: d.boxes(server.roster_for(name)) for name, d in cohort.devices.items()}
    for name in cohort.names[:4]:
        server.add_boxes(name, boxes[name])
    hidden = {n: cohort.devices[n].masked(numbers[n], server.boxes_for(n)) for n in cohort.names}
    with pytest.raises(ConflictError, match="late"):
        server.add_boxes("d004", boxes["d004"])
    with pytest.raises(ConflictError):
        server.add_masked("d004", hidden["d004"])
    for name in cohort.names[:4]:
        server.add_masked(name, hidden[name])
    ending = server.end()
    for name in ending.alive:
        server.add_vote(name, cohort.devices[name].vote(ending))
    for name in ending.alive:
        server.add_shares(name, cohort.devices[name].shares(server.votes_for(name)))
    assert np.array_equal(server.value(), total(numbers, cohort.names[:4]))
