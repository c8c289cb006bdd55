"""Whatever becomes of sticks, connections and acks: every message arrives, and counts once."""

import base64
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.controller_app import ControllerApp
from api.test_folders import sealed
from api.test_renewal import Member
from repositories import NOW
from shoal import sealed_message, topics, wire
from shoal.agent.telemetry.io.outbox_store import SqliteOutbox
from shoal.controller.fleet import devices, ledger
from shoal.controller.ingest.ingest import ingest
from shoal.controller.offline import folders
from shoal.sealed_message import BatchMessage

_count = itertools.count(1)
STEPS = ("say", "say", "mqtt", "mqtt unheard", "export", "import", "lose", "bring")


class Way:
    """A device's outbox, the sticks that are on their way, and the controller's database."""

    def __init__(self, controller: ControllerApp, folder: Path) -> None:
        self.controller, self.member = controller, Member(controller, f"press-{next(_count)}")
        self.outbox = SqliteOutbox(folder / "outbox.db", limit_bytes=2**24, boot_name=lambda: "b1")
        self.said, self.sticks = 0, list[bytes]()

    def do(self, step: str, which: int) -> None:
        if step == "say":
            self.said += 1
            self.outbox.add(self.message(self.said))
        elif step.startswith("mqtt"):
            self.talk(heard=step == "mqtt")
        elif step == "export":
            self.export()
        elif step == "bring":
            self.bring()
        elif self.sticks:
            at = which % len(self.sticks)
            if step == "lose":
                self.sticks.pop(at)
            else:
                self.take_in(self.sticks[at])

    def message(self, number: int) -> wire.FaultEvent:
        return wire.FaultEvent(
            device=self.member.name, boot="", seq=0, sent_s=NOW, cause="source",
            detail=f"number {number}",
        )  # fmt: skip

    def talk(self, *, heard: bool) -> None:
        """A network for a moment; unheard: it is gone before the acks are."""
        letters = self.outbox.after(0, 3)
        topic = topics.up(self.member.name, "event")
        for acks in ingest(self.controller.ctx, [(topic, it.payload) for it in letters]).values():
            for ack in acks if heard else ():
                self.outbox.ack(ack.boot, ack.seqs)

    def export(self) -> None:
        self.outbox.number_all()
        letters = [BatchMessage(it.kind, it.payload) for it in self.letters()]
        self.sticks.append(sealed(self.member, *letters))

    def letters(self) -> Iterator:
        return iter(self.outbox.after(0, 10_000))

    def take_in(self, stick: bytes) -> None:
        authority = self.controller.app.extensions["shoal-services"].authority
        folders.import_batch(self.controller.ctx, authority, actor="ana", data=stick)

    def bring(self) -> None:
        """What the controller says has arrived, by a stick that does arrive."""
        authority = self.controller.app.extensions["shoal-services"].authority
        name = self.member.name
        plan = folders.export(self.controller.ctx, authority, actor="ana", names=[name], site="")
        opened = sealed_message.decode_batch(
            sealed_message.unseal(base64.b64decode(plan.parcels[name])).body
        )
        for letter in opened.letters:
            ack = wire.decode_down(letter.kind, letter.payload)
            assert isinstance(ack, wire.Ack)
            self.outbox.ack(ack.boot, ack.seqs)

    def check(self) -> None:
        """One more trip, there and back, and nothing is missing, twice, or left."""
        self.export()
        self.take_in(self.sticks[-1])
        self.bring()
        assert self.outbox.waiting == 0
        told = [
            e.detail for e in devices.timeline(self.controller.ctx, self.member.name, limit=500)
        ]
        numbers = sorted(int(text[7:]) for text in told if text.startswith("number "))
        assert numbers == list(range(1, self.said + 1))
        assert all(
            one.missing == 0 for one in ledger.ledgers(self.controller.ctx, self.member.name)
        )
        self.outbox.close()


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9)), max_size=40))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_message_arrives_once_by_whatever_ways(
    controller: ControllerApp, steps: list[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        way = Way(controller, Path(folder))
        for step, which in steps:
            way.do(step, which)
        way.check()
