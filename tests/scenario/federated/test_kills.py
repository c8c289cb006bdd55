"""The controller is killed, as by kill -9, at every line that matters of a round; it goes on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fake_clients import FakeFederation
from fakes import memory_folder
from shoal import wire
from shoal.controller.federated.aggregation import aggregation
from shoal.controller.federated.io.round_files import RoundFiles
from shoal.controller.federated.rounds import active_round, rounds
from shoal.controller.federated.rounds.machine import Mark
from shoal.controller.federated.rounds.runner import RoundRunner
from shoal.federated import messages

pytestmark = pytest.mark.scenario

STATES = ("RECRUITING", "TRAINING", "UNMASKING", "AGGREGATING", "EVALUATING", "DONE")
FILES = (
    "begun", "advert", "roster", "boxes", "dealt", "head", "piece-1", "update", "ending", "vote",
    "passed", "shares", "measured",
)  # fmt: skip
SAID = ("Invite", "Start", "Deal", "Close", "Pass", "Measure", "Dismiss")
SECURE = {"secure": {"clip": 2.0}, "pace": {"goal": 4, "least": 3, "over": 1.0}}
CENTRAL = {
    "settings": {"most_examples": 1},
    "privacy": {"where": "central", "clip": 5.0, "noise": 0.5},
}
#: (mode, what, which, when): the first time that it happens.
POINTS = [
    *(("secure", "journal", state, when) for state in STATES for when in ("before", "after")),
    *(("secure", "file", kind, when) for kind in FILES for when in ("before", "after")),
    *(("secure", "said", call, when) for call in SAID for when in ("before", "after")),
    *(
        ("central", "journal", s, w)
        for s in STATES
        if s != "UNMASKING"
        for w in ("before", "after")
    ),
    *(
        ("central", "file", kind, when)
        for kind in ("update", "noise")
        for when in ("before", "after")
    ),
    ("central", "aggregate", "", "after"),
    ("central", "said", "Start", "after"),
]


class Killed(BaseException):
    """The controller's process is gone."""


class Kill:
    """Kills once. made: checkpoints that a round's updates were aggregated to, all times."""

    def __init__(self, what: str, which: str, when: str) -> None:
        self._point, self._when = (what, which), when
        self.happened = False
        self.made: list[str] = []

    def around(self, what: str, which: str, act: Callable[[], Any]) -> Any:
        mine = (what, which) == self._point and not self.happened
        if mine and self._when == "before":
            self._strike()
        result = act()
        if mine and self._when == "after":
            self._strike()
        return result

    def _strike(self) -> None:
        self.happened = True
        raise Killed


@pytest.fixture
def federation():
    with memory_folder() as folder:
        yield FakeFederation(folder, count=4)


def arm(monkeypatch: pytest.MonkeyPatch, kill: Kill) -> None:
    """Around what reaches the disk or a device."""
    put, write, aggregate = RoundFiles.put, active_round.write_journal, aggregation.aggregate

    def put_(self, ident, kind, device, data):
        return kill.around("file", kind, lambda: put(self, ident, kind, device, data))

    def write_(db, ctx, active, after):
        moved = after.state is not active.record.state
        write(db, ctx, active, after)
        if moved:
            kill.around("journal", after.state.value, db.commit)  # before: nothing of it is kept

    def aggregate_(ctx, active):
        found = aggregate(ctx, active)
        kill.made.append(found.checkpoint)
        return kill.around("aggregate", "", lambda: found)

    monkeypatch.setattr(RoundFiles, "put", put_)
    monkeypatch.setattr(active_round, "write_journal", write_)
    monkeypatch.setattr(aggregation, "aggregate", aggregate_)


def post_through(federation: FakeFederation, kill: Kill) -> None:
    """Let the engine, the first or a restarted one, send through the kill."""
    runner = federation.fleet.engine._rounds._runner
    post = runner._post

    def post_(device: str, call: wire.RoundCall) -> None:
        kill.around("said", type(call.said).__name__, lambda: post(device, call))

    runner._post = post_


def run(federation: FakeFederation, kill: Kill) -> None:
    """Until the round is done, starting the controller anew when it was killed."""
    post_through(federation, kill)
    for _ in range(2):
        try:
            federation.run(120, until=lambda: federation.walk.state == "ready")
            federation.run(2)
            return
        except Killed:
            federation.fleet.engine._link.stop(rudely=True)
            federation.fleet._restart_engine()
            post_through(federation, kill)
    raise AssertionError("killed twice")


@pytest.mark.parametrize(("mode", "what", "which", "when"), POINTS, ids=str)
def test_wherever_the_controller_is_killed_the_round_ends_with_the_same_sum(
    federation, monkeypatch, mode, what, which, when
):
    kill = Kill(what, which, when)
    arm(monkeypatch, kill)
    for client in federation.clients.values():
        client.piece = 100
    federation.start(**SECURE if mode == "secure" else CENTRAL)
    run(federation, kill)

    assert kill.happened
    task = federation.walk
    assert (task.rounds, task.parent) == (1, 1)
    assert [one.state for one in rounds.list_rounds(federation.fleet.ctx)] == ["DONE"]
    assert len(set(kill.made)) == 1, "the same updates were noised anew"
    if mode == "secure":
        mean = np.mean([client.target for client in federation.clients.values()], axis=0)
        assert federation.theta(task.checkpoint) == pytest.approx(mean / 2, abs=1e-6)
    else:
        spent = federation.fleet.rows_of(rounds.federated_task)[0].spent
        assert [one["rounds"] for one in spent] == [1]
    assert {client.dismissed[-1] for client in federation.clients.values()} == {""}
    assert not list((federation.fleet.ctx.folder / "rounds").iterdir())


def test_an_update_on_disk_counts_before_it_is_in_the_journal(federation, monkeypatch):
    """Its device is gone when the controller is there again; all others answer only then."""
    fast, *slow = federation.clients.values()
    for client in slow:
        client.quiet = {messages.Piece}
    save, killed = RoundRunner._save, []

    def save_(runner, active, after=None):
        if after is None and active.record.with_mark(Mark.UPDATED) and not killed:
            killed.append(active.id)
            raise Killed
        save(runner, active, after)

    monkeypatch.setattr(RoundRunner, "_save", save_)
    federation.task(evaluate=0)
    rounds.start(federation.fleet.ctx, actor="ana", task="walk", rounds=1)
    with pytest.raises(Killed):
        federation.run(30)
    journal_says = rounds.get_round(federation.fleet.ctx, "walk.1").marks
    fast.quiet = {messages.Piece}
    for client in slow:
        client.quiet = set()
    federation.fleet.engine._link.stop(rudely=True)
    federation.fleet._restart_engine()
    federation.run(60, until=lambda: rounds.get_task(federation.fleet.ctx, "walk").state == "ready")

    assert journal_says == {"JOINED": 4}
    found = rounds.participations(federation.fleet.ctx, "walk.1")
    assert [one.device for one in found if one.chosen] == list(federation.clients)
