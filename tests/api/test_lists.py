"""Every list at 10 000 devices, 3 000 alerts, 500 rollouts: each page is what SQL says."""

import re
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import func, select, text

from api.controller_app import ORIGIN, ControllerApp, is_problem
from plant import Large
from shoal.controller.store import rollout_tables, tables
from shoal.controller.web import wording


def count(app: ControllerApp, table: Any, where: str = "1 = 1") -> int:
    query = select(func.count()).select_from(table).where(text(where))
    with app.ctx.store.read() as db:
        return int(db.execute(query).scalar_one())


#: path, the table behind it, its filter in SQL, and what tells one item from another.
LISTS = {
    "devices": ("/devices?", tables.device, "1 = 1", "name"),
    "devices of a site": ("/devices?site=site-07", tables.device, "site = 'site-07'", "name"),
    "devices with a name": ("/devices?q=cam-000", tables.device, "name LIKE 'cam-000%'", "name"),
    "rollouts": ("/rollouts?", rollout_tables.rollout, "1 = 1", "id"),
    "rollouts not ended": (
        "/rollouts?state=unfinished", rollout_tables.rollout,
        "state NOT IN ('FINISHED', 'STOPPED', 'ROLLED_BACK')", "id",
    ),
    "rollouts of a release": (
        "/rollouts?release=lot-codes@1", rollout_tables.rollout, "release = 'lot-codes@1'", "id",
    ),
    "rollouts, searched": (
        "/rollouts?q=MODEL-007&sort=state", rollout_tables.rollout, "release LIKE 'model-007%'",
        "id",
    ),
    "devices of a rollout": (
        "/rollouts/r-00000000/devices?sort=failed", rollout_tables.rollout_device, "1 = 1",
        "device",
    ),
    "failed devices of a rollout": (
        "/rollouts/r-00000000/devices?state=FAILED&q=cam-0", rollout_tables.rollout_device,
        "state = 'FAILED' AND device LIKE 'cam-0%'", "device",
    ),
    "alerts": ("/alerts?", tables.alert, "1 = 1", "id"),
    "critical alerts": (
        "/alerts?state=open&severity=critical", tables.alert,
        "state = 'open' AND severity = 'critical'", "id",
    ),
    "audit": ("/audit?", tables.audit, "1 = 1", "id"),
    "operations": ("/operations?sort=subject", tables.operation, "1 = 1", "id"),
    "failed operations": ("/operations?state=failed", tables.operation, "state = 'failed'", "id"),
    "models": ("/models?sort=-created", tables.model, "1 = 1", "name"),
    "releases": ("/releases?", tables.release, "1 = 1", "model version"),
    "candidates": (
        "/releases?state=candidate&sort=model", tables.release, "state = 'candidate'",
        "model version",
    ),
    "datasets": ("/datasets?sort=-rows", tables.dataset, "1 = 1", "name version"),
    "datasets with a name": (
        "/datasets?q=parts-01@", tables.dataset, "name = 'parts-01'", "name version",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_the_pages_of_a_list_are_all_of_its_rows_each_once_and_the_total_is_that_of_sql(
    large: Large, name: str
) -> None:
    path, table, where, key = LISTS[name]
    wanted, seen, cursor = count(large.app, table, where), [], ""
    for _ in range(3 if wanted > 3_000 else 100):
        answer = large.app.get(f"/api/v1{path}&limit=500&cursor={cursor}").json
        assert answer["page"]["total"] == wanted, "counted over all of it, on every page"
        seen += [tuple(one[part] for part in key.split()) for one in answer["items"]]
        cursor = answer["page"]["next"]
        if not cursor:
            break
    assert len(set(seen)) == len(seen)
    assert len(seen) == min(wanted, 1_500) or (not cursor and len(seen) == wanted)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/rollouts?sort=created", "created_at"),
        ("/rollouts?sort=-release", "release"),
        ("/operations?sort=finished", "finished_at"),
        ("/releases?sort=model", "model"),
        ("/models?", "name"),
        ("/datasets?sort=size", "size"),
        ("/devices?", "name"),
    ],
)
def test_a_list_is_sorted_over_all_pages(large: Large, path: str, field: str) -> None:
    first = large.app.get(f"/api/v1{path}&limit=30").json
    second = large.app.get(f"/api/v1{path}&limit=30&cursor={first['page']['next']}").json
    values = [one[field] for one in first["items"] + second["items"]]
    assert values == sorted(values, reverse="sort=-" in path)


def test_failed_devices_of_a_rollout_come_first(large: Large) -> None:
    page = large.app.get("/api/v1/rollouts/r-00000000/devices?sort=failed&limit=500").json
    states = [one["state"] for one in page["items"]]
    failed = count(large.app, rollout_tables.rollout_device, "state = 'FAILED'")
    assert states[:failed] == ["FAILED"] * failed
    assert "FAILED" not in states[failed:]


@pytest.mark.parametrize("path", ["rollouts", "operations", "releases", "models", "datasets"])
def test_an_order_that_there_is_not_is_a_problem_that_names_those_that_there_are(
    large: Large, path: str
) -> None:
    answer = large.app.get(f"/api/v1/{path}?sort=colour")
    assert is_problem(answer, 422)
    assert "created" in answer.json["hint"]
    assert is_problem(large.app.get(f"/api/v1/{path}?cursor=nonsense"), 422)


@pytest.mark.parametrize(
    ("path", "table", "where", "noun"),
    [
        ("/rollouts?", rollout_tables.rollout, "1 = 1", "rollouts"),
        ("/rollouts?release=lot-codes@1", rollout_tables.rollout, "release = 'lot-codes@1'",
         "rollouts"),
        ("/operations?state=failed", tables.operation, "state = 'failed'", "operations"),
        ("/models?", tables.model, "1 = 1", "models"),
        ("/models/lot-codes?", tables.release, "model = 'lot-codes'", "versions"),
        ("/datasets?", tables.dataset, "1 = 1", "versions"),
        ("/audit?", tables.audit, "1 = 1", "entries"),
        ("/alerts?state=open", tables.alert, "state = 'open'", "alerts"),
        ("/rollouts/r-00000000?", rollout_tables.rollout_device, "1 = 1", "devices"),
    ],
)  # fmt: skip
def test_a_screen_counts_all_rows_and_leads_to_the_rest(
    large: Large, path: str, table: Any, where: str, noun: str
) -> None:
    shown = screen(large, path)
    assert f"{wording.count(count(large.app, table, where))} {noun}" in shown
    following = re.search(r'href="([^"]+)" rel="next"', shown)
    assert following, "a link to the next page"
    assert screen(large, following[1].replace("&amp;", "&"))


def screen(large: Large, path: str) -> str:
    answer = large.app.client.get(path, base_url=ORIGIN)
    assert answer.status_code == 200
    return str(answer.get_data(as_text=True))


def test_a_release_leads_to_all_of_its_rollouts(large: Large) -> None:
    number = count(large.app, rollout_tables.rollout, "release = 'lot-codes@1'")
    shown = screen(large, f"/releases/{large.seeded.ref}")
    assert f"all {number}" in shown
    assert f"/rollouts?release={quote('lot-codes@1', safe='@')}" in shown
