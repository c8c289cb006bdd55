"""Deletion: refused while something depends on it, complete once nothing does."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update

from fakes import memory_folder
from fleet import MODEL, Fleet
from shoal.controller.access import audit
from shoal.controller.data import datasets
from shoal.controller.deletion import deletion, unused_files
from shoal.controller.deletion.dependents import DATASET, RELEASE, Item
from shoal.controller.deletion.dependents import MODEL as WHOLE
from shoal.controller.operations import operations
from shoal.controller.releases import models, releases
from shoal.controller.rollouts import rollouts, undeployments
from shoal.controller.rollouts.records import StagePlan
from shoal.controller.store import tables
from shoal.errors import AbsentError, ConflictError, SettingError

pytestmark = pytest.mark.scenario

ALL = [StagePlan(name="all")]
ONE, TWO = f"{MODEL}@1", f"{MODEL}@2"


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Two devices that were given release 1, and then release 2."""
    with memory_folder() as folder:
        made = Fleet(folder)
        made.station("cam-1")
        made.station("cam-2")
        made.run(1)
        for _ in range(2):
            ident = made.roll_out(made.release(), ALL).id
            made.run(60, lambda i=ident: made.rollout(i).state == "FINISHED")
        yield made
        made.ctx.store.close()


def delete(fleet: Fleet, ref: str, **more: Any) -> list[str]:
    return deletion.delete_release(fleet.ctx, actor="ana", ref=ref, **more).deleted


def refusal(work: Any) -> ConflictError:
    with pytest.raises(ConflictError) as refused:
        work()
    return refused.value


def undeploy(fleet: Fleet) -> None:
    ident = undeployments.start(fleet.ctx, actor="ana", model=MODEL, all=True).id
    done = undeployments.get_undeployment
    fleet.run(30, lambda: done(fleet.ctx, ident).state == "FINISHED")


def listed_targets(fleet: Fleet) -> set[str]:
    """Targets of the newest signed metadata of the model."""
    folder = fleet.ctx.signer.metadata_folder
    found = set()
    for role in ("release", "candidate"):
        files = folder.glob(f"*.{role}-{MODEL}.json")
        newest = max(files, key=lambda path: int(path.name.partition(".")[0]))
        found |= {*json.loads(newest.read_bytes())["signed"]["targets"]}
    return found


def test_a_release_that_no_device_has_is_deleted_and_no_device_can_be_sent_it(
    fleet: Fleet,
) -> None:
    assert delete(fleet, ONE) == [f"release {ONE}"]
    with pytest.raises(AbsentError):
        releases.get_release(fleet.ctx, ONE)
    assert listed_targets(fleet) == {f"release/{MODEL}/2/manifest.json"}
    with pytest.raises(AbsentError):
        fleet.roll_out(ONE, ALL)
    fleet.run(60)
    assert {*fleet.serving().values()} == {TWO}


def test_a_release_on_devices_is_never_deleted_and_the_error_says_what_to_do(fleet: Fleet) -> None:
    for more in ({}, {"with_dependents": True}):
        error = refusal(lambda more=more: delete(fleet, TWO, **more))
        assert error.message == (
            f"release {TWO} is still needed: 2 devices serve it or are ordered it (cam-1, cam-2)"
        )
        assert error.hint == f"next: shoal model undeploy {MODEL} --device cam-1 --device cam-2"
        assert error.facts["dependents"][0]["kind"] == "devices"
    undeploy(fleet)
    assert delete(fleet, TWO) == [f"release {TWO}"]


def test_many_devices_are_counted_and_are_to_be_given_another_release(fleet: Fleet) -> None:
    common = {"state": "enrolled", "labels": {}, "variants": {}, "facts": {}}
    rows = [{"name": f"d-{i:02}", "releases": {MODEL: TWO}, **common} for i in range(10)]
    with fleet.ctx.store.write() as db:
        db.execute(insert(tables.device), rows)
    error = refusal(lambda: delete(fleet, TWO))
    assert "12 devices serve it" in error.message
    assert "and 2 more" in error.message
    assert error.hint == f"next: shoal rollout start {ONE}"
    error = refusal(lambda: deletion.delete_model(fleet.ctx, actor="ana", name=MODEL))
    assert error.hint == f"next: shoal model undeploy {MODEL} --all"


def test_a_device_that_is_only_ordered_it_counts_too(fleet: Fleet) -> None:
    with fleet.ctx.store.write() as db:
        db.execute(update(tables.device).values(releases={}))
    assert "cam-1, cam-2" in refusal(lambda: delete(fleet, TWO)).message


def test_a_decommissioned_device_does_not_count(fleet: Fleet) -> None:
    with fleet.ctx.store.write() as db:
        db.execute(update(tables.device).values(state="decommissioned"))
    assert delete(fleet, TWO) == [f"release {TWO}"]


def test_an_unfinished_rollout_needs_its_release_and_those_it_may_go_back_to(fleet: Fleet) -> None:
    three = fleet.roll_out(fleet.release(), ALL).id
    fleet.run(60, lambda: {*fleet.serving().values()} == {f"{MODEL}@3"})
    rollouts.pause(fleet.ctx, actor="ana", id=three)
    for ref in (f"{MODEL}@3", TWO):
        error = refusal(lambda ref=ref: delete(fleet, ref))
        assert f"next: shoal rollout abort {three}" in error.hint
    assert "may put devices back to it" in refusal(lambda: delete(fleet, TWO)).message
    assert delete(fleet, ONE)


def test_its_number_is_never_used_again_not_even_by_a_model_of_the_same_name(
    fleet: Fleet,
) -> None:
    three = fleet.release()
    delete(fleet, three)
    assert fleet.release() == f"{MODEL}@4"
    undeploy(fleet)
    deletion.delete_model(fleet.ctx, actor="ana", name=MODEL)
    assert fleet.release() == f"{MODEL}@5"


def test_a_federated_task_keeps_the_release_it_began_with(fleet: Fleet) -> None:
    with fleet.ctx.store.write() as db:
        task = {"name": "walk", "model": MODEL, "release": ONE, "state": "stopped", "plan": {}}
        db.execute(insert(tables.federated_task).values(**task, prepared={}, spent={}))
    error = refusal(lambda: delete(fleet, ONE, with_dependents=True))
    assert "federated task walk" in error.message
    assert error.hint == f"next: shoal release retire {ONE}"


def test_a_release_trained_from_it_in_rounds_goes_with_it_only_on_request(fleet: Fleet) -> None:
    three = fleet.release()
    origin = {"task": "gone", "release": ONE, "rounds": [1], "number": 1}
    with fleet.ctx.store.write() as db:
        mine = tables.release.c.version == 3
        row = next(row for row in db.execute(tables.release.select().where(mine)))
        changed = update(tables.release).where(mine).values(report=row.report | {"origin": origin})
        db.execute(changed)
    error = refusal(lambda: delete(fleet, ONE))
    assert error.hint == f"next: shoal release delete {three}"
    assert delete(fleet, ONE, with_dependents=True) == [f"release {three}", f"release {ONE}"]


def test_a_waiting_operation_that_begins_with_it_blocks_it(fleet: Fleet) -> None:
    params = {"origin": {"release": ONE}, "dataset": "plates@1"}
    one = operations.enqueue(
        fleet.ctx, actor="ana", kind="checkpoint", subject=MODEL, params=params
    )
    assert refusal(lambda: delete(fleet, ONE)).hint == f"next: shoal operation cancel {one.id}"
    operations.cancel(fleet.ctx, actor="ana", ident=one.id)
    assert delete(fleet, ONE)


def test_a_whole_model_goes_with_its_releases_and_policy_once_no_device_has_it(
    fleet: Fleet,
) -> None:
    error = refusal(lambda: deletion.delete_model(fleet.ctx, actor="ana", name=MODEL))
    assert "cam-1, cam-2" in error.message
    assert models.get_model(fleet.ctx, MODEL).retired_at == 0, "nothing was done"
    undeploy(fleet)
    gone = deletion.delete_model(fleet.ctx, actor="ana", name=MODEL).deleted
    assert gone == [f"release {ONE}", f"release {TWO}", f"model {MODEL}"]
    with pytest.raises(AbsentError):
        models.get_model(fleet.ctx, MODEL)
    assert listed_targets(fleet) == set()
    fleet.run(30)
    new = fleet.roll_out(fleet.release(), ALL).id
    fleet.run(60, lambda: fleet.rollout(new).state == "FINISHED")


def test_the_audit_log_stays(fleet: Fleet) -> None:
    delete(fleet, ONE)
    entry = audit.list_audit(fleet.ctx)[0][0]
    assert (entry.verb, entry.subject, entry.actor) == ("release.delete", ONE, "ana")
    assert audit.verify(fleet.ctx) > 0


@pytest.mark.parametrize("at", ["remove_target", "leave"])
def test_a_deletion_that_is_interrupted_is_finished_by_the_engine(
    fleet: Fleet, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(fleet.ctx.signer if at == "remove_target" else unused_files, at, die)
        with pytest.raises(Killed):
            delete(fleet, ONE)
    assert releases.get_release(fleet.ctx, ONE).state == "deleting"
    with pytest.raises(ConflictError):
        fleet.roll_out(ONE, ALL)
    with pytest.raises(ConflictError, match="being deleted"):
        releases.publish(fleet.ctx, actor="ana", ref=ONE)
    fleet.run(40)
    with pytest.raises(AbsentError):
        releases.get_release(fleet.ctx, ONE)
    assert listed_targets(fleet) == {f"release/{MODEL}/2/manifest.json"}


def files_of(fleet: Fleet, ref: str) -> dict[str, str]:
    """Name -> SHA-256 of a release's files."""
    manifest, _ = releases.manifest_of(fleet.ctx, ref)
    return {file.name: file.sha256 for file in manifest.files()}


def free_all(fleet: Fleet) -> None:
    fleet.clock.now += 2 * unused_files.PATIENCE_S
    while unused_files.free(fleet.ctx):
        pass


def test_its_files_are_freed_unless_another_release_has_them_too(fleet: Fleet) -> None:
    one, two = files_of(fleet, ONE), files_of(fleet, TWO)
    assert one["reference.json"] == two["reference.json"]
    deltas = fleet.ctx.folder / "deltas"
    deltas.mkdir(exist_ok=True)
    (deltas / f"{one['fp32.onnx']}-{two['fp32.onnx']}").write_bytes(b"delta")
    (deltas / f"{two['fp32.onnx']}-{'0' * 64}").write_bytes(b"other")
    delete(fleet, ONE)
    unused_files.free(fleet.ctx)
    assert fleet.ctx.blobs.exists(one["fp32.onnx"]), "not at once"
    free_all(fleet)
    assert not fleet.ctx.blobs.exists(one["fp32.onnx"])
    assert all(fleet.ctx.blobs.exists(sha256) for sha256 in two.values())
    assert [path.name[:64] for path in deltas.iterdir()] == [two["fp32.onnx"]]
    assert fleet.rows_of(tables.unused_file) == []


def test_a_script_stays_while_another_release_was_trained_by_it(fleet: Fleet) -> None:
    script = fleet.ctx.blobs.put_bytes(b"print('fit')").sha256
    for version in (1, 2):
        made_by = operations.enqueue(
            fleet.ctx, actor="ana", kind="train", subject=MODEL, params={"script": script}
        )
        operations.finish(fleet.ctx, made_by.id)
        with fleet.ctx.store.write() as db:
            of = (tables.release.c.model == MODEL) & (tables.release.c.version == version)
            db.execute(update(tables.release).where(of).values(operation=made_by.id))
    delete(fleet, ONE)
    free_all(fleet)
    assert fleet.ctx.blobs.exists(script), "retraining runs it again"


def test_a_file_that_was_stored_again_or_may_be_needed_by_an_operation_stays(fleet: Fleet) -> None:
    file = files_of(fleet, ONE)["fp32.onnx"]
    delete(fleet, ONE)
    waiting = operations.enqueue(fleet.ctx, actor="ana", kind="x", subject=MODEL, params={})
    free_all(fleet)
    assert fleet.ctx.blobs.exists(file)
    operations.cancel(fleet.ctx, actor="ana", ident=waiting.id)
    os.utime(fleet.ctx.blobs.path(file), (1.0, 1.0))
    free_all(fleet)
    assert fleet.ctx.blobs.exists(file)


# --- datasets -----------------------------------------------------------------------------------


def add(fleet: Fleet, tmp_path: Path, rows: int, name: str = "plates", **more: Any) -> str:
    path = tmp_path / f"{rows}.csv"
    path.write_text("x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(rows)))
    return datasets.add_dataset(
        fleet.ctx, actor="ana", path=path, filename=path.name, name=name, label="y", **more
    ).ref


def drop(fleet: Fleet, ref: str, **more: Any) -> list[str]:
    return deletion.delete_dataset(fleet.ctx, actor="ana", ref=ref, **more).deleted


def test_a_dataset_is_kept_while_releases_datasets_or_policies_depend_on_it(
    fleet: Fleet, tmp_path: Path
) -> None:
    ref = add(fleet, tmp_path, 30)
    child = add(fleet, tmp_path, 20, "small", parents=[ref])
    models.set_policy(fleet.ctx, actor="ana", model=MODEL, retrain_on_drift=True, dataset="plates")
    found = deletion.list_dependents(fleet.ctx, Item(DATASET, ref))
    assert {(one.kind, one.name) for one in found} == {
        ("release", ONE), ("release", TWO), ("dataset", child), ("policy", MODEL),
    }  # fmt: skip
    assert f"shoal dataset delete {child}" in refusal(lambda: drop(fleet, ref)).hint
    error = refusal(lambda: drop(fleet, ref, with_dependents=True))
    assert "release lot-codes@2: 2 devices serve it" in error.message
    undeploy(fleet)
    gone = drop(fleet, ref, with_dependents=True)
    assert gone[-1] == f"dataset {ref}"
    assert {*gone} == {
        f"dataset {ref}", f"dataset {child}", f"release {ONE}", f"release {TWO}",
        f"policy {MODEL}",
    }  # fmt: skip
    assert not models.get_model(fleet.ctx, MODEL).retrain_on_drift


def test_a_dataset_that_nothing_needs_goes_with_its_file_and_its_number_stays_used(
    fleet: Fleet, tmp_path: Path
) -> None:
    ref = add(fleet, tmp_path, 30, "spare")
    sha256 = datasets.get_dataset(fleet.ctx, ref).sha256
    assert drop(fleet, ref) == [f"dataset {ref}"]
    free_all(fleet)
    assert not fleet.ctx.blobs.exists(sha256)
    assert add(fleet, tmp_path, 30, "spare") == "spare@2"


def test_what_does_not_exist_or_is_not_named_exactly_is_not_deleted(
    fleet: Fleet, tmp_path: Path
) -> None:
    add(fleet, tmp_path, 30, "spare")
    with pytest.raises(SettingError):
        drop(fleet, "spare")
    for work in (
        lambda: drop(fleet, "spare@9"),
        lambda: delete(fleet, f"{MODEL}@9"),
        lambda: deletion.delete_model(fleet.ctx, actor="ana", name="other"),
        lambda: deletion.list_dependents(fleet.ctx, Item(RELEASE, f"{MODEL}@9")),
        lambda: deletion.list_dependents(fleet.ctx, Item(WHOLE, "other")),
    ):
        with pytest.raises(AbsentError):
            work()
