"""Any t shares give the secret; fewer give nothing."""

import itertools
import random

import pytest

from shoal.errors import ConflictError, InputError
from shoal.federated.shamir import PRIME, combine, split

draw = random.Random(0).randbytes


def test_the_field_is_a_field() -> None:
    """Miller and Rabin, forty times: composite with probability below 2**-80."""
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in random.Random(1).sample(range(2, 10**9), 40):
        x = pow(base, odd, PRIME)
        seen = [x := x if i == 0 else x * x % PRIME for i in range(twos)]
        assert seen[0] == 1 or PRIME - 1 in seen


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, draw(32)])
def test_any_threshold_of_the_shares_gives_the_secret(secret: bytes) -> None:
    shares = dict(enumerate(split(secret, 3, range(1, 7), draw), start=1))
    for some in itertools.combinations(shares, 3):
        assert combine({point: shares[point] for point in some}, 3) == secret
    with pytest.raises(ConflictError, match="2 shares, 3 needed"):
        combine({1: shares[1], 2: shares[2]}, 3)


def test_fewer_shares_fit_any_other_secret_as_well() -> None:
    """With t - 1 shares there is, for every secret, a last share that gives it."""
    shares = dict(enumerate(split(draw(32), 2, range(1, 4), draw), start=1))
    for other in (bytes(32), draw(32)):
        value = int.from_bytes(other)
        slope = (int.from_bytes(shares[1]) - value) % PRIME
        forged = ((value + 2 * slope) % PRIME).to_bytes(33)
        assert combine({1: shares[1], 2: forged}, 2) == other


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [(bytes(31), 2, [1, 2]), (bytes(32), 3, [1, 2]), (bytes(32), 2, [1, 1]), (bytes(32), 1, [0])],
)
def test_what_cannot_be_shared_is_refused(secret: bytes, threshold: int, points: list[int]) -> None:
    with pytest.raises(InputError):
        split(secret, threshold, points, draw)
