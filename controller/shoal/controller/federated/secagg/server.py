"""Controller side of secure aggregation: relays messages between devices and learns one sum.

Memory is the sum plus a few numbers per device, however many masked updates arrive. A device that
stops answering drops out: before its boxes it was never in the sum; after them its masks are
removed with its neighbours' shares. `value` returns the sum, or raises why it cannot be opened.
"""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shoal.errors import ConflictError, InputError
from shoal.federated import shamir
from shoal.federated.masks import U32, add_mask, agreed, around, pair_seed, ring, self_seed
from shoal.federated.secure import Advert, Ending, Roster, Terms

#: Bytes of a box: two sealed shares.
BOX = 2 * shamir.SHARE + 16


def check_keys(advert: Advert) -> None:
    """InputError for invalid keys, and for low-order ones whose key agreement is public."""
    if len(advert.own) != hashlib.sha256().digest_size:
        raise InputError(f"{advert.device}: a digest of {len(advert.own)} bytes", "ignore it")
    mine = X25519PrivateKey.generate()
    for key in (advert.box, advert.mask):
        agreed(mine, key)


class SecAggServer:
    """Secure aggregation of one attempt of one round, over `size` numbers of each device.

    adverts   of the devices that joined in time
    faulty    devices that sent wrong shares, once the sum is known
    """

    def __init__(self, terms: Terms, adverts: Mapping[str, Advert], size: int) -> None:
        self._terms, self._adverts = terms, dict(adverts)
        self._digests = {name: advert.digest() for name, advert in adverts.items()}
        order = ring(self._digests, terms.round_id)
        self._neighbours = around(order, terms.degree)
        self._boxes: dict[str, dict[str, bytes]] = {}
        self._sharing_closed = False
        self._sum, self._alive = np.zeros(size, np.uint32), set[str]()
        self._ending: Ending | None = None
        self._votes: dict[str, bytes] = {}
        self._shares: dict[str, dict[int, bytes]] = {}
        self._opened: set[str] = set()
        self.faulty: set[str] = set()

    def roster_for(self, device: str) -> Roster:
        neighbours = [self._adverts[name] for name in self._neighbours[device]]
        return Roster(digests=self._digests, neighbours=neighbours)

    def add_boxes(self, device: str, boxes: Mapping[str, bytes]) -> None:
        """InputError unless there is one for every neighbour; ConflictError once it is late.

        The first boxes sent out close the stage: later ones would add masks on one side only.
        """
        self._check_sharing(device)
        if set(boxes) != set(self._neighbours[device]):
            raise InputError(f"{device} sent boxes for others than its neighbours", "ignore it")
        if any(len(box) != BOX for box in boxes.values()):
            raise InputError(f"{device} sent boxes of other than {BOX} bytes", "ignore it")
        self._boxes[device] = dict(boxes)

    def boxes_for(self, device: str) -> dict[str, bytes]:
        """Boxes sealed for a device by neighbours that shared in time; closes key sharing."""
        self._sharing_closed = True
        sharing = [name for name in self._neighbours[device] if name in self._boxes]
        return {name: self._boxes[name][device] for name in sharing}

    def add_masked(self, device: str, numbers: U32) -> None:
        """Add a masked update to the sum; ConflictError when it is late or a repeat."""
        if self._ending is not None or device not in self._boxes or device in self._alive:
            raise ConflictError(f"a masked update of {device} is late or repeated")
        if numbers.shape != self._sum.shape or numbers.dtype != np.uint32:
            raise InputError(f"{device} sent {numbers.dtype} {numbers.shape}", "another model's?")
        self._sum += numbers
        self._alive.add(device)

    def end(self) -> Ending:
        """Close the sum and return its devices. ConflictError when they are too few."""
        if len(self._alive) < self._terms.least:
            raise ConflictError(
                f"{len(self._alive)} masked updates, {self._terms.least} needed",
                "let more devices take part",
            )
        lost = sorted(set(self._boxes) - self._alive)
        self._ending = Ending(alive=sorted(self._alive), dead=lost)
        return self._ending

    def add_vote(self, device: str, vote: bytes) -> None:
        if device in self._alive:
            self._votes[device] = vote

    def votes_for(self, device: str) -> dict[str, bytes]:
        """Signatures of a device's neighbours."""
        return {name: self._votes[name] for name in self._neighbours[device] if name in self._votes}

    def add_shares(self, device: str, shares: Mapping[str, bytes]) -> None:
        """Keep a device's shares; InputError when one is of no neighbour, ConflictError late."""
        if device not in self._alive or device in self._opened:
            raise ConflictError(f"shares of {device} are late or repeated")
        if not set(shares) <= set(self._neighbours[device]):
            raise InputError(f"{device} sent shares of others than its neighbours", "ignore it")
        self._opened.add(device)
        for name, share in shares.items():
            point = self._neighbours[name].index(device) + 1
            self._shares.setdefault(name, {})[point] = share

    def value(self) -> U32:
        """Sum of the surviving devices' numbers.

        ConflictError when a secret has too few shares, InputError when shares are wrong.
        """
        if self._ending is None:
            raise ConflictError("the round has not ended", "end it first")
        total = self._sum.copy()
        for name in self._ending.alive:
            secret = self._secret(name, "own mask", _is_own_mask)
            add_mask(total, self_seed(secret, self._terms.round_id, name), -1)
        for name in self._ending.dead:
            self._remove_masks(total, name)
        return total

    def _remove_masks(self, total: U32, lost: str) -> None:
        """Remove the pairwise masks that survivors added with a lost device."""
        surviving = [name for name in self.boxes_for(lost) if name in self._alive]
        if not surviving:
            return
        key = X25519PrivateKey.from_private_bytes(self._secret(lost, "key", _is_mask_key))
        for name in surviving:
            seed = pair_seed(key, self._adverts[name].mask, self._terms.round_id, name, lost)
            add_mask(total, seed, -1 if name < lost else +1)

    def _secret(self, name: str, what: str, fits: Callable[[bytes, Advert], bool]) -> bytes:
        """Secret from its shares; on a mismatch one is left out, which identifies its sender."""
        shares, need = self._shares.get(name, {}), self._terms.threshold
        if len(shares) < need:
            raise ConflictError(
                f"{what} of {name}: {len(shares)} shares, {need} needed",
                "too many devices were lost: run the round again",
                device=name,
                have=len(shares),
                need=need,
                to_blame=name if self._sealed_wrong_boxes(name) else "",
            )
        for left_out in [0, *(shares if len(shares) > need else ())]:
            secret = _combined({p: s for p, s in shares.items() if p != left_out}, need)
            if secret is not None and fits(secret, self._adverts[name]):
                if left_out:
                    self.faulty.add(self._neighbours[name][left_out - 1])
                return secret
        raise InputError(
            f"shares for {name} do not give its {what}",
            "neighbours sent wrong ones: run the round again without them",
        )

    def _sealed_wrong_boxes(self, name: str) -> bool:
        """Whether enough neighbours sent shares, and could not open what this device had sealed."""
        return len(self._opened & set(self._neighbours[name])) >= self._terms.threshold

    def _check_sharing(self, device: str) -> None:
        if self._sharing_closed or device not in self._adverts or device in self._boxes:
            raise ConflictError(f"boxes of {device} are late, repeated, or of an unknown device")


def _combined(shares: Mapping[int, bytes], threshold: int) -> bytes | None:
    try:
        return shamir.combine(shares, threshold)
    except InputError:
        return None


def _is_own_mask(secret: bytes, advert: Advert) -> bool:
    return hashlib.sha256(secret).digest() == advert.own


def _is_mask_key(secret: bytes, advert: Advert) -> bool:
    public = X25519PrivateKey.from_private_bytes(secret).public_key()
    return public.public_bytes_raw() == advert.mask
