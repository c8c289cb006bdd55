"""Rounds for real: a controller, its broker, six agents' processes with digits of their own."""

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from digits import Rows, homes_of
from federated.real import Cohort, choices, holds_row, serving
from shelves import file_shelf
from shoal.agent.installed.io.journal import SqliteJournal
from shoal.controller.federated.privacy.accountant import Spent, epsilon
from shoal.controller.federated.strategy import Strategy, strategy_of
from shoal.controller.federated.updates import Server, Update
from shoal.federated.compression import decompress
from shoal.federated.messages import Boxes, Contribution, Join, Piece
from shoal.params import F32
from soaking import soak

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(420)]

MODEL, DEVICES, SAMPLE = "lot-codes", 6, 60
FEATURES = [f"p{n}" for n in range(64)]
LEARNING = {"lr": 0.05, "epochs": 5, "batch": 10}
PACE = {"goal": DEVICES, "least": 4, "over": 1.0, "train_s": 120}


class Digits:
    """homes: a device's own rows; test: rows that nobody has; pixels as a camera has them."""

    def __init__(self, cohort: Cohort, folder: Path) -> None:
        self.cohort = cohort
        homes, test = homes_of(DEVICES, np.random.default_rng(1))
        self.homes = {f"cam-{i}": as_pixels(home) for i, home in enumerate(homes)}
        sample, self.test = (
            as_pixels(test.only(np.arange(SAMPLE))),
            as_pixels(test.only(np.arange(SAMPLE, len(test.y)))),
        )
        for i, name in enumerate(self.homes):
            cohort.enrol(name, site=("north", "south")[i % 2])
        cohort.start()
        how = {"estimator": "mlp", "params": {"hidden": [32]}}
        table = write_table(folder / "sample.csv", sample)
        self.release = cohort.release(table, MODEL, "digit", **how)
        for name, home in self.homes.items():
            cohort.teach(name, MODEL, FEATURES, home.x, [str(y) for y in home.y])

    def plan(self, name: str, **more: object) -> None:
        asked = {"name": name, "release": self.release, "learning": LEARNING, "pace": PACE}
        self.cohort.plan(**{**asked, "evaluate": 0, **more})

    def accuracy(self, task: str, checkpoint: str = "") -> float:
        said = self.cohort.answers(task, self.test.x, checkpoint)
        return float(np.mean([int(s) == y for s, y in zip(said, self.test.y, strict=True)]))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Digits]:
    parent = tmp_path_factory.mktemp("federated")
    with serving(parent) as cohort:
        yield Digits(cohort, parent)


def test_devices_with_different_digits_train_together_and_no_row_leaves_them(digits: Digits):
    cohort = digits.cohort
    digits.plan("alone", compression={"kind": "int8"}, evaluate=4)
    before = digits.accuracy("alone")
    done = cohort.run("alone", 4, within_s=200)
    assert [one["number"] for one in done] == [1, 2, 3, 4]
    assert all(one["marks"].get("UPDATED", 0) + one["marks"].get("MEASURED", 0) == DEVICES
               for one in done), str([one["marks"] for one in done])  # fmt: skip
    assert done[-1]["measured"]["rows"] == sum(len(home.y) for home in digits.homes.values())
    after = digits.accuracy("alone")
    assert after > max(before + 0.05, 0.85), (before, after)
    heard = b"\n".join(payload for _, payload in cohort.heard)
    assert len(heard) > 100_000
    assert not [row for home in digits.homes.values() for row in home.x if holds_row(heard, row)]


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "u1", "text"])
def test_a_row_that_went_over_the_wire_would_be_found(kind: str) -> None:
    row = np.arange(64, dtype=np.float32) % 17
    half = row[32:]
    hidden = ",".join(f"{v:g}" for v in half).encode() if kind == "text" else half.astype(kind)
    assert holds_row(b"before" + bytes(hidden) + b"after", row)
    assert not holds_row(b"before" + bytes(hidden)[:-4] + b"after", row)


def test_whichever_process_is_killed_all_rounds_end_and_no_device_counts_twice(digits: Digits):
    """Engine, broker and a device, each -9 inside a round; privacy is spent for what was sent."""
    cohort, rounds = digits.cohort, 5
    privacy = {"where": "local", "clip": 1.0, "noise": 0.02, "delta": 1e-6}
    digits.plan(
        "killed", privacy=privacy, settings={"most_examples": 1}, compression={"kind": "int8"}
    )
    cohort.begin("killed", rounds)
    cohort.wait_said(Join, 1)
    cohort.served.kill("engine")
    cohort.wait_said(Piece, 2)
    cohort.served.kill("engine")
    cohort.wait_said(Join, 3)
    cohort.served.kill("nats")
    cohort.wait_said(Join, 1, device="cam-0")
    cohort.members["cam-0"].kill()
    cohort.members["cam-0"].start()
    cohort.wait_said(Piece, 1, device="cam-1")
    cohort.members["cam-1"].kill()
    cohort.members["cam-1"].start()
    cohort.wait_done("killed", within_s=200)
    tries = cohort.rounds("killed")
    assert {one["state"] for one in tries} <= {"DONE", "FAILED"}
    done = [one for one in tries if one["state"] == "DONE"]
    assert len(done) == rounds
    for one in done:
        assert_sum_of_what_was_sent(cohort, one)
    assert_ledgers(cohort, "killed", privacy)


def assert_sum_of_what_was_sent(cohort: Cohort, found: dict) -> None:
    """A checkpoint is what follows from one contribution of each device, bit by bit."""
    strategy, theta = strategy_of("fedavg", {"most_examples": 1}), cohort.theta(found["theta"])
    parts = cohort.parts(found["id"])
    devices = sorted(name for name, part in parts.items() if part["chosen"])
    assert len(devices) >= PACE["least"]
    attempt = cohort.attempts()[found["task"], found["number"]]
    made = []
    for said in choices(cohort.contributions(), attempt, devices):
        gathering = strategy.gather(theta.size, file_shelf(theta.size))
        for name, one in zip(devices, said, strict=True):
            delta = decompress(one.update, theta.size)
            gathering.add(Update(device=name, delta=delta, examples=one.examples, loss=one.loss))
        after = strategy.advance(Server(theta=theta), gathering.result())
        made.append(after.theta.astype("<f4").tobytes())
    assert cohort.blob(found["checkpoint"]) in made


def assert_ledgers(cohort: Cohort, task: str, privacy: dict) -> None:
    """The task spent for every round that is done; a device for every contribution it made."""
    done = sum(one["state"] == "DONE" for one in cohort.rounds(task))
    told = cohort.api.get(f"tasks/{task}")
    noise = privacy["noise"] / 2  # of two neighbouring cohorts, one update is another's
    assert told["epsilon"] == pytest.approx(
        epsilon([Spent(noise=noise, rounds=done)], privacy["delta"]), rel=0.05
    )
    mine = {attempt for (of, _), attempt in cohort.attempts().items() if of == task}
    sent = [name for attempt, name in cohort.contributions() if attempt in mine]
    for name, member in cohort.members.items():
        journal = SqliteJournal(member.folder / "journal.db")
        spent = journal.participation().ledger.rounds
        journal.close()
        assert sent.count(name) <= spent <= len(cohort.rounds(task))


@soak
def test_a_device_that_is_killed_after_it_shared_its_keys_is_taken_out_of_the_secure_sum(digits):
    cohort = digits.cohort
    secure = {"clip": 0.5, "weight": 300, "degree": 5, "threshold": 3}
    digits.plan("hidden", secure=secure, pace={**PACE, "goal": DEVICES - 1, "over": 1.2})
    before = digits.accuracy("hidden")
    cohort.begin("hidden", 1)
    cohort.wait_said(Boxes, 1, device="cam-2")
    cohort.members["cam-2"].kill()
    cohort.wait_done("hidden", within_s=200)
    cohort.members["cam-2"].start()
    cohort.wait_online()
    [one] = cohort.rounds("hidden")
    assert one["state"] == "DONE", one
    parts = cohort.parts(one["id"])
    assert parts["cam-2"]["mark"] in ("LOST", "REFUSED")
    assert sum(part["chosen"] for part in parts.values()) == DEVICES - 1
    assert all(part["loss"] is None for part in parts.values())
    assert digits.accuracy("hidden") > before - 0.05
    cohort.run("hidden", 2, within_s=200)
    assert digits.accuracy("hidden") > before
    assert_noise(cohort, "hidden")


@soak
def test_an_asynchronous_task_takes_a_late_update_for_less_though_its_engine_was_killed(
    digits: Digits,
) -> None:
    """cam-5 sleeps through two rounds, in the second the engine is killed -9, then cam-1 is: the
    third round needs what cam-5 learned for the first."""
    cohort, late = digits.cohort, "cam-5"
    pace = {**PACE, "goal": DEVICES - 1, "least": DEVICES - 1, "over": 1.2}
    digits.plan("buffered", strategy="fedbuff", settings={"behind": 5}, pace=pace)
    before = digits.accuracy("buffered")
    cohort.begin("buffered", 1)
    cohort.wait_said(Join, device=late)
    with cohort.members[late].asleep():
        cohort.wait_done("buffered", within_s=200)
        cohort.begin("buffered", 1)
        cohort.wait_said(Join)
        cohort.served.kill("engine")
        cohort.wait_done("buffered", within_s=200)
        cohort.members["cam-1"].kill()
        cohort.wait_offline("cam-1")
    cohort.run("buffered", 1, within_s=200)
    cohort.members["cam-1"].start()
    first, second, third = cohort.rounds("buffered")
    for one in (first, second):
        assert cohort.parts(one["id"])[late]["reason"] == "still-training"
    assert assert_weighed_by_age(cohort, "buffered", behind=5)[third["number"]][late] == 2
    assert digits.accuracy("buffered") > before + 0.05
    cohort.wait_online()


def assert_weighed_by_age(cohort: Cohort, task: str, behind: int) -> dict[int, dict[str, int]]:
    """A checkpoint is what follows, bit by bit, from one contribution of each device, weighed by
    the rounds that it is behind; round -> device -> these rounds."""
    numbers = {attempt: n for (of, n), attempt in cohort.attempts().items() if of == task}
    sent = {
        (numbers[attempt], name): said
        for (attempt, name), said in cohort.contributions().items()
        if attempt in numbers
    }
    strategy, left, ages = strategy_of("fedbuff", {"behind": behind}), sorted(sent), {}
    for one in cohort.rounds(task):
        assert one["state"] == "DONE", one
        chosen = [name for name, part in cohort.parts(one["id"]).items() if part["chosen"]]
        began = {name: min(n for n, who in left if who == name) for name in chosen}
        left = [(n, name) for n, name in left if began.get(name) != n]
        ages[one["number"]] = mine = {name: one["number"] - n for name, n in began.items()}
        each = itertools.product(*(sent[n, name] for name, n in began.items()))
        theta = cohort.theta(one["theta"])
        assert cohort.blob(one["checkpoint"]) in [stepped(strategy, theta, mine, s) for s in each]
    return ages


def stepped(
    strategy: Strategy, theta: F32, ages: dict[str, int], said: Sequence[Contribution]
) -> bytes:
    """The checkpoint after one contribution of each device, in the order of `ages`."""
    gathering = strategy.gather(theta.size, file_shelf(theta.size))
    for (name, age), its in zip(ages.items(), said, strict=True):
        delta = decompress(its.update, theta.size)
        gathering.add(Update(device=name, delta=delta, examples=1, behind=age))
    return strategy.advance(Server(theta=theta), gathering.result()).theta.astype("<f4").tobytes()


def assert_noise(cohort: Cohort, task: str) -> None:
    """What went over the wire is, byte by byte, what random numbers look like."""
    mine = {attempt for (of, _), attempt in cohort.attempts().items() if of == task}
    sent = [found for (attempt, _), found in cohort.contributions().items() if attempt in mine]
    assert len(sent) >= 2 * DEVICES
    for [one, *_] in sent:
        counts = np.bincount(np.frombuffer(one.update, np.uint8), minlength=256)
        expected = len(one.update) / 256
        assert abs(((counts - expected) ** 2).sum() / expected - 255) / np.sqrt(510) < 5
        assert (one.examples, one.loss) == (0, 0.0)


def as_pixels(rows: Rows) -> Rows:
    """As the camera has them: 0 to 16."""
    return Rows(rows.x * 16, rows.y)


def write_table(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*FEATURES, "digit"])
        out.writerows([*map(int, x), y] for x, y in zip(rows.x, rows.y, strict=True))
    return path
