"""Rounds by the real engine, with simulated devices, on a virtual clock."""

import subprocess
import sys

import msgspec
import numpy as np
import pytest
from sqlalchemy import update

from fake_clients import MODEL
from shoal.controller.alerts import alerts
from shoal.controller.federated.aggregation import aggregation
from shoal.controller.federated.rounds import rounds
from shoal.federated import messages

pytestmark = pytest.mark.scenario

PRIVATE = {"settings": {"most_examples": 1}}
HIDING = {"clip": 2.0}
HALF = {"goal": 6, "least": 5, "over": 1.0}
MODES = {
    "plain": {},
    "int8": {"compression": {"kind": "int8", "zstd": True}},
    "median": {"strategy": "median"},
    "adam": {"strategy": "fedadam", "settings": {"lr": 0.05}},
    "secure": {"secure": HIDING, "pace": HALF},
    "local noise": PRIVATE | {"privacy": {"where": "local", "clip": 5.0, "noise": 1e-5}},
    "central noise": PRIVATE | {"privacy": {"where": "central", "clip": 5.0, "noise": 1e-5}},
    "distributed noise": PRIVATE
    | {
        "privacy": {"where": "distributed", "clip": 5.0, "noise": 1e-3},
        "secure": HIDING,
        "pace": HALF,
    },
}


def mean(school, names=None):
    return np.mean([school.pupils[name].target for name in names or school.pupils], axis=0)


@pytest.mark.parametrize("mode", MODES)
def test_rounds_bring_theta_towards_where_the_devices_are(school, mode):
    school.start(3, **MODES[mode])
    school.run(120, until=lambda: school.done(3))
    found = school.walk
    assert found.state == "ready"
    far = np.abs(mean(school)).max()
    assert np.abs(school.theta(found.checkpoint) - mean(school)).max() < 0.8 * far
    if mode in ("plain", "secure"):
        exact = mean(school) * (1 - 0.5**3)
        assert school.theta(found.checkpoint) == pytest.approx(exact, abs=1e-6)
    assert not list((school.fleet.ctx.folder / "rounds").iterdir())
    assert {one.dismissed[-1] for one in school.pupils.values()} == {""}


def test_a_round_says_who_took_part_what_it_cost_and_how_good_it_is(school):
    school.start()
    school.run(60, until=school.done)
    one = rounds.get_round(school.fleet.ctx, "walk.1")
    assert (one.state, one.marks, one.parent) == ("DONE", {"MEASURED": 6}, 0)
    assert one.measured.rows == 60
    assert one.measured.accuracy == 0.5
    assert one.measured.low < 0.5 < one.measured.high
    assert set(one.slices) == {
        "class:ok", "site:north", "site:south", "profile:generic",
        "class:ok site:north profile:generic", "class:ok site:south profile:generic",
    }  # fmt: skip
    assert one.loss > one.measured.loss / 40
    found = rounds.participations(school.fleet.ctx, "walk.1")
    assert [p.device for p in found] == list(school.pupils)
    assert all(p.chosen and p.norm > 0 and p.bytes > 160 and p.examples == 10 for p in found)
    assert one.bytes == sum(p.bytes for p in found)
    assert rounds.matrix(school.fleet.ctx, "walk") == found


@pytest.mark.parametrize("mode", ["secure", "central noise"])
def test_what_masks_or_noise_hide_is_shown_to_nobody(school, mode):
    school.start(**MODES[mode])
    school.run(60, until=school.done)
    found = rounds.participations(school.fleet.ctx, "walk.1")
    assert {(p.norm, p.cosine, p.loss) for p in found} == {(None, None, None)}
    assert rounds.get_round(school.fleet.ctx, "walk.1").loss is None


@pytest.mark.parametrize("silent", [messages.Boxes, messages.Piece, messages.Vote, messages.Shares])
def test_who_falls_silent_in_a_secure_round_is_left_out_or_made_up_for(school, silent):
    school.pupils["d03"].quiet = {silent}
    school.start(**MODES["secure"] | {"pace": HALF | {"train_s": 90, "unmask_s": 20}})
    school.run(300, until=school.done)
    found = school.parts()
    before_sending = silent in (messages.Boxes, messages.Piece)
    alive = [name for name in school.pupils if name != "d03"] if before_sending else None
    exact = mean(school, alive) / 2
    assert school.theta(school.walk.checkpoint) == pytest.approx(exact, abs=1e-6)
    assert found["d03"].chosen is not before_sending
    assert found["d03"].reason == {messages.Boxes: "no-boxes", messages.Piece: "no-answer"}.get(
        silent, ""
    )


def test_a_round_without_enough_devices_waits_and_says_for_whom(school):
    for name in ("d00", "d01", "d02", "d03", "d04"):
        school.set(name, online=False)
    school.start()
    school.run(10)
    assert school.walk.reason.startswith("1 devices for a round of 2 to 6 (5 offline)")
    school.set("d00", online=True)
    school.run(60, until=school.done)
    assert rounds.get_round(school.fleet.ctx, "walk.1").marks == {"MEASURED": 2}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"online": False}, "offline"),
        ({"ring": "lab"}, "other-ring"),
        ({"releases": {"other": "other@1"}}, "other-model"),
        ({"facts": {"ram_mb": 100}}, "little-memory"),
        ({"facts": {"ram_mb": 900, "learning": {"rows": {MODEL: 3}}}}, "few-rows"),
        ({"facts": {"ram_mb": 900, "learning": {"cohort": 7}}}, "lower cohort"),
        ({"facts": {"ram_mb": 900, "learning": {"rows": {MODEL: 3}}}}, "shoal-agent labels add"),
        ({"state": "decommissioned"}, ""),
    ],
)
def test_only_who_fits_the_demands_is_invited(school, values, reason):
    school.set("d05", **values)
    school.start(demands={"ram_mb": 500, "rows": 5}, pace={"goal": 6, "least": 6, "over": 1.0})
    school.run(10)
    assert school.walk.rounds == 0
    assert reason in school.walk.reason
    assert not school.pupils["d05"].log


def test_a_failed_round_is_tried_again_so_often_and_then_the_task_says_why_it_stopped(school):
    for pupil in school.pupils.values():
        pupil.quiet = {messages.Piece}
    school.start(pace={"goal": 6, "least": 2, "over": 1.0, "train_s": 20})
    school.run(300, until=lambda: school.walk.state == "stopped")
    found = rounds.list_rounds(school.fleet.ctx, task="walk")
    assert [(one.id, one.attempt, one.reason) for one in found] == [
        ("walk.3", 3, "too-few-updates"),
        ("walk.2", 2, "too-few-updates"),
        ("walk.1", 1, "too-few-updates"),
    ]
    assert "the 3. time in a row" in school.walk.reason
    [alert] = alerts.list_alerts(school.fleet.ctx, state="open")
    assert (alert.kind, alert.detail) == ("task", school.walk.reason)
    assert "shoal round show walk" in alert.next_step
    school.run(1)
    assert school.pupils["d00"].dismissed == ["too-few-updates"] * 3

    for pupil in school.pupils.values():
        pupil.quiet = set()
    school.more()
    school.run(60, until=school.done)
    assert rounds.get_round(school.fleet.ctx, "walk.4").attempt == 1
    assert not alerts.list_alerts(school.fleet.ctx, state="open")


def test_a_budget_of_privacy_stops_the_rounds_and_says_so(school):
    school.start(50, **PRIVATE, budget={"epsilon": 3.0, "delta": 1e-6},
          privacy={"where": "central", "clip": 5.0, "noise": 4.0})  # fmt: skip
    school.run(200, until=lambda: school.walk.state == "stopped")
    assert "budget-spent" in school.walk.reason
    done = [one for one in rounds.list_rounds(school.fleet.ctx) if one.state == "DONE"]
    assert 2 <= len(done) < 10
    epsilons = [one.epsilon for one in reversed(done)]
    assert epsilons == sorted(epsilons)
    assert 0 < epsilons[-1] == school.walk.epsilon <= 3.0


def test_an_aborted_task_breaks_its_round_off_and_tells_the_devices(school):
    school.pupils["d00"].quiet = {messages.Piece}
    school.start(5)
    school.run(5)
    rounds.abort(school.fleet.ctx, actor="ana", task="walk")
    school.run(5)
    one = rounds.get_round(school.fleet.ctx, "walk.1")
    assert (one.state, one.reason) == ("FAILED", "aborted")
    assert school.walk.reason == "aborted by ana"
    assert {pupil.dismissed[-1] for pupil in school.pupils.values()} == {"aborted"}
    assert not list((school.fleet.ctx.folder / "rounds").iterdir())


def test_a_round_that_cannot_go_on_is_ended_with_what_was_wrong(school):
    school.start()
    theta = school.walk.checkpoint
    school.fleet.ctx.blobs.path(theta).unlink()
    school.run(30)
    found = rounds.list_rounds(school.fleet.ctx, task="walk")
    assert {one.reason for one in found} == {"cannot-go-on"}
    assert theta in found[0].detail
    school.run(60, until=lambda: school.walk.state == "stopped")


def test_an_adaptive_clip_follows_the_updates_and_is_part_of_the_cost(school):
    school.start(8, **PRIVATE, privacy={"where": "central", "clip": 50.0, "noise": 1e-3},
          adaptive={"spread": 0.1, "rate": 1.0})  # fmt: skip
    school.run(300, until=lambda: school.done(8))
    clips = [one.clip for one in reversed(rounds.list_rounds(school.fleet.ctx))]
    assert clips[0] == 50.0
    assert clips[-1] < 10.0
    spent = school.fleet.rows_of(rounds.federated_task)[0].spent
    assert sum(one["rounds"] for one in spent) == 8


@pytest.mark.parametrize("mode", ["plain", "secure"])
def test_who_is_decommissioned_while_it_trains_is_left_out(school, mode):
    school.pupils["d00"].quiet = {messages.Piece}
    school.start(**MODES[mode] | {"pace": {"goal": 6, "least": 5, "over": 1.0, "train_s": 60}})
    school.run(30, until=lambda: rounds.get_round(school.fleet.ctx, "walk.1").state == "TRAINING")
    school.run(2)
    school.set("d00", state="decommissioned")
    school.set("d01", state="decommissioned" if mode == "plain" else "enrolled")
    if mode == "plain":
        school.run(90, until=lambda: school.walk.reason != "")
        assert rounds.get_round(school.fleet.ctx, "walk.1").reason == "too-few-updates"
    else:
        school.run(90, until=school.done)
    found = school.parts()
    assert (found["d00"].reason, found["d00"].chosen) == ("decommissioned", False)


def test_who_took_part_rests_as_many_rounds_as_the_task_says(school):
    school.start(2, demands={"rest": 1}, pace={"goal": 3, "least": 3, "over": 1.0})
    school.run(120, until=lambda: school.done(2))
    both = [rounds.participations(school.fleet.ctx, f"walk.{n}") for n in (1, 2)]
    first, second = ({p.device for p in found} for found in both)
    assert not first & second
    assert first | second == set(school.pupils)


def test_who_gave_an_update_and_does_not_measure_is_told_that_its_update_counts(school):
    school.pupils["d02"].quiet = {messages.Measured}
    pace = {"goal": 6, "least": 2, "over": 1.0, "evaluate_s": 10}
    school.start(strategy="multi-krum", settings={"malicious": 1, "keep": 3}, pace=pace)
    school.run(60, until=school.done)
    school.run(2)
    told = {name: pupil.dismissed[-1] for name, pupil in school.pupils.items()}
    found = school.parts()
    assert told == {name: "" if p.chosen else "not-chosen" for name, p in found.items()}
    assert sum(p.chosen for p in found.values()) == 3


def test_neither_web_nor_engine_loads_what_only_training_needs():
    code = (
        "import sys, shoal.controller.app, shoal.controller.engine_jobs;"
        "import shoal.controller.training.training;"
        "print(*({'onnx', 'onnxruntime', 'sklearn', 'skl2onnx'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.stdout.strip(), run.stderr) == ("", "")


def test_what_is_personal_stays_as_it_was_whatever_devices_send_of_it(school):
    school.task()
    prepared = school.walk.prepared
    with school.fleet.ctx.store.write() as db:
        personal = msgspec.to_builtins(msgspec.structs.replace(prepared, personal=[(30, 40)]))
        db.execute(update(rounds.federated_task).values(prepared=personal))
    school.more()
    school.run(60, until=school.done)
    theta = school.theta(school.walk.checkpoint)
    assert theta[:30] == pytest.approx(mean(school)[:30] / 2, abs=1e-6)
    assert not theta[30:].any()


def test_what_a_strategy_remembers_is_kept_of_the_newest_rounds_and_of_who_still_needs_it(
    school, monkeypatch
):
    monkeypatch.setattr(aggregation, "KEPT_STATES", 2)
    school.task(name="twin", evaluate=0)
    rounds.start(school.fleet.ctx, actor="ana", task="twin", rounds=1)
    school.run(30, until=lambda: rounds.get_task(school.fleet.ctx, "twin").rounds == 1)
    school.start(5, evaluate=0)
    school.run(120, until=lambda: school.done(5))
    school.run(2)
    found = {one.number: one for one in rounds.list_rounds(school.fleet.ctx, task="walk")}
    assert [bool(found[number].memory) for number in range(1, 6)] == [False] * 3 + [True] * 2
    assert school.walk.memory == found[5].memory
    twin = rounds.get_task(school.fleet.ctx, "twin").memory
    assert aggregation.load_state(school.fleet.ctx, twin).rounds == 1
    prepared, thetas, kept = 4, 5, 3
    blobs = list(school.fleet.ctx.blobs.folder.glob("??/*"))
    assert len(blobs) == prepared + thetas + kept


def test_a_database_that_was_restored_without_the_updates_tries_the_round_again(school):
    school.pupils["d00"].quiet = {messages.Piece}
    school.start(pace={"goal": 6, "least": 2, "over": 1.0, "train_s": 10})
    school.run(3)
    for path in (school.fleet.ctx.folder / "rounds" / "walk.1").glob("batch.*"):
        path.unlink()
    school.run(120, until=school.done)
    found = rounds.list_rounds(school.fleet.ctx)
    assert [(one.id, one.state, one.reason) for one in found] == [
        ("walk.2", "DONE", ""),
        ("walk.1", "FAILED", "cannot-aggregate"),
    ]
    assert "d01 in round walk.1" in found[1].detail
