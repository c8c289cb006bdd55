"""A cohort in memory that aggregates securely: real participants, a controller, lost messages."""

import random
from collections.abc import Mapping

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shoal.agent.federated.secagg import Participant
from shoal.controller.federated.secagg.server import SecAggServer
from shoal.errors import RefusedError, UntrustedError
from shoal.federated.masks import U32
from shoal.federated.secure import Terms

STAGES = ("before sharing", "before its update", "before its shares")


class Cohort:
    """Devices d000, d001, ...; `seed` makes every draw."""

    def __init__(
        self, count: int, *, degree: int = 0, threshold: int = 0, least: int = 2, seed: int = 0
    ) -> None:
        self.draw = random.Random(seed).randbytes
        degree = degree or count - 1
        self.terms = Terms(
            round_id=self.draw(16),
            degree=degree,
            threshold=threshold or degree // 2 + 1,
            least=least,
        )
        self.names = [f"d{i:03}" for i in range(count)]
        self.identity = {n: Ed25519PrivateKey.from_private_bytes(self.draw(32)) for n in self.names}
        self.devices = {name: self.participant(name) for name in self.names}

    def participant(self, name: str, least: int = 2) -> Participant:
        return Participant(
            name,
            self.terms,
            least,
            sign=self.identity[name].sign,
            verify=self.verify,
            entropy=self.draw,
        )

    def verify(self, name: str, signature: bytes, message: bytes) -> None:
        try:
            self.identity[name].public_key().verify(signature, message)
        except InvalidSignature as error:
            raise UntrustedError(f"not signed by {name}") from error

    def numbers(self, size: int) -> dict[str, U32]:
        return {n: np.frombuffer(self.draw(4 * size), np.uint32).copy() for n in self.names}

    def begun(self, size: int, lost: Mapping[str, str] = {}) -> SecAggServer:
        """Up to the boxes; who is lost before sharing sends none."""
        server = SecAggServer(self.terms, {n: d.advert() for n, d in self.devices.items()}, size)
        for name, device in self.devices.items():
            boxes = device.boxes(server.roster_for(name))
            if lost.get(name) != STAGES[0]:
                server.add_boxes(name, boxes)
        return server

    def run(self, numbers: Mapping[str, U32], lost: Mapping[str, str]) -> tuple[U32, list[str]]:
        """(what the controller learns, who is in it); lost: device -> one of STAGES."""
        server = self.begun(len(next(iter(numbers.values()))), lost)
        for name, device in self.devices.items():
            if lost.get(name) in STAGES[:2]:
                continue
            try:
                server.add_masked(name, device.masked(numbers[name], server.boxes_for(name)))
            except RefusedError:
                continue
        ending = server.end()
        speaking = [n for n in ending.alive if lost.get(n) != STAGES[2]]
        for name in speaking:
            server.add_vote(name, self.devices[name].vote(ending))
        for name in speaking:
            server.add_shares(name, self.devices[name].shares(server.votes_for(name)))
        return server.value(), ending.alive


def total(numbers: Mapping[str, U32], names: list[str]) -> U32:
    return np.sum([numbers[name] for name in names], axis=0, dtype=np.uint32)
