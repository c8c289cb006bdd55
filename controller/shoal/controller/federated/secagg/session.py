"""Secure aggregation of one running round, on its files: key shares, votes, survivors, the sum.

Each decision is written to a file before it is sent: the roster, who shared keys in time (dealt),
who is in the sum (ending), who voted in time (passed). After a restart the controller sends the
same again, and can send nothing else.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np
from cryptography import x509

from shoal.controller.federated.ports import Files
from shoal.controller.federated.secagg.server import SecAggServer
from shoal.errors import ConflictError
from shoal.federated.identity import check_signature
from shoal.federated.masks import U32
from shoal.federated.messages import Contribution
from shoal.federated.secure import Advert, Ending, Roster, Terms


class Summed(NamedTuple):
    """total: uint32 (P + 1,); faulty: devices that sent wrong shares."""

    total: U32
    ending: Ending
    faulty: set[str]


class SecAggSession:
    """Key sharing, votes and survivors of one round; `open` fixes the roster.

    adverts   of every device in the roster
    shared    devices whose key shares (boxes) have arrived
    sharers   those that shared in time; None while key sharing is open
    voted     devices whose vote has arrived
    voters    those that voted in time; None while the vote is open
    """

    def __init__(self, ident: str, terms: Terms, files: Files) -> None:
        self._ident, self._terms, self._files = ident, terms, files
        self.adverts = _adverts(ident, files)
        self._server = SecAggServer(terms, self.adverts, 0)
        self.sharers = _names(files, ident, "dealt")
        self.voters = _names(files, ident, "passed")
        self.shared = set(files.devices(ident, "boxes"))
        for name in sorted(self.shared if self.sharers is None else self.sharers):
            self._server.add_boxes(name, _by_device(files, ident, "boxes", name))
        self.voted = set(files.devices(ident, "vote"))

    @classmethod
    def open(cls, ident: str, terms: Terms, files: Files, joined: list[str]) -> "SecAggSession":
        if _names(files, ident, "roster") is None:
            _put_names(files, ident, "roster", joined)
        return cls(ident, terms, files)

    def roster_for(self, device: str) -> Roster:
        return self._server.roster_for(device)

    def add_boxes(self, device: str, boxes: Mapping[str, bytes]) -> str:
        """Keep a device's key shares; why they are ignored, or "".

        InputError unless there is one for every neighbour.
        """
        if device in self.shared:
            return "said-before"
        if self.sharers is not None:
            return "late"
        self._server.add_boxes(device, boxes)
        self._files.put(self._ident, "boxes", device, msgspec.msgpack.encode(boxes))
        self.shared.add(device)
        return ""

    def close_sharing(self) -> list[str]:
        """Accept no further key shares; the devices that sent none."""
        self.sharers = sorted(self.shared)
        _put_names(self._files, self._ident, "dealt", self.sharers)
        return sorted(set(self.adverts) - self.shared)

    def boxes_for(self, device: str) -> dict[str, bytes]:
        return self._server.boxes_for(device)

    def fix_survivors(self, alive: list[str]) -> None:
        """Write down which devices are in the sum, once."""
        if not self._files.has(self._ident, "ending"):
            dead = sorted(set(self.sharers or ()) - set(alive))
            ending = Ending(alive=sorted(alive), dead=dead)
            self._files.put(self._ident, "ending", "", msgspec.msgpack.encode(ending))

    @property
    def ending(self) -> Ending:
        return _ending(self._ident, self._files)

    def add_vote(
        self, device: str, vote: bytes, authorities: list[x509.Certificate], now_s: float
    ) -> str:
        """Keep a device's signature of the survivors; why it is ignored, or "".

        UntrustedError unless the device's certificate, of one of `authorities`, verifies it.
        """
        if device in self.voted:
            return "said-before"
        if self.voters is not None:
            return "late"
        message = self.ending.signed(self._terms.round_id)
        certificate = self.adverts[device].certificate
        check_signature(certificate, authorities, device, vote, message, now_s)
        self._files.put(self._ident, "vote", device, vote)
        self.voted.add(device)
        return ""

    def close_voting(self) -> None:
        """Accept no further votes."""
        self.voters = sorted(self.voted)
        _put_names(self._files, self._ident, "passed", self.voters)

    def votes_for(self, device: str) -> dict[str, bytes]:
        """Signatures of a device's neighbours."""
        near = [advert.device for advert in self.roster_for(device).neighbours]
        found = {n: self._files.get(self._ident, "vote", n) for n in near if n in self.voted}
        return {name: vote for name, vote in found.items() if vote is not None}

    def neighbours(self, device: str) -> set[str]:
        return {advert.device for advert in self.roster_for(device).neighbours}


def unmask(ident: str, terms: Terms, files: Files, size: int) -> Summed:
    """Sum of the surviving devices' numbers, uint32 (size + 1,), from the files.

    Memory: the sum and one update. ConflictError for too few shares, InputError for wrong ones.
    """
    server = SecAggServer(terms, _adverts(ident, files), size + 1)
    for name in _names(files, ident, "dealt") or ():
        server.add_boxes(name, _by_device(files, ident, "boxes", name))
    for name in _ending(ident, files).alive:
        server.add_masked(name, _masked(files.get(ident, "update", name) or b""))
    ending = server.end()
    for name in files.devices(ident, "shares"):
        server.add_shares(name, _by_device(files, ident, "shares", name))
    return Summed(server.value(), ending, server.faulty)


def _ending(ident: str, files: Files) -> Ending:
    """ConflictError before the survivors are fixed."""
    data = files.get(ident, "ending")
    if data is None:
        raise ConflictError(f"round {ident} has not fixed which devices are in its sum")
    return msgspec.msgpack.decode(data, type=Ending)


def _masked(data: bytes) -> U32:
    update = msgspec.msgpack.decode(data, type=Contribution).update
    return np.frombuffer(update, "<u4").astype(np.uint32, copy=False)


def _adverts(ident: str, files: Files) -> dict[str, Advert]:
    found = {n: files.get(ident, "advert", n) for n in _names(files, ident, "roster") or ()}
    return {
        name: msgspec.msgpack.decode(data, type=Advert)
        for name, data in found.items()
        if data is not None
    }


def _put_names(files: Files, ident: str, kind: str, names: list[str]) -> None:
    files.put(ident, kind, "", msgspec.msgpack.encode(sorted(names)))


def _names(files: Files, ident: str, kind: str) -> list[str] | None:
    """None before they were written."""
    data = files.get(ident, kind)
    return None if data is None else msgspec.msgpack.decode(data, type=list[str])


def _by_device(files: Files, ident: str, kind: str, device: str) -> dict[str, bytes]:
    """A device's boxes or shares, by the neighbour they are for."""
    data = files.get(ident, kind, device)
    return {} if data is None else msgspec.msgpack.decode(data, type=dict[str, bytes])
