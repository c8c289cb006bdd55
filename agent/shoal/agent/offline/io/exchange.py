"""The running agent's side of what people carry: looked after on every tick of its loop.

A parcel in carried/ is heard as if the broker had said it: its assignment goes through the same
verification, journal and table, and its acks let messages go from the outbox. It is forgotten
when the journal has the assignment; wherever the power fails, it is heard again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from shoal import wire
from shoal.agent.host.faults import Fault
from shoal.agent.host.io.folder import DIRECTOR, READY, WANTED, read_trusted
from shoal.agent.installed.ports import Journal
from shoal.agent.offline.io.cache import Carried
from shoal.agent.offline.io.import_ import newest_director
from shoal.agent.offline.io.seal import open_parcel
from shoal.agent.telemetry.ports import Outbox
from shoal.durable import write_durable
from shoal.errors import ShoalError, StorageError
from shoal.sealed_message import Letter, Parcel
from shoal.trust import verify_orders

#: Seconds until an assignment that the journal does not have yet is said again.
AGAIN_S = 5.0


class Ears(NamedTuple):
    """How the agent is told, and asked; all on its own loop.

    hear       a message, by kind, as the broker would bring it
    rooted     the director has a new root
    fault      something to report
    settled    whether no update is under way
    inventory  what is on the device
    """

    hear: Callable[[Letter], None]
    rooted: Callable[[bytes], None]
    fault: Callable[[Fault], None]
    settled: Callable[[], bool]
    inventory: Callable[[], wire.Inventory]


class Exchange:
    """What was brought, and what is to be carried away, of the agent in `folder`."""

    def __init__(
        self,
        folder: Path,
        device: str,
        *,
        journal: Journal,
        outbox: Outbox,
        ears: Ears,
        clock: Callable[[], float],
    ) -> None:
        self._folder, self._device, self._clock = folder, device, clock
        self._journal, self._outbox, self._ears = journal, outbox, ears
        self._carried = Carried(folder)
        self._said_at = 0.0

    def turn(self) -> None:
        """Do what is due; a disk that refuses is asked again the next time."""
        try:
            if self._carried.there:
                self._take()
            if (self._folder / WANTED).exists():
                self._answer()
        except (StorageError, OSError) as error:
            self._ears.fault(Fault("storage", f"what is carried by hand waits: {error}"))

    def _take(self) -> None:
        refused = self._carried.refusal()
        if refused is not None:
            self._ears.fault(Fault(refused.cause, refused.detail, refused.severity))
            self._carried.reported()
        sealed = self._carried.parcel()
        if not sealed:
            if self._ears.settled():
                self._carried.clear()
            return
        try:
            self._hear(open_parcel(self._folder, sealed, self._device, self._clock()))
        except StorageError:
            raise
        except ShoalError as error:
            self._ears.fault(Fault(error.code, f"what was brought is refused: {error}", "warning"))
            self._carried.taken()

    def _hear(self, parcel: Parcel) -> None:
        for letter in parcel.letters:
            if letter.kind == "assignment" and not self._holds(letter, parcel):
                return
        for letter in parcel.letters:
            if letter.kind == "ack":
                self._ears.hear(letter)
        bearer = self._carried.bearer()
        who = bearer.user if bearer else "somebody"
        made_s = parcel.made_s
        facts = {"user": who, "made_s": made_s, "trip": parcel.trip}
        detail = f"{who} brought a folder: {_what(parcel)}"
        self._carried.taken()
        self._ears.fault(Fault("folder-imported", detail, "info", 1, facts))

    def _holds(self, letter: Letter, parcel: Parcel) -> bool:
        """Whether the journal has this assignment; it is said to the agent if not."""
        if self._journal.assignment() == letter.payload:
            return True
        root = self._root(parcel)
        message = wire.decode_down(letter.kind, letter.payload)
        assert isinstance(message, wire.Assignment)
        verify_orders(
            message.signed,
            director_root=root,
            device=self._device,
            floor=self._journal.floors().assignment,
            now_s=self._clock(),
        )
        if self._clock() >= self._said_at + AGAIN_S:
            self._said_at = self._clock()
            self._ears.hear(letter)
        return False

    def _root(self, parcel: Parcel) -> bytes:
        trusted = read_trusted(self._folder, DIRECTOR)
        newest = newest_director(trusted, parcel.roots)
        if newest != trusted:
            write_durable(self._folder / DIRECTOR, newest)
            self._ears.rooted(newest)
        return newest

    def _answer(self) -> None:
        """Number what waits and say what is here: another process carries it away."""
        self._outbox.number_all()
        write_durable(self._folder / READY, wire.encode(self._ears.inventory()))
        (self._folder / WANTED).unlink(missing_ok=True)


def _what(parcel: Parcel) -> str:
    kinds = [letter.kind for letter in parcel.letters]
    return f"{kinds.count('assignment')} assignment, {kinds.count('ack')} acknowledgements"
