"""Rounds by the real engine, with simulated devices, on a virtual clock."""

import subprocess
import sys

import msgspec
import numpy as np
import pytest
from sqlalchemy import update

from fake_clients import MODEL
from shoal.controller.alerts import alerts
from shoal.controller.federated.aggregation import checkpoint_files
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


def mean(federation, names=None):
    return np.mean(
        [federation.clients[name].target for name in names or federation.clients], axis=0
    )


@pytest.mark.parametrize("mode", MODES)
def test_rounds_move_theta_towards_the_devices_targets(federation, mode):
    federation.start(3, **MODES[mode])
    federation.run(120, until=lambda: federation.done(3))
    found = federation.walk
    assert found.state == "ready"
    far = np.abs(mean(federation)).max()
    assert np.abs(federation.theta(found.checkpoint) - mean(federation)).max() < 0.8 * far
    if mode in ("plain", "secure"):
        exact = mean(federation) * (1 - 0.5**3)
        assert federation.theta(found.checkpoint) == pytest.approx(exact, abs=1e-6)
    assert not list((federation.fleet.ctx.folder / "rounds").iterdir())
    assert {one.dismissed[-1] for one in federation.clients.values()} == {""}


def test_a_round_shows_participants_cost_and_metrics(federation):
    federation.start()
    federation.run(60, until=federation.done)
    one = rounds.get_round(federation.fleet.ctx, "walk.1")
    assert (one.state, one.marks, one.parent) == ("DONE", {"MEASURED": 6}, 0)
    assert one.measured.rows == 60
    assert one.measured.accuracy == 0.5
    assert one.measured.low < 0.5 < one.measured.high
    assert set(one.slices) == {
        "class:ok", "site:north", "site:south", "profile:generic",
        "class:ok site:north profile:generic", "class:ok site:south profile:generic",
    }  # fmt: skip
    assert one.loss > one.measured.loss / 40
    found = rounds.participations(federation.fleet.ctx, "walk.1")
    assert [p.device for p in found] == list(federation.clients)
    assert all(p.chosen and p.norm > 0 and p.bytes > 160 and p.examples == 10 for p in found)
    assert one.bytes == sum(p.bytes for p in found)
    assert rounds.matrix(federation.fleet.ctx, "walk") == found


@pytest.mark.parametrize("mode", ["secure", "central noise"])
def test_values_hidden_by_masks_or_noise_are_not_shown(federation, mode):
    federation.start(**MODES[mode])
    federation.run(60, until=federation.done)
    found = rounds.participations(federation.fleet.ctx, "walk.1")
    assert {(p.norm, p.cosine, p.loss) for p in found} == {(None, None, None)}
    assert rounds.get_round(federation.fleet.ctx, "walk.1").loss is None


@pytest.mark.parametrize("silent", [messages.Boxes, messages.Piece, messages.Vote, messages.Shares])
def test_a_device_that_stops_answering_in_a_secure_round_is_left_out_or_unmasked(
    federation, silent
):
    federation.clients["d03"].quiet = {silent}
    federation.start(**MODES["secure"] | {"pace": HALF | {"train_s": 90, "unmask_s": 20}})
    federation.run(300, until=federation.done)
    found = federation.parts()
    before_sending = silent in (messages.Boxes, messages.Piece)
    alive = [name for name in federation.clients if name != "d03"] if before_sending else None
    exact = mean(federation, alive) / 2
    assert federation.theta(federation.walk.checkpoint) == pytest.approx(exact, abs=1e-6)
    assert found["d03"].chosen is not before_sending
    assert found["d03"].reason == {messages.Boxes: "no-boxes", messages.Piece: "no-answer"}.get(
        silent, ""
    )


def test_a_round_without_enough_devices_waits_with_the_reasons(federation):
    for name in ("d00", "d01", "d02", "d03", "d04"):
        federation.set(name, online=False)
    federation.start()
    federation.run(10)
    assert federation.walk.reason.startswith("1 devices for a round of 2 to 6 (5 offline)")
    federation.set("d00", online=True)
    federation.run(60, until=federation.done)
    assert rounds.get_round(federation.fleet.ctx, "walk.1").marks == {"MEASURED": 2}


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
def test_only_eligible_devices_are_invited(federation, values, reason):
    federation.set("d05", **values)
    federation.start(demands={"ram_mb": 500, "rows": 5}, pace={"goal": 6, "least": 6, "over": 1.0})
    federation.run(10)
    assert federation.walk.rounds == 0
    assert reason in federation.walk.reason
    assert not federation.clients["d05"].log


def test_a_failed_round_is_retried_and_then_the_task_stops_with_the_reason(federation):
    for client in federation.clients.values():
        client.quiet = {messages.Piece}
    federation.start(pace={"goal": 6, "least": 2, "over": 1.0, "train_s": 20})
    federation.run(300, until=lambda: federation.walk.state == "stopped")
    found = rounds.list_rounds(federation.fleet.ctx, task="walk")
    assert [(one.id, one.attempt, one.reason) for one in found] == [
        ("walk.3", 3, "too-few-updates"),
        ("walk.2", 2, "too-few-updates"),
        ("walk.1", 1, "too-few-updates"),
    ]
    assert "the 3. time in a row" in federation.walk.reason
    [alert] = alerts.list_alerts(federation.fleet.ctx, state="open")
    assert (alert.kind, alert.detail) == ("task", federation.walk.reason)
    assert "shoal round show walk" in alert.next_step
    federation.run(1)
    assert federation.clients["d00"].dismissed == ["too-few-updates"] * 3

    for client in federation.clients.values():
        client.quiet = set()
    federation.more()
    federation.run(60, until=federation.done)
    assert rounds.get_round(federation.fleet.ctx, "walk.4").attempt == 1
    assert not alerts.list_alerts(federation.fleet.ctx, state="open")


def test_a_spent_privacy_budget_stops_the_rounds_with_the_reason(federation):
    federation.start(50, **PRIVATE, budget={"epsilon": 3.0, "delta": 1e-6},
          privacy={"where": "central", "clip": 5.0, "noise": 4.0})  # fmt: skip
    federation.run(200, until=lambda: federation.walk.state == "stopped")
    assert "budget-spent" in federation.walk.reason
    done = [one for one in rounds.list_rounds(federation.fleet.ctx) if one.state == "DONE"]
    assert 2 <= len(done) < 10
    epsilons = [one.epsilon for one in reversed(done)]
    assert epsilons == sorted(epsilons)
    assert 0 < epsilons[-1] == federation.walk.epsilon <= 3.0


def test_an_aborted_task_aborts_its_round_and_dismisses_the_devices(federation):
    federation.clients["d00"].quiet = {messages.Piece}
    federation.start(5)
    federation.run(5)
    rounds.abort(federation.fleet.ctx, actor="ana", task="walk")
    federation.run(5)
    one = rounds.get_round(federation.fleet.ctx, "walk.1")
    assert (one.state, one.reason) == ("FAILED", "aborted")
    assert federation.walk.reason == "aborted by ana"
    assert {client.dismissed[-1] for client in federation.clients.values()} == {"aborted"}
    assert not list((federation.fleet.ctx.folder / "rounds").iterdir())


def test_a_round_that_cannot_go_on_is_ended_with_what_was_wrong(federation):
    federation.start()
    theta = federation.walk.checkpoint
    federation.fleet.ctx.blobs.path(theta).unlink()
    federation.run(30)
    found = rounds.list_rounds(federation.fleet.ctx, task="walk")
    assert {one.reason for one in found} == {"cannot-go-on"}
    assert theta in found[0].detail
    federation.run(60, until=lambda: federation.walk.state == "stopped")


def test_an_adaptive_clip_follows_the_updates_and_is_part_of_the_cost(federation):
    federation.start(8, **PRIVATE, privacy={"where": "central", "clip": 50.0, "noise": 1e-3},
          adaptive={"spread": 0.1, "rate": 1.0})  # fmt: skip
    federation.run(300, until=lambda: federation.done(8))
    clips = [one.clip for one in reversed(rounds.list_rounds(federation.fleet.ctx))]
    assert clips[0] == 50.0
    assert clips[-1] < 10.0
    spent = federation.fleet.rows_of(rounds.federated_task)[0].spent
    assert sum(one["rounds"] for one in spent) == 8


@pytest.mark.parametrize("mode", ["plain", "secure"])
def test_a_device_decommissioned_while_it_trains_is_left_out(federation, mode):
    federation.clients["d00"].quiet = {messages.Piece}
    federation.start(**MODES[mode] | {"pace": {"goal": 6, "least": 5, "over": 1.0, "train_s": 60}})
    federation.run(
        30, until=lambda: rounds.get_round(federation.fleet.ctx, "walk.1").state == "TRAINING"
    )
    federation.run(2)
    federation.set("d00", state="decommissioned")
    federation.set("d01", state="decommissioned" if mode == "plain" else "enrolled")
    if mode == "plain":
        federation.run(90, until=lambda: federation.walk.reason != "")
        assert rounds.get_round(federation.fleet.ctx, "walk.1").reason == "too-few-updates"
    else:
        federation.run(90, until=federation.done)
    found = federation.parts()
    assert (found["d00"].reason, found["d00"].chosen) == ("decommissioned", False)


def test_a_device_that_took_part_pauses_for_the_tasks_number_of_rounds(federation):
    federation.start(2, demands={"rest": 1}, pace={"goal": 3, "least": 3, "over": 1.0})
    federation.run(120, until=lambda: federation.done(2))
    both = [rounds.participations(federation.fleet.ctx, f"walk.{n}") for n in (1, 2)]
    first, second = ({p.device for p in found} for found in both)
    assert not first & second
    assert first | second == set(federation.clients)


def test_a_device_that_sent_an_update_and_no_metrics_is_dismissed_as_counted(federation):
    federation.clients["d02"].quiet = {messages.Measured}
    pace = {"goal": 6, "least": 2, "over": 1.0, "evaluate_s": 10}
    federation.start(strategy="multi-krum", settings={"malicious": 1, "keep": 3}, pace=pace)
    federation.run(60, until=federation.done)
    federation.run(2)
    told = {name: client.dismissed[-1] for name, client in federation.clients.items()}
    found = federation.parts()
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


def test_what_is_personal_stays_as_it_was_whatever_devices_send_of_it(federation):
    federation.task()
    prepared = federation.walk.prepared
    with federation.fleet.ctx.store.write() as db:
        personal = msgspec.to_builtins(msgspec.structs.replace(prepared, personal=[(30, 40)]))
        db.execute(update(rounds.federated_task).values(prepared=personal))
    federation.more()
    federation.run(60, until=federation.done)
    theta = federation.theta(federation.walk.checkpoint)
    assert theta[:30] == pytest.approx(mean(federation)[:30] / 2, abs=1e-6)
    assert not theta[30:].any()


def test_a_strategys_state_is_kept_for_the_newest_rounds_and_while_it_is_needed(
    federation, monkeypatch
):
    monkeypatch.setattr(checkpoint_files, "KEPT_STATES", 2)
    federation.task(name="twin", evaluate=0)
    rounds.start(federation.fleet.ctx, actor="ana", task="twin", rounds=1)
    federation.run(30, until=lambda: rounds.get_task(federation.fleet.ctx, "twin").rounds == 1)
    federation.start(5, evaluate=0)
    federation.run(120, until=lambda: federation.done(5))
    federation.run(2)
    found = {one.number: one for one in rounds.list_rounds(federation.fleet.ctx, task="walk")}
    assert [bool(found[number].memory) for number in range(1, 6)] == [False] * 3 + [True] * 2
    assert federation.walk.memory == found[5].memory
    twin = rounds.get_task(federation.fleet.ctx, "twin").memory
    assert checkpoint_files.load_state(federation.fleet.ctx, twin).rounds == 1
    prepared, thetas, kept = 4, 5, 3
    blobs = list(federation.fleet.ctx.blobs.folder.glob("??/*"))
    assert len(blobs) == prepared + thetas + kept


def test_a_database_that_was_restored_without_the_updates_tries_the_round_again(federation):
    federation.clients["d00"].quiet = {messages.Piece}
    federation.start(pace={"goal": 6, "least": 2, "over": 1.0, "train_s": 10})
    federation.run(3)
    for path in (federation.fleet.ctx.folder / "rounds" / "walk.1").glob("batch.*"):
        path.unlink()
    federation.run(120, until=federation.done)
    found = rounds.list_rounds(federation.fleet.ctx)
    assert [(one.id, one.state, one.reason) for one in found] == [
        ("walk.2", "DONE", ""),
        ("walk.1", "FAILED", "cannot-aggregate"),
    ]
    assert "d01 in round walk.1" in found[1].detail
