"""Revoked releases: devices leave them, and no order, rollback or restart brings one back."""

from collections.abc import Iterator

import pytest

from fakes import memory_folder
from fleet import MODEL, Fleet
from shoal.controller.releases import releases
from shoal.controller.rollouts import groups, overrides, release_revocation, rollouts
from shoal.controller.rollouts.records import StagePlan
from shoal.controller.rollouts.release_revocation import Revocation
from shoal.controller.store import tables
from shoal.errors import ConflictError, InputError, SettingError

pytestmark = pytest.mark.scenario

ALL = [StagePlan(name="all", threshold_pct=50)]
ONE, TWO, THREE = (f"{MODEL}@{n}" for n in (1, 2, 3))


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Two devices that serve release 2, and served 1 before."""
    with memory_folder() as folder:
        made = Fleet(folder)
        for name in ("cam-1", "cam-2"):
            made.station(name)
        made.run(1)
        for _ in range(2):
            done(made, made.roll_out(made.release(), ALL).id)
        yield made
        made.ctx.store.close()


def done(fleet: Fleet, ident: str, state: str = "FINISHED") -> None:
    fleet.run(120, lambda: fleet.rollout(ident).state == state)


def revoke(fleet: Fleet, ref: str) -> Revocation:
    return release_revocation.revoke(fleet.ctx, actor="root", ref=ref, reason="it leaks")


def all_serve(fleet: Fleet, ref: str) -> bool:
    return set(fleet.serving().values()) == {ref}


def counters(fleet: Fleet) -> set[float]:
    """Floors of the model's counter, as the devices report them."""
    floors = [one.agent.updates.floors for one in fleet.stations.values() if one.agent]
    return {one.counters[MODEL] for one in floors}


def alerts(fleet: Fleet) -> list[str]:
    return [
        one.key
        for one in fleet.rows_of(tables.alert)
        if one.state != "closed" and one.key.startswith("revocation/")
    ]


def test_devices_leave_it_for_what_their_group_ran_before(fleet: Fleet) -> None:
    overrides.pin(fleet.ctx, actor="ana", device="cam-2", release=TWO)
    fleet.run(3)
    for reason in ("", "  ", "x" * 501):
        with pytest.raises(InputError, match="needs a reason"):
            release_revocation.revoke(fleet.ctx, actor="root", ref=TWO, reason=reason)
    made = revoke(fleet, TWO)
    assert (made.epoch, made.serving) == (2, 2)
    assert made.groups == [f"group fleet falls back to {ONE}"]
    assert alerts(fleet) == [f"revocation/{TWO}"]
    fleet.run(120, lambda: all_serve(fleet, ONE))
    assert counters(fleet) == {2}
    fleet.run(10, lambda: alerts(fleet) == [])
    assert groups.deviations(fleet.ctx)[0] == []
    found = releases.get_release(fleet.ctx, TWO)
    assert (found.quarantined, found.revoked_at > 0) == ("revoked by root: it leaks", True)
    for attempt in (
        lambda: fleet.roll_out(TWO, ALL),
        lambda: releases.publish(fleet.ctx, actor="ana", ref=TWO),
        lambda: overrides.pin(fleet.ctx, actor="ana", device="cam-2", release=TWO),
    ):
        with pytest.raises(ConflictError, match=f"{TWO} was revoked by root: it leaks") as refused:
            attempt()
        assert refused.value.hint == f"a revocation is for good: publish another release of {MODEL}"


def test_its_rollout_is_rolled_back_and_a_later_release_can_be_rolled_out(fleet: Fleet) -> None:
    """Release 4 was packed and signed before the revocation, in the epoch before."""
    three, _ = fleet.release(), fleet.release()
    ident = fleet.roll_out(three, ALL).id
    fleet.run(60, lambda: THREE in fleet.serving().values())
    assert revoke(fleet, THREE).rollouts == {ident: "ROLLING_BACK"}
    done(fleet, ident, "ROLLED_BACK")
    assert all_serve(fleet, TWO)
    again = fleet.roll_out(f"{MODEL}@4", ALL).id
    done(fleet, again)
    assert all_serve(fleet, f"{MODEL}@4")
    assert counters(fleet) == {2}
    revoke(fleet, ONE)
    fleet.run(30, lambda: counters(fleet) == {3})
    assert fleet.states(again) == {"cam-1": "SUCCEEDED", "cam-2": "SUCCEEDED"}, "nothing to update"


def test_a_rollback_to_it_is_refused_by_name(fleet: Fleet) -> None:
    ident = fleet.roll_out(fleet.release(), ALL).id
    rollouts.pause(fleet.ctx, actor="ana", id=ident)
    fleet.run(60, lambda: set(fleet.states(ident).values()) == {"SUCCEEDED"})
    revoke(fleet, TWO)
    rollouts.abort(fleet.ctx, actor="ana", id=ident, rollback=True)
    done(fleet, ident, "ROLLED_BACK")
    said = {one.detail for one in rollouts.rollout_devices(fleet.ctx, ident)[0]}
    assert len(said) == 1
    assert f"{TWO}, which it had before, is in quarantine (revoked by root: it leaks)" in said.pop()
    fleet.run(120, lambda: all_serve(fleet, ONE))


def test_without_another_release_the_next_step_is_to_take_the_model_off(fleet: Fleet) -> None:
    revoke(fleet, ONE)
    made = revoke(fleet, TWO)
    assert (made.epoch, made.groups) == (3, ["group fleet falls back to no release of lot-codes"])
    assert f"shoal model undeploy {MODEL}" in made.next_step
    fleet.run(30)
    assert all_serve(fleet, TWO), "nothing else could serve"
    assert alerts(fleet) == [f"revocation/{TWO}"]


def test_one_that_was_broken_off_is_completed_by_the_engine(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> int:
        raise SettingError("key release-parts is not here", "bring it")

    with monkeypatch.context() as patch:
        patch.setattr(type(fleet.ctx.signer), "revoke_target", missing)
        with pytest.raises(SettingError):
            revoke(fleet, TWO)
        fleet.run(60, lambda: all_serve(fleet, ONE))
        assert counters(fleet) == {1}
    fleet.run(90, lambda: counters(fleet) == {2})
    assert revoke(fleet, TWO).epoch == 2, "a repeat changes nothing"
