"""A site whose gateway sums before the WAN, by the real engine."""

import msgspec
import pytest

from fake_clients import SIZE, FakeFederation
from fakes import memory_folder
from shoal.controller.federated.rounds import rounds
from shoal.federated import messages
from shoal.federated.chunks import cut
from shoal.federated.site_sum import Gateway

pytestmark = pytest.mark.scenario

NORTH, GATEWAY = ("d01", "d03", "d05"), "d01"


def ignored(federation):
    return rounds.get_round(federation.fleet.ctx, "walk.1").ignored


def in_training(federation, silent=NORTH, **wishes):
    """A round in which these send nothing by themselves, and everybody else has sent."""
    for name in silent:
        federation.clients[name].quiet = {messages.Piece}
    federation.start(gateways={"north": GATEWAY}, **wishes)
    others = len(federation.clients) - len(silent)
    federation.run(60, until=lambda: _marks(federation).get("UPDATED", 0) == others)


def _marks(federation):
    found = rounds.list_rounds(federation.fleet.ctx, task="walk")
    return found[0].marks if found else {}


def send(federation, members, by=GATEWAY, most=1_000_000, twice=()):
    """The sum of what these learned."""
    gateway = Gateway(SIZE, most)
    for name in members:
        client = federation.clients[name]
        gateway.add(name, client.delta(), client.examples, loss=0.5, seconds=0.5)
    data = msgspec.msgpack.encode(messages.Contribution(update=b"", site=gateway.to_bytes()))
    client = federation.clients[by]
    quiet, client.quiet = client.quiet, set()
    for chunk in cut(data, 700):
        client.say(client.config.plan.attempt, messages.Piece(chunk=chunk))
    client.quiet = quiet
    federation.run(2)


def test_a_gateways_sum_gives_the_checkpoint_that_every_devices_update_gives(federation) -> None:
    in_training(federation)
    send(federation, NORTH)
    federation.run(60, until=federation.done)

    with memory_folder() as folder:
        plain = FakeFederation(folder)
        plain.start()
        plain.run(60, until=plain.done)
        assert federation.walk.checkpoint == plain.walk.checkpoint

    found = federation.parts()
    assert all(found[name].chosen and found[name].examples == 10 for name in NORTH)
    assert [found[name].bytes > 0 for name in NORTH] == [True, False, False]
    assert {found[name].norm for name in NORTH} == {None}
    assert found["d00"].norm > 0
    assert {federation.clients[name].dismissed[-1] for name in NORTH} == {""}


def test_a_part_of_a_site_may_come_through_its_gateway_and_the_rest_by_itself(federation) -> None:
    in_training(federation, silent=("d01", "d03"))
    send(federation, ("d01", "d03"))
    federation.run(60, until=federation.done)
    assert all(part.chosen for part in federation.parts().values())


@pytest.mark.parametrize(
    ("members", "by"),
    [
        (("d01", "d00"), "d01"),  # of another site
        (("d03", "d05"), "d01"),  # not of itself
        (("d03", "d05"), "d03"),  # no gateway
        (("d01", "d03", "d09"), "d01"),  # a stranger
    ],
)
def test_a_sum_with_a_device_of_another_site_changes_nothing(federation, members, by) -> None:
    in_training(federation)
    federation.clients["d09"] = federation.clients["d03"]
    send(federation, members, by=by)
    del federation.clients["d09"]
    one = rounds.get_round(federation.fleet.ctx, "walk.1")
    assert (one.state, one.marks) == ("TRAINING", {"JOINED": 3, "UPDATED": 3})

    send(federation, NORTH)
    federation.run(60, until=federation.done)
    assert all(part.chosen for part in federation.parts().values())
    assert ignored(federation) == {"unsound": 1}


def test_an_update_sent_directly_is_not_counted_again_through_the_gateway(federation) -> None:
    in_training(federation, silent=("d01", "d03"))
    send(federation, NORTH)  # d05 has sent its own
    assert _marks(federation) == {"JOINED": 2, "UPDATED": 4}

    send(federation, ("d01", "d03"))
    federation.run(60, until=federation.done)
    assert all(part.chosen for part in federation.parts().values())
    assert ignored(federation) == {"member-said-before": 1}


def test_a_sum_with_weights_other_than_its_members_is_refused(federation) -> None:
    in_training(federation)
    send(federation, NORTH, most=1)
    assert _marks(federation) == {"JOINED": 3, "UPDATED": 3}

    send(federation, NORTH)
    federation.run(60, until=federation.done)
    assert ignored(federation) == {"unsound": 1}


# ------------------------------------------------------------------ who is told which way


def listening(federation, **facts):
    federation.set(GATEWAY, facts={"gateway": "10.0.0.7:8456"} | facts)


def told(federation):
    return {name: client.way for name, client in federation.clients.items()}


def test_a_site_gets_its_gateway_and_the_gateway_its_members(federation) -> None:
    listening(federation)
    in_training(federation)
    found = told(federation)
    assert found[GATEWAY].members == list(NORTH)
    assert [found[name].members for name in NORTH[1:]] == [[], []]
    assert {(found[n].gateway, found[n].address) for n in NORTH} == {(GATEWAY, "10.0.0.7:8456")}
    assert {found[name] for name in ("d00", "d02", "d04")} == {None}


def test_both_ends_get_the_generations_of_reenrolled_devices_also_within_a_round(
    federation,
) -> None:
    listening(federation)
    federation.set("d03", generation=2)
    federation.set("d00", generation=1)  # of another site
    in_training(federation)
    assert told(federation)[GATEWAY].generations == {"d03": 2}
    assert told(federation)["d05"].generations is msgspec.UNSET

    federation.set("d05", generation=1)
    federation.set(GATEWAY, generation=3)
    federation.run(1)
    assert told(federation)[GATEWAY].generations == {GATEWAY: 3, "d03": 2, "d05": 1}
    assert told(federation)["d05"].generations == {GATEWAY: 3}


@pytest.mark.parametrize("lacks", [{"online": False}, {"facts": {}}, {"state": "revoked"}])
def test_a_gateway_that_is_away_or_does_not_listen_is_not_named(federation, lacks) -> None:
    listening(federation)
    in_training(federation)
    federation.set(GATEWAY, **lacks)
    federation.run(3)
    assert [told(federation)[name] for name in NORTH[1:]] == [None, None]


def test_a_site_sends_directly_when_its_sum_does_not_come_in_time(federation) -> None:
    listening(federation)
    in_training(federation, pace={"goal": 6, "least": 2, "over": 1.0, "train_s": 40.0})
    federation.run(26)
    assert told(federation)["d03"].gateway == GATEWAY
    for name in NORTH:
        federation.clients[name].quiet = set()
    federation.run(30, until=federation.done)
    assert told(federation)["d03"] is None
    assert all(part.chosen for part in federation.parts().values())


def test_a_gateway_learns_at_once_which_devices_sent_directly(federation) -> None:
    listening(federation)
    in_training(federation)
    send_alone(federation, "d05")
    federation.run(2)
    assert told(federation)[GATEWAY].members == ["d01", "d03"]


def send_alone(federation, name):
    client = federation.clients[name]
    client.quiet = set()
    for said in client.said[messages.Piece]:
        client.say(client.config.plan.attempt, said)
