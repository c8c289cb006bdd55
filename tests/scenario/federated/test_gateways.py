"""A site whose gateway sums before the WAN, by the real engine."""

import msgspec
import pytest

from fake_clients import SIZE, School
from fakes import memory_folder
from shoal.controller.federated.rounds import rounds
from shoal.federated import messages
from shoal.federated.chunks import cut
from shoal.federated.site_sum import Gateway

pytestmark = pytest.mark.scenario

NORTH, GATEWAY = ("d01", "d03", "d05"), "d01"


def ignored(school):
    return rounds.get_round(school.fleet.ctx, "walk.1").ignored


def in_training(school, silent=NORTH, **wishes):
    """A round in which these send nothing by themselves, and everybody else has sent."""
    for name in silent:
        school.pupils[name].quiet = {messages.Piece}
    school.start(gateways={"north": GATEWAY}, **wishes)
    others = len(school.pupils) - len(silent)
    school.run(60, until=lambda: _marks(school).get("UPDATED", 0) == others)


def _marks(school):
    found = rounds.list_rounds(school.fleet.ctx, task="walk")
    return found[0].marks if found else {}


def send(school, members, by=GATEWAY, most=1_000_000, twice=()):
    """The sum of what these learned."""
    gateway = Gateway(SIZE, most)
    for name in members:
        pupil = school.pupils[name]
        gateway.add(name, pupil.delta(), pupil.examples, loss=0.5, seconds=0.5)
    data = msgspec.msgpack.encode(messages.Contribution(update=b"", site=gateway.to_bytes()))
    pupil = school.pupils[by]
    quiet, pupil.quiet = pupil.quiet, set()
    for chunk in cut(data, 700):
        pupil.say(pupil.config.plan.attempt, messages.Piece(chunk=chunk))
    pupil.quiet = quiet
    school.run(2)


def test_a_gateways_sum_gives_the_checkpoint_that_every_devices_update_gives(school) -> None:
    in_training(school)
    send(school, NORTH)
    school.run(60, until=school.done)

    with memory_folder() as folder:
        plain = School(folder)
        plain.start()
        plain.run(60, until=plain.done)
        assert school.walk.checkpoint == plain.walk.checkpoint

    found = school.parts()
    assert all(found[name].chosen and found[name].examples == 10 for name in NORTH)
    assert [found[name].bytes > 0 for name in NORTH] == [True, False, False]
    assert {found[name].norm for name in NORTH} == {None}
    assert found["d00"].norm > 0
    assert {school.pupils[name].dismissed[-1] for name in NORTH} == {""}


def test_a_part_of_a_site_may_come_through_its_gateway_and_the_rest_by_itself(school) -> None:
    in_training(school, silent=("d01", "d03"))
    send(school, ("d01", "d03"))
    school.run(60, until=school.done)
    assert all(part.chosen for part in school.parts().values())


@pytest.mark.parametrize(
    ("members", "by"),
    [
        (("d01", "d00"), "d01"),  # of another site
        (("d03", "d05"), "d01"),  # not of itself
        (("d03", "d05"), "d03"),  # no gateway
        (("d01", "d03", "d09"), "d01"),  # a stranger
    ],
)
def test_a_sum_for_whom_the_gateway_may_not_speak_changes_nothing(school, members, by) -> None:
    in_training(school)
    school.pupils["d09"] = school.pupils["d03"]
    send(school, members, by=by)
    del school.pupils["d09"]
    one = rounds.get_round(school.fleet.ctx, "walk.1")
    assert (one.state, one.marks) == ("TRAINING", {"JOINED": 3, "UPDATED": 3})

    send(school, NORTH)
    school.run(60, until=school.done)
    assert all(part.chosen for part in school.parts().values())
    assert ignored(school) == {"unsound": 1}


def test_who_is_in_already_is_not_counted_a_second_time_through_the_gateway(school) -> None:
    in_training(school, silent=("d01", "d03"))
    send(school, NORTH)  # d05 has sent its own
    assert _marks(school) == {"JOINED": 2, "UPDATED": 4}

    send(school, ("d01", "d03"))
    school.run(60, until=school.done)
    assert all(part.chosen for part in school.parts().values())
    assert ignored(school) == {"member-said-before": 1}


def test_a_sum_whose_weights_are_not_those_of_its_members_is_refused(school) -> None:
    in_training(school)
    send(school, NORTH, most=1)
    assert _marks(school) == {"JOINED": 3, "UPDATED": 3}

    send(school, NORTH)
    school.run(60, until=school.done)
    assert ignored(school) == {"unsound": 1}


# ------------------------------------------------------------------ who is told which way


def listening(school, **facts):
    school.set(GATEWAY, facts={"gateway": "10.0.0.7:8456"} | facts)


def told(school):
    return {name: pupil.way for name, pupil in school.pupils.items()}


def test_a_site_is_told_its_gateway_and_the_gateway_its_site(school) -> None:
    listening(school)
    in_training(school)
    found = told(school)
    assert found[GATEWAY].members == list(NORTH)
    assert [found[name].members for name in NORTH[1:]] == [[], []]
    assert {(found[n].gateway, found[n].address) for n in NORTH} == {(GATEWAY, "10.0.0.7:8456")}
    assert {found[name] for name in ("d00", "d02", "d04")} == {None}


def test_both_ends_are_told_which_names_were_enrolled_anew_also_within_a_round(school) -> None:
    listening(school)
    school.set("d03", generation=2)
    school.set("d00", generation=1)  # of another site
    in_training(school)
    assert told(school)[GATEWAY].generations == {"d03": 2}
    assert told(school)["d05"].generations is msgspec.UNSET

    school.set("d05", generation=1)
    school.set(GATEWAY, generation=3)
    school.run(1)
    assert told(school)[GATEWAY].generations == {GATEWAY: 3, "d03": 2, "d05": 1}
    assert told(school)["d05"].generations == {GATEWAY: 3}


@pytest.mark.parametrize("lacks", [{"online": False}, {"facts": {}}, {"state": "revoked"}])
def test_a_gateway_that_is_away_or_does_not_listen_is_not_named(school, lacks) -> None:
    listening(school)
    in_training(school)
    school.set(GATEWAY, **lacks)
    school.run(3)
    assert [told(school)[name] for name in NORTH[1:]] == [None, None]


def test_a_site_sends_directly_when_its_sum_does_not_come_in_time(school) -> None:
    listening(school)
    in_training(school, pace={"goal": 6, "least": 2, "over": 1.0, "train_s": 40.0})
    school.run(26)
    assert told(school)["d03"].gateway == GATEWAY
    for name in NORTH:
        school.pupils[name].quiet = set()
    school.run(30, until=school.done)
    assert told(school)["d03"] is None
    assert all(part.chosen for part in school.parts().values())


def test_a_gateway_is_told_at_once_who_has_sent_directly(school) -> None:
    listening(school)
    in_training(school)
    send_alone(school, "d05")
    school.run(2)
    assert told(school)[GATEWAY].members == ["d01", "d03"]


def send_alone(school, name):
    pupil = school.pupils[name]
    pupil.quiet = set()
    for said in pupil.said[messages.Piece]:
        pupil.say(pupil.config.plan.attempt, said)
