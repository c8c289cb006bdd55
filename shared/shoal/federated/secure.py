"""What is said in a securely aggregated round. The controller passes it on and learns the sum.

device → controller   Advert    keys of this round, signed by the device's identity
controller → device   Roster    everybody's advert by its digest, and the neighbours' whole
device → controller   boxes     a sealed pair of shares for every neighbour
controller → device   boxes     those that its neighbours made for it
device → controller   masked    its update, masked
controller → device   Ending    who is in the sum, and who was lost
device → controller   vote      its signature under that, and under nothing else
controller → device   votes     its neighbours'
device → controller   shares    of living neighbours' own masks and lost neighbours' keys
"""

import hashlib

import msgspec


class Advert(msgspec.Struct, frozen=True, kw_only=True):
    """A device's keys for one round.

    box         X25519, 32 bytes: seals shares for it
    mask        X25519, 32 bytes: makes pair masks with it
    own         SHA-256 over the secret of its own mask: shares are checked against it
    signature   of the device's identity, over all of the above, its name and the round
    certificate   of that identity, DER: who looks at the advert checks it against the device CA
                  (shoal.federated.identity)
    """

    device: str
    box: bytes
    mask: bytes
    own: bytes
    signature: bytes = b""
    certificate: bytes = b""

    def signed(self, round_id: bytes) -> bytes:
        """The bytes that the signature is over."""
        return (
            b"shoal/secagg/advert\0"
            + round_id
            + self.box
            + self.mask
            + self.own
            + (self.device.encode())
        )

    def digest(self) -> bytes:
        """SHA-256 over all of it."""
        return hashlib.sha256(msgspec.msgpack.encode(self)).digest()


class Roster(msgspec.Struct, frozen=True, kw_only=True):
    """Who is in.

    digests      of every device's advert: the graph follows from them
    neighbours   adverts of the receiver's neighbours
    """

    digests: dict[str, bytes]
    neighbours: list[Advert]


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """Whose updates are in the sum, and who shared keys and was lost before sending one."""

    alive: list[str]
    dead: list[str]

    def signed(self, round_id: bytes) -> bytes:
        """The bytes that a vote is a signature over."""
        names = msgspec.msgpack.encode([sorted(self.alive), sorted(self.dead)])
        return b"shoal/secagg/ending\0" + round_id + hashlib.sha256(names).digest()


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a cohort agrees on; part of the signed plan.

    round_id    32 bytes, of this try and of everything in its signed config
                (shoal.federated.config.secure_id)
    degree      neighbours of each device
    threshold   shares that open a secret
    least       devices that must be in the sum
    """

    round_id: bytes
    degree: int
    threshold: int
    least: int
