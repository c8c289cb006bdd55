"""Who could sign the versions of metadata that a device has seen: floors fall with their keys."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec


class Signers(msgspec.Struct, frozen=True):
    """Who may sign a role: ids of its keys, and the version of the root that lists them."""

    root: int
    keys: list[str]

    def replaced_by(self, newer: "Signers") -> bool:
        """Whether a newer root has taken one of these keys away.

        What was seen before may be of the key that was stolen, and is no floor any more: a thief
        could have raised it beyond every version to come (TUF 1.0.33, 5.3.11).
        """
        return newer.root > self.root and not set(self.keys) <= set(newer.keys)


class Seen(NamedTuple):
    """Versions of metadata that were verified, by role, and who could sign each."""

    versions: Mapping[str, float] = {}
    signers: Mapping[str, Signers] = {}
