"""Lineage by API and console: from data to devices, and back."""

from typing import Any

import pytest
from sqlalchemy import insert

from api.controller_app import ORIGIN, ControllerApp, is_problem
from shoal.controller.store.rollout_tables import rollout
from shoal.controller.store.tables import alert, dataset, device, model, operation, release

#: Releases beside those of the story.
OTHERS = 2_000


def op(ident: str, **params: Any) -> dict[str, Any]:
    return {
        "id": ident, "kind": "train", "state": "succeeded", "subject": "caps", "created_at": 5.0,
        "created_by": "ana", "params": params, "result": {},
    }  # fmt: skip


def made(name: str, version: int, data: str, by: str, **more: Any) -> dict[str, Any]:
    report = {"why_refused": more.pop("why_refused", "")}
    return {
        "model": name, "version": version, "state": "released", "dataset": data, "operation": by,
        "report": report, "manifest": b"{}", "references": b"{}", "trigger": "manual",
        "override": "", **more,
    }  # fmt: skip


@pytest.fixture
def story(controller: ControllerApp) -> ControllerApp:
    """parts@1 -> parts@2 -> op-1 -> caps@1 -> ro-1, alert 7 -> op-2 -> caps@2; op-3 by rounds."""
    data = {
        "sha256": "0" * 64, "size": 1, "rows": 100, "columns": [], "label": "ok", "sites": [],
        "created_at": 1.0,
    }  # fmt: skip
    others = [op(f"op-x{i}", dataset=f"other@{i % 9 + 1}") for i in range(OTHERS)]
    devices = [
        {"name": f"cam-{i}", "site": "north", "labels": {}, "variants": {}, "facts": {},
         "releases": {"caps": f"caps@{1 + i % 2}"}, "state": "active"} for i in range(5)
    ]  # fmt: skip
    with controller.ctx.store.write() as db:
        rows = [
            {"name": "parts", "version": 1, "parents": [], "how": "", **data},
            {"name": "parts", "version": 2, "parents": ["parts@1"], "how": "cleaned", **data},
            {"name": "parts", "version": 3, "parents": ["parts@2"], "how": "added", **data},
        ]
        db.execute(insert(dataset), rows)
        db.execute(
            insert(model),
            [{"name": n, "created_at": 1.0, "dataset": ""} for n in ("caps", "other")],
        )
        db.execute(
            insert(operation),
            [
                op("op-1", dataset="parts@2"),
                op("op-2", dataset="parts@3", trigger="alert:7"),
                op("op-3", dataset="parts@2", origin={"release": "caps@1"})
                | {"kind": "checkpoint"},
                *others,
            ],
        )
        others_made = [
            made("other", i + 1, f"other@{i % 9 + 1}", f"op-x{i}") for i in range(OTHERS)
        ]
        db.execute(
            insert(release),
            [
                made("caps", 1, "parts@2", "op-1"),
                made(
                    "caps",
                    2,
                    "parts@3",
                    "op-2",
                    trigger="alert:7",
                    why_refused="worse",
                    state="refused",
                ),
                made("caps", 3, "parts@2", "op-3"),
                *others_made,
            ],
        )
        facts = {"model": "caps", "plan": {}, "stages": [], "state": "FINISHED"}
        db.execute(insert(rollout).values(id="ro-1", release="caps@1", **facts))
        db.execute(
            insert(alert).values(
                id=7, key="k", kind="drift", state="closed", title="Drift at north", model="caps",
                release="caps@1", features=[],
            )
        )  # fmt: skip
        db.execute(insert(device), devices)
    return controller


def names(found: Any, side: str) -> list[str]:
    return [f"{t['kind']}:{t['name']}" for t in found["things"] if t["side"] == side]


def test_a_device_leads_to_the_rows_that_trained_what_it_serves(story: ControllerApp) -> None:
    found = story.get("/api/v1/lineage?thing=device:cam-1", "viewer").json
    up = names(found, "up")
    assert up[0] == "release:caps@2"
    assert {"run:op-2", "dataset:parts@3", "alert:7", "dataset:parts@1"} <= {*up}
    assert "run:op-1" in up, "the release that drifted has made this one"
    assert names(found, "down") == []


def test_data_leads_to_releases_rollouts_devices_alerts_and_retrained_releases(
    story: ControllerApp,
) -> None:
    found = story.get("/api/v1/lineage?thing=parts@2").json
    assert found["thing"] == "dataset:parts@2"
    assert names(found, "up") == ["dataset:parts@1"]
    assert {*names(found, "down")} == {
        "run:op-1", "run:op-2", "run:op-3", "dataset:parts@3", "release:caps@1", "release:caps@2",
        "release:caps@3", "rollout:ro-1", "alert:7",
    }  # fmt: skip
    assert found["devices"] == {"caps@1": 3, "caps@2": 2}
    why = {(one["source"], one["to"]): one["why"] for one in found["links"]}
    assert why["alert:7", "run:op-2"] == "retrained"
    assert why["release:caps@1", "run:op-3"] == "federated rounds"
    assert why["dataset:parts@2", "dataset:parts@3"] == "added"
    [refused] = [t for t in found["things"] if t["name"] == "caps@2"]
    assert "worse" in refused["detail"]


def test_a_thing_is_named_or_the_answer_says_how(story: ControllerApp) -> None:
    for thing in ("caps@1", "op-1", "ro-1", "cam-0", "7", "alert:7", "release:caps@1"):
        assert story.get(f"/api/v1/lineage?thing={thing}").status_code == 200, thing
    for thing in ("caps@9", "dataset:caps@1", "alert:x", "alert:99", "cam-99", "release:caps", "@"):
        assert is_problem(story.get(f"/api/v1/lineage?thing={thing}"), 404, "not-found"), thing
    assert is_problem(story.get("/api/v1/lineage?thing=model:caps"), 422)
    with story.ctx.store.write() as db:
        db.execute(dataset.delete().where(dataset.c.version == 1))
    [gone] = [t for t in story.get("/api/v1/lineage?thing=parts@2").json["things"] if t["gone"]]
    assert gone["name"] == "parts@1"


def test_more_than_a_page_can_show_is_said(story: ControllerApp) -> None:
    with story.ctx.store.write() as db:
        db.execute(release.update().where(release.c.model == "other").values(dataset="parts@1"))
    found = story.get("/api/v1/lineage?thing=dataset:parts@1").json
    assert found["truncated"]
    assert len(found["things"]) <= 302


def test_the_console_shows_it_both_ways(story: ControllerApp) -> None:
    story.sign_in()
    answer = story.client.get("/lineage?thing=caps@1", base_url=ORIGIN)
    text = answer.get_data(as_text=True)
    assert answer.status_code == 200, text
    for part in ("parts@1", "op-1", "ro-1", "Drift at north", "caps@2", "on 3 devices"):
        assert part in text
    assert story.client.get("/lineage", base_url=ORIGIN).status_code == 200
