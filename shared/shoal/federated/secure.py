"""Messages of secure aggregation. The controller relays them and learns only the sum.

device → controller   Advert    keys for this round, signed by the device
controller → device   Roster    digests of all adverts, and the neighbours' adverts
device → controller   boxes     encrypted shares for every neighbour
controller → device   boxes     encrypted shares from its neighbours
device → controller   masked    its masked update
controller → device   Ending    devices in the sum, and dropouts
device → controller   vote      its signature of that ending, and of no other
controller → device   votes     of its neighbours
device → controller   shares    of surviving neighbours' self masks and dropouts' keys
"""

import hashlib

import msgspec


class Advert(msgspec.Struct, frozen=True, kw_only=True):
    """A device's keys for one round.

    box         X25519 public key, 32 bytes: encrypts shares for the device
    mask        X25519 public key, 32 bytes: agrees on pairwise masks
    own         SHA-256 of the self mask's secret: verifies reconstructed shares
    signature   of the device, over all of the above, its name and the round
    certificate   of the device, DER: verified against the device CA (shoal.federated.identity)
    """

    device: str
    box: bytes
    mask: bytes
    own: bytes
    signature: bytes = b""
    certificate: bytes = b""

    def signed(self, round_id: bytes) -> bytes:
        """Signed bytes."""
        return (
            b"shoal/secagg/advert\0"
            + round_id
            + self.box
            + self.mask
            + self.own
            + (self.device.encode())
        )

    def digest(self) -> bytes:
        """SHA-256 of the whole advert."""
        return hashlib.sha256(msgspec.msgpack.encode(self)).digest()


class Roster(msgspec.Struct, frozen=True, kw_only=True):
    """Participants of a round.

    digests      of all adverts: they determine the mask graph
    neighbours   adverts of the receiver's neighbours
    """

    digests: dict[str, bytes]
    neighbours: list[Advert]


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """Devices with an update in the sum, and dropouts that shared keys and sent none."""

    alive: list[str]
    dead: list[str]

    def signed(self, round_id: bytes) -> bytes:
        """Bytes that a vote signs."""
        names = msgspec.msgpack.encode([sorted(self.alive), sorted(self.dead)])
        return b"shoal/secagg/ending\0" + round_id + hashlib.sha256(names).digest()


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of a cohort; from the signed plan.

    round_id    32 bytes, of this attempt and its signed config
                (shoal.federated.config.secure_id)
    degree      neighbours of each device
    threshold   shares that reconstruct a secret
    least       smallest number of devices in the sum
    """

    round_id: bytes
    degree: int
    threshold: int
    least: int
