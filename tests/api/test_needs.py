"""What needs a person: in the API, on the front page, and with commands that work as printed."""

import shlex
from typing import Any

import click
import pytest
from sqlalchemy import func, select

from api.controller_app import ORIGIN, ControllerApp, is_problem
from plant import Large
from shoal.cli.__main__ import cli
from shoal.controller.needs.needs import KINDS, LONG_OFFLINE_S
from shoal.controller.store import rollout_tables, tables


def needs(app: ControllerApp, **query: Any) -> Any:
    return app.get("/api/v1/needs", query_string={"limit": 500, **query}).json["items"]


def number(large: Large, table: Any, *where: Any) -> int:
    with large.app.ctx.store.read() as db:
        return int(db.execute(select(func.count()).select_from(table).where(*where)).scalar_one())


def test_failures_of_many_devices_are_folded_and_none_is_left_out(large: Large) -> None:
    device, alert = tables.device.c, tables.alert.c
    enrolled = device.state == "enrolled"
    before = large.app.clock.now - LONG_OFFLINE_S
    sums = {
        "devices_failing": number(large, tables.device, enrolled, device.error != ""),
        "devices_offline": number(large, tables.device, enrolled, device.seen_at < before),
        "alerts": number(
            large, tables.alert, alert.state == "open", alert.severity == "critical"
        ),
        "rollout_paused": number(
            large, rollout_tables.rollout, rollout_tables.rollout.c.state == "PAUSED"
        ),
    }  # fmt: skip
    for kind, expected in sums.items():
        found = needs(large.app, kind=kind)
        assert sum(one["count"] for one in found) == expected > 0, kind
    assert len(needs(large.app, kind="devices_failing")) == 1, "one cause, one item"
    assert len(needs(large.app, kind="alerts")) < sums["alerts"]


def test_the_worst_come_first_and_pages_hold_each_once(large: Large) -> None:
    whole = needs(large.app)
    order = ["critical", "warning", "info"]
    ranks = [order.index(one["severity"]) for one in whole]
    assert ranks == sorted(ranks)
    first = large.app.get("/api/v1/needs?limit=7").json
    assert first["page"]["total"] == len(whole)
    rest = large.app.get(f"/api/v1/needs?limit=7&cursor={first['page']['next']}").json
    assert first["items"] + rest["items"] == whole[:14]


def test_every_button_leads_to_a_page_and_every_command_is_one(large: Large) -> None:
    by_kind = {one["kind"]: one for one in needs(large.app)}
    assert set(by_kind) >= {
        "rollout_paused", "candidate", "alerts", "devices_failing", "devices_offline",
        "certificates_end",
    }  # fmt: skip
    for one in by_kind.values():
        answer = large.app.client.get(one["action"]["href"], base_url=ORIGIN)
        assert answer.status_code == 200, one
        parse(one["action"]["command"])


def parse(text: str) -> None:
    """Read a command line as the CLI does, without running it; click raises if it is none."""
    program, *words = shlex.split(text)
    assert program == "shoal"
    command: click.Command = cli
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None, text
        command = found
    command.make_context(text, words)


def test_the_front_page_shows_them_and_an_old_address_of_the_fleet_leads_there(
    large: Large,
) -> None:
    shown = large.app.client.get("/", base_url=ORIGIN).get_data(as_text=True)
    assert "Decide on r-00000001" in shown
    assert "have been offline for more than a day" in shown
    moved = large.app.client.get("/?site=site-07&problem=1", base_url=ORIGIN)
    assert moved.headers["Location"] == "/fleet?site=site-07&problem=1"


def test_nothing_needs_anybody_on_a_new_controller(controller: ControllerApp) -> None:
    assert needs(controller) == []
    controller.sign_in()
    shown = controller.client.get("/", base_url=ORIGIN).get_data(as_text=True)
    assert "No device has joined yet" in shown


def test_metadata_that_was_not_renewed_is_named(controller: ControllerApp) -> None:
    controller.clock.now += 2 * 86_400
    [one] = needs(controller)
    assert (one["kind"], one["severity"], one["subject"]) == (
        "metadata_ends", "critical", "timestamp",
    )  # fmt: skip


@pytest.mark.parametrize("query", [{"kind": "nothing"}, {"cursor": "x"}, {"limit": 0}])
def test_a_query_that_makes_no_sense_is_a_problem(
    controller: ControllerApp, query: dict[str, Any]
) -> None:
    assert is_problem(controller.get("/api/v1/needs", query_string=query), 422)
    assert KINDS
