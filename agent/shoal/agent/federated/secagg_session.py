"""A device's secrets in one securely aggregated round, in memory and nowhere else.

What it has said is kept here too, so that it can say the same again.
"""

from collections.abc import Mapping

from shoal.agent.federated.ports import Credentials
from shoal.agent.federated.secagg import Mask, Participant
from shoal.errors import RefusedError
from shoal.federated.config import Config, secure_id
from shoal.federated.secure import Advert, Ending, Roster, Terms
from shoal.federated.shamir import Entropy


class Hiding:
    """One try of one round. RefusedError says what this device will not do.

    text    of the config, as it was signed
    least   devices in the sum that the device itself demands
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
            verify=lambda *said: credentials.verify(self._certificates)(*said),
            entropy=entropy,
            certificate=credentials.certificate(),
        )
        self.advert: Advert = self._participant.advert()
        self.boxes: dict[str, bytes] = {}
        self._dealt: Mapping[str, bytes] | None = None
        self._vote: tuple[Ending, bytes] | None = None
        self._shares: dict[str, bytes] | None = None
        self._masked = False

    def share(self, roster: Roster | None) -> dict[str, bytes]:
        """Sealed shares for the neighbours; made once, however often the roster comes."""
        if roster is None:
            raise RefusedError("a secure round that says no roster", "neighbours")
        if not self.boxes:
            self._certificates = {one.device: one.certificate for one in roster.neighbours}
            self.boxes = self._participant.boxes(roster)
        return self.boxes

    def deal(self, boxes: Mapping[str, bytes]) -> None:
        """What the neighbours sealed; the first time counts."""
        if self._dealt is None:
            self._dealt = dict(boxes)

    def masks(self) -> list[Mask]:
        """What is put on the update, once; empty while the neighbours' boxes are not here."""
        if self._dealt is None or self._masked:
            return []
        self._masked = True
        return self._participant.masks(self._dealt)

    def vote(self, ending: Ending) -> bytes:
        """The signature under an ending: the same again for the same one, and never another."""
        if self._vote is None:
            self._vote = ending, self._participant.vote(ending)
        if self._vote[0] != ending:
            raise RefusedError("a second ending, after one was signed", "second-ending")
        return self._vote[1]

    def open(self, votes: Mapping[str, bytes]) -> dict[str, bytes]:
        """The shares: the same again, whatever is asked."""
        if self._shares is None:
            self._shares = self._participant.shares(votes)
        return self._shares
