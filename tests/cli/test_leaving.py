"""`shoal model undeploy`: which devices, the question before, and what is said."""

import re
import threading
from pathlib import Path

from sqlalchemy import update

import tensor_releases
from bench.controllers import add_devices
from cli.conftest import Cli
from shoal.controller.rollouts import undeployments
from shoal.controller.store import rollout_tables, tables

MODEL = tensor_releases.MODEL


def serve(shoal: Cli, *devices: str, removes: bool = True) -> str:
    """These devices serve a new release of the model."""
    ctx = shoal.controller.ctx
    ref = tensor_releases.released(ctx)
    add_devices(ctx, list(devices))
    facts = {"removes": True} if removes else {}
    mine = tables.device.c.name.in_(devices)
    with ctx.store.write() as db:
        db.execute(update(tables.device).where(mine).values(releases={MODEL: ref}, facts=facts))
    return ref


def test_undeploying_asks_first_and_says_where_to_look(shoal: Cli) -> None:
    serve(shoal, "u-1")
    serve(shoal, "u-2", removes=False)
    refused = shoal("model", "undeploy", MODEL, "--device", "u-1", given="n\n")
    assert refused.exit_code != 0
    assert "Remove counts from u-1?" in refused.stderr
    assert shoal.json("model", "undeployments", MODEL) == []
    done = shoal("model", "undeploy", MODEL, "--device", "u-1", "--device", "u-2", "--yes")
    assert done.exit_code == 0, done.output
    [one] = shoal.json("model", "undeployments", MODEL)
    assert f"shoal model undeployment {one['id']}" in done.stdout
    undeployments.step_all(shoal.controller.ctx)
    undeployments.step_all(shoal.controller.ctx)
    shown = shoal("model", "undeployment", one["id"])
    assert "0 of 2 devices have removed it, 1 waiting, 1 cannot" in shown.stdout
    assert "update the agent" in shown.stdout
    members = shoal.json("model", "undeployment", one["id"])["members"]
    assert {m["device"]: m["state"] for m in members} == {"u-1": "ORDERED", "u-2": "CANNOT"}
    after = shoal.json("model", "undeployment", one["id"], "--cancel", "--yes")
    assert after["state"] == "CANCELED"


def test_waiting_for_devices_that_cannot_ends_with_the_reason(shoal: Cli) -> None:
    serve(shoal, "w-1", removes=False)
    stop = threading.Event()

    def engine() -> None:
        while not stop.wait(0.05):
            undeployments.step_all(shoal.controller.ctx)

    thread = threading.Thread(target=engine)
    thread.start()
    try:
        ended = shoal("model", "undeploy", MODEL, "--device", "w-1", "--yes", "--wait")
    finally:
        stop.set()
        thread.join()
    assert ended.exit_code != 0
    assert "0 of 1 devices have removed it, 0 waiting, 1 cannot" in ended.stderr


def test_without_a_choice_of_devices_nothing_is_done(shoal: Cli) -> None:
    for more in ((), ("--all", "--site", "north")):
        result = shoal("model", "undeploy", MODEL, *more, "--yes")
        assert result.exit_code == 2
        assert "--all" in result.stderr


def test_a_retired_release_says_how_to_take_it_back(shoal: Cli) -> None:
    ref = serve(shoal, "r-1")
    retired = shoal("release", "retire", ref, "--reason", "old")
    assert f"shoal release unretire {ref}" in retired.stdout

    def names(*more: str) -> set[str]:
        found = shoal.json("release", "list", "--model", MODEL, *more)
        return {f"{one['model']}@{one['version']}" for one in found}

    assert ref in names("--all") - names()
    assert "by admin" in shoal("release", "show", ref).stdout
    refused = shoal("rollout", "start", ref, "--stage", "all")
    assert f"take it back: shoal release unretire {ref}" in refused.stderr
    assert shoal("release", "unretire", ref).exit_code == 0
    assert ref in names()


def test_a_revoked_release_says_what_became_of_it(shoal: Cli) -> None:
    ref = serve(shoal, "v-1")
    asked = shoal("release", "revoke", ref, "--reason", "it leaks")
    assert "--yes" in asked.stderr
    done = shoal("release", "revoke", ref, "--reason", "it leaks", "--yes")
    step = re.search(r"shoal rollout start (\S+)|shoal model undeploy (\S+)", done.stdout)
    assert step is not None
    assert f"{MODEL}@" in (step[1] or "") or step[2] == MODEL
    again = shoal.json("release", "revoke", ref, "--reason", "it leaks", "--yes")
    assert again["serving"] == 1
    assert "revoked by admin: it leaks" in " ".join(shoal("release", "show", ref).stdout.split())
    refused = shoal("rollout", "start", ref, "--stage", "all")
    assert f"publish another release of {MODEL}" in refused.stderr


def test_a_retired_model_is_listed_with_all(shoal: Cli) -> None:
    serve(shoal, "r-2")
    assert "shoal model unretire counts" in shoal("model", "retire", MODEL).stdout

    def names(*more: str) -> set[str]:
        return {one["name"] for one in shoal.json("model", "list", *more)}

    assert MODEL in names("--all") - names()
    assert "by admin" in shoal("model", "show", MODEL).stdout
    assert shoal("model", "unretire", MODEL).exit_code == 0
    assert MODEL in names()


def test_a_release_on_a_device_is_not_deleted_and_the_printed_commands_work(shoal: Cli) -> None:
    ctx = shoal.controller.ctx
    ref = serve(shoal, "x-1")
    refused = shoal("release", "delete", ref, "--yes")
    step = f"shoal model undeploy {MODEL} --device x-1"
    assert refused.exit_code != 0
    assert step in refused.stderr
    assert shoal(*step.split()[1:], "--yes").exit_code == 0
    with ctx.store.write() as db:
        gone = update(tables.device).where(tables.device.c.name == "x-1")
        db.execute(gone.values(releases={}))
        db.execute(rollout_tables.assignment.delete())
    kept = shoal("release", "delete", ref, given="n\n")
    assert "It cannot be brought back" in kept.stderr
    assert shoal.json("release", "delete", ref, "--yes") == {"deleted": [f"release {ref}"]}
    assert shoal("release", "show", ref).exit_code != 0


def test_a_dataset_is_deleted_with_what_is_safe_on_request(shoal: Cli, parts: Path) -> None:
    add = ("dataset", "add", str(parts), "--label", "defect", "--site", "plant", "--name")
    first = shoal.json(*add, "old")
    assert first["version"] == 1
    assert shoal.json(*add, "young", "--parent", "old@1")["parents"] == ["old@1"]
    refused = shoal("dataset", "delete", "old@1", "--yes")
    assert "shoal dataset delete young@1" in refused.stderr
    gone = shoal.json("dataset", "delete", "old@1", "--with-dependents", "--yes")
    assert gone == {"deleted": ["dataset young@1", "dataset old@1"]}
    assert shoal.json(*add, "old")["version"] == 2


def test_a_model_is_deleted_with_its_releases(shoal: Cli) -> None:
    ref = serve(shoal, "y-1")
    with shoal.controller.ctx.store.write() as db:
        db.execute(update(tables.device).values(releases={}))
        db.execute(rollout_tables.assignment.delete())
    assert f"release {ref} is deleted" in shoal("model", "delete", MODEL, "--yes").stdout
    assert shoal("model", "show", MODEL).exit_code != 0
