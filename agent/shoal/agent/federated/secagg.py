"""Secure aggregation on a device: the protocol's client, and its session in one attempt.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", 2017, on
the mask graph of Bell et al. 2020. A refusal ends the device's participation; nothing that it sent
before reveals its update.
"""

import enum
import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from msgspec import structs

from shoal.errors import ConflictError, RefusedError
from shoal.federated import shamir
from shoal.federated.config import Config, secure_id
from shoal.federated.masks import U32, add_mask, agreed, derive, neighbours_of, pair_seed, self_seed
from shoal.federated.secure import Advert, Ending, Roster, Terms
from shoal.federated.shamir import SHARE, Entropy

Sign = Callable[[bytes], bytes]
#: (device, signature, message): UntrustedError unless that device's identity signed it.
Verify = Callable[[str, bytes, bytes], None]


class Mask(NamedTuple):
    """A mask by its seed, added (+1) or taken off (-1)."""

    seed: bytes
    sign: int


class Credentials(NamedTuple):
    """This device's identity in a securely aggregated round. certificate: DER, the current one.

    verify   certificates of other devices, by name -> Verify
    """

    sign: Sign
    certificate: Callable[[], bytes]
    verify: Callable[[dict[str, bytes]], Verify]


class Stage(enum.IntEnum):
    """The next message of the protocol."""

    ADVERT = 0
    BOXES = 1
    MASKED = 2
    VOTE = 3
    SHARES = 4
    OVER = 5


class Participant:
    """One device in one attempt of one round. Each method is one stage, called once and in order.

    least     devices in the sum below which this device refuses, whatever the plan says
    entropy   n -> n random bytes, from the system
    certificate   of the identity that signs, DER
    """

    def __init__(
        self,
        device: str,
        terms: Terms,
        least: int,
        *,
        sign: Sign,
        verify: Verify,
        entropy: Entropy,
        certificate: bytes = b"",
    ) -> None:
        self._certificate = certificate
        self._device, self._terms, self._sign, self._verify = device, terms, sign, verify
        self._least, self._entropy = max(least, terms.least), entropy
        self._stage = Stage.ADVERT
        self._box, self._mask_seed, self._own = (entropy(32) for _ in range(3))
        self._box_key = X25519PrivateKey.from_private_bytes(self._box)
        self._mask_key = X25519PrivateKey.from_private_bytes(self._mask_seed)
        self._roster: set[str] = set()
        self._adverts: dict[str, Advert] = {}
        self._boxes: dict[str, bytes] = {}
        self._ending = Ending(alive=[], dead=[])
        if 2 * terms.threshold <= terms.degree:
            raise _refused(
                "threshold",
                f"threshold {terms.threshold} of {terms.degree} neighbours: half of them could "
                "be sent an ending in which this device is alive and half one in which it is lost",
            )

    def advert(self) -> Advert:
        """Keys of this round, signed."""
        self._now(Stage.ADVERT)
        bare = Advert(
            device=self._device,
            box=self._box_key.public_key().public_bytes_raw(),
            mask=self._mask_key.public_key().public_bytes_raw(),
            own=hashlib.sha256(self._own).digest(),
        )
        signature = self._sign(bare.signed(self._terms.round_id))
        return structs.replace(bare, signature=signature, certificate=self._certificate)

    def boxes(self, roster: Roster) -> dict[str, bytes]:
        """Sealed shares of this device's two secrets, one box for each neighbour."""
        self._now(Stage.BOXES)
        self._check(roster)
        self._roster = set(roster.digests)
        self._adverts = {advert.device: advert for advert in roster.neighbours}
        names, need = sorted(self._adverts), self._terms.threshold
        points = range(1, len(names) + 1)
        own = shamir.split(self._own, need, points, self._entropy)
        mask = shamir.split(self._mask_seed, need, points, self._entropy)
        return {
            name: self._seal(name).encrypt(bytes(12), own[i] + mask[i], self._terms.round_id)
            for i, name in enumerate(names)
        }

    def masked(self, numbers: U32, boxes: Mapping[str, bytes]) -> U32:
        """The masked update. boxes: sealed by the neighbours for this device."""
        hidden = numbers.copy()
        for mask in self.masks(boxes):
            add_mask(hidden, mask.seed, mask.sign)
        return hidden

    def masks(self, boxes: Mapping[str, bytes]) -> list[Mask]:
        """The masks that `masked` adds, to be added once in the trainer's process."""
        self._now(Stage.MASKED)
        self._boxes = {name: box for name, box in boxes.items() if name in self._adverts}
        self._enough("boxes", len(self._boxes))
        found = [Mask(self_seed(self._own, self._terms.round_id, self._device), +1)]
        for name in self._boxes:
            key = self._adverts[name].mask
            seed = pair_seed(self._mask_key, key, self._terms.round_id, self._device, name)
            found.append(Mask(seed, +1 if self._device < name else -1))
        return found

    def vote(self, ending: Ending) -> bytes:
        """Signature under the only ending that this device helps to open."""
        self._now(Stage.VOTE)
        alive, dead = set(ending.alive), set(ending.dead)
        if both := alive & dead:
            raise _refused("alive-and-dead", f"{min(both)} is both alive and lost")
        if strangers := (alive | dead) - self._roster:
            raise _refused("stranger", f"{min(strangers)} is not on the roster")
        if self._device not in alive:
            raise _refused("not-in-the-sum", "this device's update is not in the sum")
        if len(alive) < self._least:
            raise _refused("small-cohort", f"{len(alive)} in the sum, {self._least} needed")
        self._enough("living neighbours", len(alive & set(self._boxes)))
        self._ending = ending
        return self._sign(ending.signed(self._terms.round_id))

    def shares(self, votes: Mapping[str, bytes]) -> dict[str, bytes]:
        """One share for each neighbour: of its self mask if alive, of its mask key if lost.

        votes   signatures of living neighbours under the same ending; `threshold` are needed

        A box that cannot be opened is left out: if no box of a neighbour can be, the controller has
        no share of it, and excludes that neighbour.
        """
        self._now(Stage.SHARES)
        alive = set(self._ending.alive) & set(self._boxes)
        for name in sorted(set(votes) & alive):
            self._verify(name, votes[name], self._ending.signed(self._terms.round_id))
        self._enough("votes", len(set(votes) & alive))
        lost = set(self._ending.dead) & set(self._boxes)
        opened = {name: self._opened(name, name in alive) for name in sorted(alive | lost)}
        return {name: share for name, share in opened.items() if share is not None}

    def _opened(self, name: str, alive: bool) -> bytes | None:
        try:
            both = self._open(name).decrypt(bytes(12), self._boxes[name], self._terms.round_id)
        except InvalidTag:
            return None
        if len(both) != 2 * SHARE:
            return None
        return both[:SHARE] if alive else both[SHARE:]

    def _check(self, roster: Roster) -> None:
        round_id, digests = self._terms.round_id, roster.digests
        if len(digests) < self._least or self._device not in digests:
            raise _refused("small-cohort", f"{len(digests)} devices, {self._least} needed")
        expected = neighbours_of(self._device, digests, self._terms.degree, round_id)
        given = {advert.device: advert for advert in roster.neighbours}
        if tuple(sorted(given)) != expected:
            raise _refused("neighbours", "its neighbours are not those that follow from the roster")
        self._enough("neighbours", len(given))
        for name, advert in given.items():
            if advert.digest() != digests[name]:
                raise _refused("neighbours", f"the advert of {name} is not that of the roster")
            self._verify(name, advert.signature, advert.signed(round_id))

    def _enough(self, what: str, have: int) -> None:
        if have < self._terms.threshold:
            raise _refused("threshold", f"{have} {what}, {self._terms.threshold} needed")

    def _seal(self, to: str) -> ChaCha20Poly1305:
        return self._channel(to, self._device, to)

    def _open(self, of: str) -> ChaCha20Poly1305:
        return self._channel(of, of, self._device)

    def _channel(self, peer: str, sender: str, receiver: str) -> ChaCha20Poly1305:
        """A separate key for each direction, used once, so that its nonce may be zero."""
        shared = agreed(self._box_key, self._adverts[peer].box)
        return ChaCha20Poly1305(derive(shared, "box", self._terms.round_id, sender, receiver))

    def _now(self, stage: Stage) -> None:
        if self._stage is not stage:
            raise ConflictError(
                f"{stage.name.lower()} requested at stage {self._stage.name.lower()}",
                "each stage runs once, and in order",
            )
        self._stage = Stage(stage + 1)


class SecAggSession:
    """The protocol in one attempt, repeatable: a repeated call gets the answer of the first.

    Its secrets are in memory only. RefusedError: this device refuses the round.

    text    of the config, as signed
    least   devices in the sum that this device requires
    """

    def __init__(
        self,
        device: str,
        config: Config,
        text: str,
        least: int,
        credentials: Credentials,
        entropy: Entropy,
    ) -> None:
        plan = config.plan
        assert plan.secure is not None
        terms = Terms(
            round_id=secure_id(plan.attempt, text),
            degree=plan.secure.degree,
            threshold=plan.secure.threshold,
            least=plan.least,
        )
        self._certificates: dict[str, bytes] = {}
        self._participant = Participant(
            device,
            terms,
            least,
            sign=credentials.sign,
            verify=lambda *signed: credentials.verify(self._certificates)(*signed),
            entropy=entropy,
            certificate=credentials.certificate(),
        )
        self.advert: Advert = self._participant.advert()
        self.boxes: dict[str, bytes] = {}
        self._received: Mapping[str, bytes] | None = None
        self._vote: tuple[Ending, bytes] | None = None
        self._shares: dict[str, bytes] | None = None
        self._masked = False

    def share(self, roster: Roster | None) -> None:
        """Make `boxes`, the sealed shares for the neighbours; only the first roster counts."""
        if roster is None:
            raise RefusedError("a secure round without a roster", "neighbours")
        if not self.boxes:
            self._certificates = {one.device: one.certificate for one in roster.neighbours}
            self.boxes = self._participant.boxes(roster)

    def receive(self, boxes: Mapping[str, bytes]) -> None:
        """Keep the neighbours' sealed shares; only the first ones count."""
        if self._received is None:
            self._received = dict(boxes)

    def masks(self) -> list[Mask]:
        """Masks for the update, once; empty before the neighbours' shares are received."""
        if self._received is None or self._masked:
            return []
        self._masked = True
        return self._participant.masks(self._received)

    def vote(self, ending: Ending) -> bytes:
        """Signature under an ending; RefusedError for a second, different one."""
        if self._vote is None:
            self._vote = ending, self._participant.vote(ending)
        if self._vote[0] != ending:
            raise RefusedError("a second ending, after one was signed", "second-ending")
        return self._vote[1]

    def open(self, votes: Mapping[str, bytes]) -> dict[str, bytes]:
        """Shares that open the sum; the first votes count."""
        if self._shares is None:
            self._shares = self._participant.shares(votes)
        return self._shares


def _refused(reason: str, detail: str) -> RefusedError:
    return RefusedError(detail, reason)
