"""Retired models and releases: kept, served where they are, and rolled out nowhere any more."""

from collections.abc import Iterator

import pytest

from fakes import memory_folder
from fleet import MODEL, Fleet
from shoal.controller.access import audit
from shoal.controller.releases import models, quarantine, releases, retirement
from shoal.controller.rollouts import rollouts
from shoal.controller.rollouts.records import StagePlan
from shoal.errors import AbsentError, ConflictError

pytestmark = pytest.mark.scenario

ALL = [StagePlan(name="all")]
ONE = f"{MODEL}@1"


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A device that serves release 1."""
    with memory_folder() as folder:
        made = Fleet(folder)
        made.station("cam-1")
        made.run(1)
        ident = made.roll_out(made.release(), ALL).id
        made.run(60, lambda: made.rollout(ident).state == "FINISHED")
        yield made
        made.ctx.store.close()


def retire(fleet: Fleet, ref: str = ONE) -> None:
    retirement.retire_release(fleet.ctx, actor="ana", ref=ref, reason="wrong labels")


def test_a_retired_release_is_rolled_out_nowhere_until_it_is_taken_back(fleet: Fleet) -> None:
    retire(fleet)
    with pytest.raises(ConflictError) as refused:
        fleet.roll_out(ONE, ALL)
    assert refused.value.hint == f"take it back: shoal release unretire {ONE}"
    retirement.unretire_release(fleet.ctx, actor="ana", ref=ONE)
    assert fleet.roll_out(ONE, ALL).state == "RUNNING"


def test_an_unsigned_release_that_is_retired_cannot_be_signed(fleet: Fleet) -> None:
    two = fleet.release(sign="")
    retire(fleet, two)
    for sign in (
        lambda: releases.publish(fleet.ctx, actor="ana", ref=two),
        lambda: releases.sign_candidate(fleet.ctx, two),
    ):
        with pytest.raises(ConflictError, match="is retired"):
            sign()


def test_devices_that_serve_it_go_on_and_their_orders_are_renewed(fleet: Fleet) -> None:
    retire(fleet)
    fleet.stations["cam-1"].crash()
    fleet.stations["cam-1"].start()
    fleet.run(4 * 86_400, step=7_200)
    assert fleet.serving() == {"cam-1": ONE}


def test_it_is_left_out_of_lists_of_what_is_newest_and_of_ways_back(fleet: Fleet) -> None:
    two = fleet.release()
    retire(fleet)
    assert [r.ref for r in releases.list_releases(fleet.ctx, retired=False)] == [two]
    assert [r.ref for r in releases.list_releases(fleet.ctx)] == [two, ONE]
    assert releases.get_release(fleet.ctx, ONE).retired_by == "ana"
    with fleet.ctx.store.read() as db:
        assert quarantine.way_back(db, two) == ""
    retire(fleet, two)
    assert releases.latest_of(fleet.ctx, MODEL) == ""
    assert models.get_model(fleet.ctx, MODEL).released == ""


def test_going_back_to_a_retired_release_is_still_possible(fleet: Fleet) -> None:
    """It is what the devices served; nothing new gets it."""
    two = fleet.roll_out(fleet.release(), ALL).id
    fleet.run(60, lambda: fleet.serving() == {"cam-1": f"{MODEL}@2"})
    rollouts.pause(fleet.ctx, actor="ana", id=two)
    retire(fleet)
    rollouts.abort(fleet.ctx, actor="ana", id=two, rollback=True)
    fleet.run(60, lambda: fleet.serving() == {"cam-1": ONE})


def test_while_it_is_rolled_out_it_cannot_be_retired_and_the_error_says_how(fleet: Fleet) -> None:
    two = fleet.roll_out(fleet.release(), ALL).id
    rollouts.pause(fleet.ctx, actor="ana", id=two)
    for attempt in (
        lambda: retire(fleet, f"{MODEL}@2"),
        lambda: retirement.retire_model(fleet.ctx, actor="ana", name=MODEL),
    ):
        with pytest.raises(ConflictError) as refused:
            attempt()
        assert refused.value.hint == f"end it first: shoal rollout abort {two}"
    retire(fleet)


def test_a_retired_model_retires_all_of_its_releases_and_takes_no_new_one(fleet: Fleet) -> None:
    ctx = fleet.ctx
    retirement.retire_model(ctx, actor="ana", name=MODEL, reason="the line is gone")
    assert releases.get_release(ctx, ONE).retired_at > 0
    assert models.list_models(ctx, retired=False) == []
    assert [m.name for m in models.list_models(ctx)] == [MODEL]
    with pytest.raises(ConflictError, match=f"model {MODEL} is retired"):
        fleet.roll_out(ONE, ALL)
    with pytest.raises(ConflictError, match="shoal model unretire"), ctx.store.write() as db:
        models.ensure_model(db, ctx, actor="ana", name=MODEL)
    with pytest.raises(ConflictError, match="shoal model unretire"):
        retirement.unretire_release(ctx, actor="ana", ref=ONE)
    retirement.unretire_model(ctx, actor="ana", name=MODEL)
    assert releases.get_release(ctx, ONE).retired_at == 0


def test_both_are_in_the_audit_log_once(fleet: Fleet) -> None:
    for _ in range(2):
        retire(fleet)
    for _ in range(2):
        retirement.unretire_release(fleet.ctx, actor="ana", ref=ONE)
    log = [(e.verb, e.detail) for e in audit.list_audit(fleet.ctx)[0][:2]]
    assert log == [
        ("release.unretire", {}),
        ("release.retire", {"reason": "wrong labels"}),
    ]


def test_what_does_not_exist_cannot_be_retired(fleet: Fleet) -> None:
    with pytest.raises(AbsentError):
        retire(fleet, f"{MODEL}@9")
    with pytest.raises(AbsentError):
        retirement.retire_model(fleet.ctx, actor="ana", name="other")
