"""Which device of a site fetches a piece from the artifact server, and which wait: pure policy.

Rendezvous hashing ranks the site's devices for each file, and all devices compute the same rank: of
those that lack a piece the first in rank fetches it, and the others download it from a peer that
has it. A device that fails stops responding, and the next in rank continues with what is missing.

    first to ask           reports CLAIMED, asks the others once more, then reports FETCHING
    two claims at once     the first in rank continues

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998).
"""

import enum
import hashlib
from collections.abc import Iterable, Mapping, Sequence

#: Peers that are asked for a file: the first in rank.
ASKED = 32


class PeerDirectory:
    """Peers of this site, as the newest assignment lists them.

    addresses     device -> host:port
    generations   device -> least generation of its certificate
    """

    def __init__(self) -> None:
        self.addresses: Mapping[str, str] = {}
        self.generations: Mapping[str, int] = {}

    def update(self, addresses: Mapping[str, str], generations: Mapping[str, int]) -> None:
        """Replace both."""
        self.addresses, self.generations = addresses, generations


class PieceStatus(enum.StrEnum):
    """Status of one piece at a peer, as on the wire."""

    HAVE = "have"  # followed by the piece
    FETCHING = "fetching"  # from the artifact server, now
    CLAIMED = "claimed"  # about to be fetched
    WANTED = "wanted"  # needed by the peer, too
    NONE = "none"  # absent, and not needed
    BUSY = "busy"  # too many requests


class Decision(enum.Enum):
    """What to do about a piece that no peer has."""

    WAIT, FETCH = "wait", "fetch"


def ranked(sha256: str, names: Iterable[str]) -> list[str]:
    """Rank the devices `names` for a file; the same on every device.

    >>> ranked("ab", ["cam-1", "cam-2", "cam-3"]) == ranked("ab", ["cam-3", "cam-1", "cam-2"])
    True
    """
    return sorted(names, key=lambda name: hashlib.sha256(f"{sha256} {name}".encode()).digest())


def decide(me: str, order: Sequence[str], statuses: Mapping[str, PieceStatus]) -> Decision:
    """Fetch a piece that no responding peer has, or wait for it.

    order     of all devices, from `ranked`
    statuses  peer -> status; peers that did not respond are not in it

    >>> wanted, fetching = PieceStatus.WANTED, PieceStatus.FETCHING
    >>> decide("b", ["a", "b"], {"a": wanted}), decide("a", ["a", "b"], {"b": wanted})
    (<Decision.WAIT: 'wait'>, <Decision.FETCH: 'fetch'>)
    >>> decide("a", ["a", "b"], {"b": fetching}), decide("b", ["a", "b"], {})
    (<Decision.WAIT: 'wait'>, <Decision.FETCH: 'fetch'>)
    """
    before = set(order[: order.index(me)])
    for name, status in statuses.items():
        if status in (PieceStatus.FETCHING, PieceStatus.BUSY):
            return Decision.WAIT
        if status in (PieceStatus.CLAIMED, PieceStatus.WANTED) and name in before:
            return Decision.WAIT
    return Decision.FETCH
