"""Which device of a site fetches a piece from the artifact server, and which wait: pure policy.

Rendezvous hashing ranks the site's devices for each file, and all devices rank alike: of those that
lack a piece the first in rank fetches it, the others take it from whoever has it. A device that
dies is found out by not answering, and the next in rank goes on where the pieces end.

    whoever asks first     says CLAIMED, then asks the others once more, then says FETCHING
    two claim at a time    the first in rank goes on

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998).
"""

import enum
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

#: Neighbours that are asked for a file: the first in rank.
ASKED = 32
_ADDRESS = re.compile(r"([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})")


class PeerDirectory:
    """Peers of this site, as the newest assignment lists them.

    addresses     device -> host:port
    generations   device -> how often its name was given to another device
    """

    def __init__(self) -> None:
        self.addresses: Mapping[str, str] = {}
        self.generations: Mapping[str, int] = {}

    def update(self, addresses: Mapping[str, str], generations: Mapping[str, int]) -> None:
        """Replace both."""
        self.addresses, self.generations = addresses, generations


class Word(enum.StrEnum):
    """What a neighbour says of one piece."""

    HAVE = "have"  # and here it is
    FETCHING = "fetching"  # it comes from the artifact server right now
    CLAIMED = "claimed"  # it is about to be fetched
    WANTED = "wanted"  # it is needed here too
    NONE = "none"  # not here, and not needed
    BUSY = "busy"  # too many ask


class Move(enum.Enum):
    """What to do about a piece that no neighbour has."""

    WAIT, FETCH = "wait", "fetch"


def ranked(sha256: str, names: Iterable[str]) -> list[str]:
    """`names` in the order in which they fetch this file; the same on every device.

    >>> ranked("ab", ["cam-1", "cam-2", "cam-3"]) == ranked("ab", ["cam-3", "cam-1", "cam-2"])
    True
    """
    return sorted(names, key=lambda name: hashlib.sha256(f"{sha256} {name}".encode()).digest())


def decide(me: str, order: Sequence[str], words: Mapping[str, Word]) -> Move:
    """Fetch a piece that nobody who answered has, or wait for it.

    order   of everybody, as `ranked` gives it
    words   neighbour -> what it said; who does not answer is not in it

    >>> decide("b", ["a", "b"], {"a": Word.WANTED}), decide("a", ["a", "b"], {"b": Word.WANTED})
    (<Move.WAIT: 'wait'>, <Move.FETCH: 'fetch'>)
    >>> decide("a", ["a", "b"], {"b": Word.FETCHING}), decide("b", ["a", "b"], {})
    (<Move.WAIT: 'wait'>, <Move.FETCH: 'fetch'>)
    """
    before = set(order[: order.index(me)])
    for name, word in words.items():
        if word in (Word.FETCHING, Word.BUSY):
            return Move.WAIT
        if word in (Word.CLAIMED, Word.WANTED) and name in before:
            return Move.WAIT
    return Move.FETCH


def parse_address(text: str) -> tuple[str, int] | None:
    """Take "host:port" apart; None if it is none.

    >>> parse_address("10.0.0.7:8455"), parse_address("[fd00::7]:8455"), parse_address("x")
    (('10.0.0.7', 8455), ('fd00::7', 8455), None)
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or not 0 < int(found[2]) < 65_536:
        return None
    return found[1].strip("[]"), int(found[2])
