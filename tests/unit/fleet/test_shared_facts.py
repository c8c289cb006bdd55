"""The fact that explains which devices are affected is found, and none where chance decides."""

import random

import pytest

from shoal.controller.fleet.shared_facts import LEVEL, sentence, shared_facts


def fleet(devices: int) -> dict[str, dict[str, str]]:
    return {
        f"d{i}": {"site": f"s{i % 20}", "line": str(i % 7), "profile": "abc"[i % 3]}
        for i in range(devices)
    }


def test_the_cause_is_found_among_devices_that_are_affected_by_chance():
    facts, dice = fleet(2_000), random.Random(1)
    hit = [d for d in facts if facts[d]["line"] == "3" or dice.random() < 0.01]
    [one, *_] = shared_facts(facts, hit)
    assert (one.attribute, one.value) == ("line", "3")
    assert one.affected == one.devices
    assert one.p < 1e-100


def test_facts_of_the_same_devices_are_named_together():
    facts = {d: f | {"label hall": f["site"]} for d, f in fleet(200).items()}
    said = sentence(facts, [d for d in facts if facts[d]["site"] == "s4"], "fail")
    assert said == (
        "10 of 200 devices fail: 10 of 10 with label hall s4 (the same devices as site s4), "
        "0 of 190 others."
    )


def test_where_chance_decides_a_fact_is_named_as_rarely_as_promised():
    facts, dice = fleet(200), random.Random(2)
    searches = 400
    named = sum(bool(shared_facts(facts, dice.sample(list(facts), 20))) for _ in range(searches))
    assert named <= 3 * LEVEL * searches


@pytest.mark.parametrize(
    ("hit", "said"),
    [
        ([], ""),
        (["d1"], "1 of 9 devices drift (d1): no fact that they share explains it."),
        (
            [f"d{i}" for i in range(9)],
            "9 of 9 devices drift: what all share explains it, or nothing that is known.",
        ),
    ],
)
def test_where_nothing_explains_it_that_is_said(hit, said):
    assert sentence(fleet(9), hit, "drift") == said
