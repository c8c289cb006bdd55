"""Baselines by API and console: ten thousand devices, and what the engine makes of it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from sqlalchemy import Connection, func, select

from api.controller_app import ORIGIN, ControllerApp, is_problem
from shoal.controller.monitoring import apply_baseline_changes, drift_monitor
from shoal.controller.store.drift_tables import baseline_change
from watched_models import watched

CHANGES = "/api/v1/drift/baselines/changes"


def page(controller: ControllerApp, path: str) -> str:
    answer = controller.client.get(path, base_url=ORIGIN)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    return str(answer.get_data(as_text=True))


def test_ten_thousand_devices_are_listed_in_pages_and_frozen_without_holding_the_write_lock(
    controller: ControllerApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = watched(controller.ctx, 10_000)
    first = controller.get(f"/api/v1/drift/baselines?model={model}&limit=500")
    assert first.json["page"]["total"] == 10_010
    began = time.process_time()
    cursor = first.json["page"]["next"]
    after = controller.get(f"/api/v1/drift/baselines?model={model}&cursor={cursor}").json
    assert time.process_time() - began < 0.5
    assert len(after["items"]) == 50
    found = controller.get(f"/api/v1/drift/baselines?model={model}&site=s3&scope=site").json
    assert [one["subject"] for one in found["items"]] == ["s3"]

    body = {"action": "freeze", "model": model, "whole_model": True}
    asked = controller.post(CHANGES, json=body)
    assert asked.status_code == 201
    assert asked.json["baselines"] == 10_010
    held = []
    store, write = controller.ctx.store, controller.ctx.store.write

    @contextmanager
    def timed() -> Iterator[Connection]:
        with write() as db:
            start = time.process_time()
            yield db
            held.append(time.process_time() - start)

    monkeypatch.setattr(store, "write", timed)
    memory = drift_monitor.DriftMemory(64)
    for _ in range(4):  # one fiftieth of the whole says how long the lock is held
        assert apply_baseline_changes.apply_chunk(controller.ctx, memory, asked.json["id"])
    assert np.median(held) < 0.1
    done = controller.get(f"{CHANGES}/{asked.json['id']}").json
    assert (done["changed"], done["done_at"]) == (4 * apply_baseline_changes.CHUNK, 0)


def test_what_a_person_asks_for_is_checked_audited_and_applied(controller: ControllerApp) -> None:
    model = watched(controller.ctx, 20)
    base = {"action": "reset", "model": model}
    assert is_problem(controller.post(CHANGES, json=base), 422, "bad-input")
    assert controller.post(CHANGES, json=base | {"device": "moon"}).status_code == 404
    assert controller.post(CHANGES, json=base | {"site": "s1", "action": "bless"}).status_code in (
        400, 422,
    )  # fmt: skip
    for action, changed in (("freeze", 3), ("accept", 0), ("unfreeze", 3), ("reset", 3)):
        body = base | {"site": "s1", "action": action}
        asked = controller.post(CHANGES, json=body).json
        apply_baseline_changes.apply_all(controller.ctx, drift_monitor.DriftMemory(64))
        done = controller.get(f"{CHANGES}/{asked['id']}").json
        assert (done["baselines"], done["changed"]) == (3, changed)
        assert done["done_at"] > 0
    shown = controller.get(f"/api/v1/drift/baseline?model={model}&subject=d00001").json
    assert shown["baseline"]["state"] == "learning"
    assert shown["baseline"]["change"] == "reset"
    listed = controller.get(f"{CHANGES}?model={model}&limit=2").json
    assert [one["action"] for one in listed["items"]] == ["reset", "unfreeze"]
    audit = controller.get(f"/api/v1/audit?subject={model}").json["items"]
    assert [e["verb"] for e in audit if e["verb"].startswith("drift.")] == [
        "drift.reset", "drift.unfreeze", "drift.accept", "drift.freeze",
    ]  # fmt: skip


def test_the_console_lists_baselines_and_asks_before_it_changes_them(
    controller: ControllerApp,
) -> None:
    model = watched(controller.ctx, 20)
    controller.sign_in()
    listed = page(controller, f"/drift/baselines?model={model}&site=s2")
    assert "d00002" in listed
    assert "d00003" not in listed
    question = page(controller, f"/drift/baselines/accept?model={model}&site=s2")
    assert "site s2 and its devices" in question
    assert "3 baselines" in question
    answer = controller.client.post(
        "/drift/baselines/freeze", data={"model": model, "site": "s2"}, base_url=ORIGIN,
        headers={"Origin": ORIGIN},
    )  # fmt: skip
    assert answer.status_code == 303
    with controller.ctx.store.read() as db:
        assert db.scalar(select(func.count()).select_from(baseline_change)) == 1
    assert "being applied" in page(controller, f"/drift/baselines?model={model}")
    apply_baseline_changes.apply_all(controller.ctx, drift_monitor.DriftMemory(64))
    assert "Frozen" in page(controller, f"/drift/baselines?model={model}&state=frozen")
