"""Proof of a release: the signed metadata that lists its manifest, kept beside its files.

A device that has lost its journal serves nothing that this does not prove. It is verified without a
network, and its expiry does not count: what was installed goes on serving.

Source: TUF specification 1.0.33, 5.6.7 (the delegations that lead to a target).
"""

import datetime
from typing import NamedTuple

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization import DeserializationError

from shoal import epochs
from shoal.errors import UntrustedError

#: Bytes of a proof at most: two files of metadata.
LIMIT = 4 << 20


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """path: of the manifest; targets, role: JSON of the top-level targets and of its role."""

    path: str
    targets: bytes
    role: bytes


class Listed(NamedTuple):
    """A manifest as a role has signed it: its path, bytes, and SHA-256, hex.

    epoch      of the model, in the metadata that lists it
    expires_s  Unix seconds at which the first of that metadata expires
    """

    path: str
    length: int
    sha256: str
    epoch: int = epochs.FIRST
    expires_s: float = 0.0


def encode(proof: Proof) -> bytes:
    """JSON bytes."""
    return msgspec.json.encode(proof)


def verify(data: bytes, root: Root) -> Listed:
    """The manifest that a proof lists; UntrustedError unless keys of `root` lead to it."""
    try:
        if len(data) > LIMIT:
            raise ValueError(f"{len(data)} bytes, {LIMIT} allowed")
        proof = msgspec.json.decode(data, type=Proof)
        targets = Metadata[Targets].from_bytes(proof.targets)
        root.verify_delegate(Targets.type, targets.signed_bytes, targets.signatures)
        listed = _listed(targets.signed, proof)
    except (RepositoryError, DeserializationError, msgspec.MsgspecError) as error:
        raise UntrustedError(f"proof of a release: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UntrustedError(f"proof of a release cannot be read: {error}") from error
    return listed


def _listed(targets: Targets, proof: Proof) -> Listed:
    if targets.delegations is None:
        raise ValueError("nothing is delegated")
    name, _ = next(iter(targets.delegations.get_roles_for_target(proof.path)))
    role = Metadata[Targets].from_bytes(proof.role)
    targets.verify_delegate(name, role.signed_bytes, role.signatures)
    target = role.signed.targets[proof.path]
    epoch = epochs.read(role.signed.unrecognized_fields).epoch
    expires = min(targets.expires, role.signed.expires).replace(tzinfo=datetime.UTC).timestamp()
    return Listed(proof.path, target.length, target.hashes["sha256"], epoch, expires)
