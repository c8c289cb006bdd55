"""Secure aggregation of one round, over its files: who is in, who shared, who voted, and the sum.

What is said in the circle is decided once and written down before it is said: the roster, who
shared in time (dealt), who is in the sum (ending), who voted in time (passed). A controller that
was killed says the same again, and can say nothing else.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from shoal.controller.federated.ports import Files, named, names, put_names
from shoal.controller.federated.secagg.server import Unmasking
from shoal.errors import ConflictError
from shoal.federated.masks import U32
from shoal.federated.messages import Contribution
from shoal.federated.secure import Advert, Ending, Roster, Terms


class Summed(NamedTuple):
    """total: uint32 (P + 1,); liars: devices whose shares were wrong."""

    total: U32
    ending: Ending
    liars: set[str]


class Circle:
    """From the roster on; `open` writes that down first if it is not there.

    adverts   of everybody in the roster
    """

    def __init__(self, ident: str, terms: Terms, files: Files) -> None:
        self._ident, self._files = ident, files
        self.adverts = _adverts(ident, files)
        self._server = Unmasking(terms, self.adverts, 0)
        self.dealt = names(files, ident, "dealt")
        self.passed = names(files, ident, "passed")
        self.shared = set(files.devices(ident, "boxes"))
        for name in sorted(self.shared if self.dealt is None else self.dealt):
            self._server.take_boxes(name, named(files, ident, "boxes", name))
        self.voted = set(files.devices(ident, "vote"))

    @classmethod
    def open(cls, ident: str, terms: Terms, files: Files, joined: list[str]) -> "Circle":
        if names(files, ident, "roster") is None:
            put_names(files, ident, "roster", joined)
        return cls(ident, terms, files)

    def roster_for(self, device: str) -> Roster:
        return self._server.roster_for(device)

    def take_boxes(self, device: str, boxes: Mapping[str, bytes]) -> None:
        """InputError unless there is one for every neighbour; ConflictError once it is late."""
        self._server.take_boxes(device, boxes)
        self._files.put(self._ident, "boxes", device, msgspec.msgpack.encode(boxes))
        self.shared.add(device)

    def deal(self) -> list[str]:
        """Nobody shares any more; who has not."""
        self.dealt = sorted(self.shared)
        put_names(self._files, self._ident, "dealt", self.dealt)
        return sorted(set(self.adverts) - self.shared)

    def boxes_for(self, device: str) -> dict[str, bytes]:
        return self._server.boxes_for(device)

    def end(self, alive: list[str]) -> None:
        """Who is in the sum, if that was not said before."""
        if not self._files.has(self._ident, "ending"):
            dead = sorted(set(self.dealt or ()) - set(alive))
            ending = Ending(alive=sorted(alive), dead=dead)
            self._files.put(self._ident, "ending", "", msgspec.msgpack.encode(ending))

    @property
    def ending(self) -> Ending:
        return ending_of(self._ident, self._files)

    def take_vote(self, device: str, vote: bytes) -> None:
        """A signature that was verified."""
        self._files.put(self._ident, "vote", device, vote)
        self.voted.add(device)

    def pass_on(self) -> None:
        """Nobody votes any more."""
        self.passed = sorted(self.voted)
        put_names(self._files, self._ident, "passed", self.passed)

    def votes_for(self, device: str) -> dict[str, bytes]:
        """What its neighbours signed."""
        near = [advert.device for advert in self.roster_for(device).neighbours]
        found = {n: self._files.get(self._ident, "vote", n) for n in near if n in self.voted}
        return {name: vote for name, vote in found.items() if vote is not None}

    def near(self, device: str) -> set[str]:
        """Its neighbours."""
        return {advert.device for advert in self.roster_for(device).neighbours}


def ending_of(ident: str, files: Files) -> Ending:
    """ConflictError before it was said."""
    data = files.get(ident, "ending")
    if data is None:
        raise ConflictError(f"round {ident} has not said yet who is in its sum")
    return msgspec.msgpack.decode(data, type=Ending)


def summed(ident: str, terms: Terms, files: Files, size: int) -> Summed:
    """The sum of the living devices' numbers, uint32 (size + 1,), from what is in the files.

    Memory: the sum and one update. ConflictError when too few shares are there, InputError when
    they are wrong.
    """
    server = Unmasking(terms, _adverts(ident, files), size + 1)
    for name in names(files, ident, "dealt") or ():
        server.take_boxes(name, named(files, ident, "boxes", name))
    for name in ending_of(ident, files).alive:
        server.take_masked(name, _masked(files.get(ident, "update", name) or b""))
    ending = server.end()
    for name in files.devices(ident, "shares"):
        server.take_shares(name, named(files, ident, "shares", name))
    return Summed(server.value(), ending, server.liars)


def _masked(data: bytes) -> U32:
    update = msgspec.msgpack.decode(data, type=Contribution).update
    return np.frombuffer(update, "<u4").astype(np.uint32, copy=False)


def _adverts(ident: str, files: Files) -> dict[str, Advert]:
    found = {n: files.get(ident, "advert", n) for n in names(files, ident, "roster") or ()}
    return {
        name: msgspec.msgpack.decode(data, type=Advert)
        for name, data in found.items()
        if data is not None
    }
