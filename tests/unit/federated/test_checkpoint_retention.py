"""Checkpoints that nobody needs go, wherever that is cut; everything that is needed stays."""

import itertools
from pathlib import Path

import msgspec
import numpy as np
import pytest

from controllers import run
from recorded_rounds import DEVICES, LOST, UPDATED, add_round, add_task, prepared_of, trained, walk
from shoal.controller.federated.checkpoints import promotion, retention, round_quarantine
from shoal.controller.federated.records import Round, TaskPlan
from shoal.controller.federated.rounds import machine, rounds, rows
from shoal.controller.host.context import Context
from shoal.controller.host.settings import Rounds, Settings, load
from shoal.controller.releases import releases
from shoal.controller.releases.io.blobs import Blobs
from shoal.errors import ConflictError, SettingError
from shoal.params import F32

GOOD, KEPT, MADE = "lot-codes@1", 3, 8
_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A controller that keeps three checkpoints of a task."""
    made = trained(tmp_path_factory.mktemp("controller"))
    return made._replace(settings=Settings(rounds=Rounds(checkpoints=KEPT)))


@pytest.fixture
def thetas(ctx: Context) -> list[F32]:
    """Of rounds 1 to 8, of no other test's."""
    _, theta = prepared_of(ctx, releases.get_release(ctx, GOOD))
    return list(walk(theta, MADE + 1, seed=next(_NUMBERS)))


@pytest.fixture
def plan(ctx: Context, thetas: list[F32]) -> TaskPlan:
    """A task of the test's own, with eight rounds done."""
    prepared, _ = prepared_of(ctx, releases.get_release(ctx, GOOD))
    plan = add_task(ctx, f"walk-{next(_NUMBERS)}", GOOD, prepared)
    for number, one in enumerate(thetas[:MADE], 1):
        add_round(ctx, plan, number, one)
    return plan


def made(ctx: Context, plan: TaskPlan) -> dict[int, Round]:
    return {one.number: one for one in rounds.list_rounds(ctx, task=plan.name) if one.checkpoint}


def left(ctx: Context, plan: TaskPlan) -> list[int]:
    """Rounds whose numbers can be read; those that say so are the same."""
    found = made(ctx, plan)
    there = sorted(n for n, one in found.items() if ctx.blobs.exists(one.checkpoint))
    assert there == sorted(n for n, one in found.items() if not one.pruned_at)
    return there


def test_the_newest_checkpoints_stay_and_the_others_are_marked_as_pruned(
    ctx: Context, plan: TaskPlan
) -> None:
    before = made(ctx, plan)

    assert retention.prune(ctx) == 5

    assert left(ctx, plan) == [6, 7, 8]
    after = made(ctx, plan)
    assert after[1].pruned_at == ctx.clock()
    assert after == {
        n: msgspec.structs.replace(one, pruned_at=after[n].pruned_at) for n, one in before.items()
    }
    assert rounds.checkpoint(ctx, plan.name).lineage == list(range(1, MADE + 1))
    assert len(rounds.participations(ctx, f"{plan.name}.1")) == len(DEVICES)
    assert retention.prune(ctx) == 0


def test_a_pruned_checkpoint_is_neither_released_nor_evaluated_and_the_error_names_the_reason(
    ctx: Context, plan: TaskPlan
) -> None:
    retention.prune(ctx)
    for asked in (promotion.release, rounds.evaluate):
        with pytest.raises(ConflictError, match=rf"{plan.name}.2 is pruned") as refused:
            asked(ctx, actor="ana", task=plan.name, number=2)
        assert "checkpoints in controller.toml" in refused.value.hint
    assert rounds.checkpoint(ctx, plan.name, 0).theta


def test_what_a_release_was_made_of_stays_also_of_one_that_is_being_made_or_was_refused(
    ctx: Context, plan: TaskPlan
) -> None:
    run(ctx, promotion.release(ctx, actor="ana", task=plan.name, number=1))
    candidate = run(
        ctx,
        promotion.release(ctx, actor="ana", task=plan.name, number=2, trigger="rounds:2"),
    )
    assert releases.get_release(ctx, candidate.result["release"]).state == "candidate"
    waiting = promotion.release(ctx, actor="ana", task=plan.name, number=3)

    retention.prune(ctx)

    assert left(ctx, plan) == [1, 2, 3, 6, 7, 8]
    assert run(ctx, waiting).error == ""


def test_what_a_round_that_runs_began_with_stays_and_what_a_straggler_still_trains_on(
    ctx: Context, plan: TaskPlan, thetas: list[F32]
) -> None:
    marks = dict.fromkeys(DEVICES, UPDATED) | {"mill-2": LOST}
    late = {"mill-1": machine.Origin(number=4, attempt=(4).to_bytes(16))}
    add_round(ctx, plan, 9, thetas[8], parent=5, state=machine.State.TRAINING)
    add_round(ctx, plan, 10, thetas[8] + 1, marks=marks, late=20, still={"mill-1", "mill-2"},
              carried=late)  # fmt: skip

    retention.prune(ctx)

    assert left(ctx, plan) == [3, 5, 7, 8, 10], "4 began with 3, 9 with 5, 10 is the newest"


def test_the_newest_clean_ones_stay_beside_those_in_quarantine(
    ctx: Context, plan: TaskPlan, thetas: list[F32]
) -> None:
    round_quarantine.quarantine_round(
        ctx, actor="ana", task=plan.name, number=5, why="press-1 lied"
    )

    retention.prune(ctx)

    assert left(ctx, plan) == [2, 3, 4, 6, 7, 8]
    lifted = round_quarantine.lift(ctx, actor="root", task=plan.name, number=5, why="it did not")
    assert (lifted.parent, made(ctx, plan)[5].poisoned) == (8, "")


def test_a_quarantine_that_goes_back_further_goes_on_from_what_is_left(
    ctx: Context, plan: TaskPlan
) -> None:
    run(ctx, promotion.release(ctx, actor="ana", task=plan.name, number=2))
    retention.prune(ctx)

    after = round_quarantine.quarantine_round(
        ctx, actor="ana", task=plan.name, number=4, why="lies"
    )
    assert (after.parent, after.checkpoint) == (2, made(ctx, plan)[2].checkpoint)

    after = round_quarantine.quarantine_round(
        ctx, actor="ana", task=plan.name, number=2, why="lies"
    )
    assert after.prepared is not None
    assert (after.parent, after.checkpoint) == (0, after.prepared.theta)
    assert round_quarantine.lift(ctx, actor="root", task=plan.name, number=4, why="no").parent == 0
    assert round_quarantine.lift(ctx, actor="root", task=plan.name, number=2, why="no").parent == 8


def test_a_file_that_something_else_needs_stays(
    ctx: Context, plan: TaskPlan, thetas: list[F32]
) -> None:
    """The same numbers have the same name."""
    task = rounds.get_task(ctx, plan.name)
    assert task.prepared is not None
    other = add_task(ctx, f"{plan.name}-other", GOOD, task.prepared)
    add_round(ctx, other, 1, thetas[0])
    begun = made(ctx, plan)[2].checkpoint
    with ctx.store.write() as db:
        prepared = msgspec.to_builtins(task.prepared) | {"theta": begun}
        rows.set_task(db, ctx, other.name, prepared=prepared)

    retention.prune(ctx)

    found = made(ctx, plan)
    assert [n for n, one in found.items() if ctx.blobs.exists(one.checkpoint)] == [8, 7, 6, 2, 1]
    assert [n for n, one in found.items() if not one.pruned_at] == [8, 7, 6]
    assert np.array_equal(np.frombuffer(ctx.blobs.read(begun), "<f4"), thetas[1])


class Failing(Blobs):
    """The power fails at the given removal: before the file goes, or right after."""

    def __init__(self, folder: Path, at: int, after: bool) -> None:
        super().__init__(folder)
        self.at, self.after = at, after

    def remove(self, sha256: str) -> None:
        self.at -= 1
        if self.at < 0 and not self.after:
            raise SystemExit
        super().remove(sha256)
        if self.at < 0:
            raise SystemExit


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(5))
def test_wherever_the_power_fails_nothing_that_is_needed_is_lost_and_the_rest_goes_the_next_time(
    ctx: Context, plan: TaskPlan, at: int, after: bool
) -> None:
    cut = ctx._replace(blobs=Failing(ctx.blobs.folder, at, after))
    with pytest.raises(SystemExit):
        retention.prune(cut)
    found = made(ctx, plan)
    for number, one in found.items():
        assert one.pruned_at or ctx.blobs.exists(one.checkpoint), number
    with pytest.raises(ConflictError, match="is pruned"):
        rounds.checkpoint(ctx, plan.name, 1)

    assert retention.prune(ctx) == 5 - at - after
    assert left(ctx, plan) == [6, 7, 8]


def test_a_controller_that_keeps_all_prunes_none_and_keeps_what_is_pruned_pruned(
    ctx: Context, plan: TaskPlan, thetas: list[F32]
) -> None:
    everything = ctx._replace(settings=Settings(rounds=Rounds(checkpoints=0)))
    assert retention.prune(everything) == 0
    assert left(ctx, plan) == list(range(1, MADE + 1))


def test_a_number_of_checkpoints_below_none_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "controller.toml").write_text("[rounds]\ncheckpoints = -1\n")
    with pytest.raises(SettingError, match=r"rounds\.checkpoints"):
        load(tmp_path)
