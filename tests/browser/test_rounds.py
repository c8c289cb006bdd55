"""The screens of federated rounds: what they say, what they let one do, and that they are live."""

import pytest
from playwright.sync_api import Browser, expect

from browser.chromium import Tab
from browser.conftest import Console, check_that_everybody_can_use_it, sign_in
from browser.seed_rounds import MALICIOUS, MALICIOUS_FROM, NEW, POISONED, ROUNDS, TASK
from shoal.controller.federated.rounds import rounds, rows

SCREENS = {
    "rounds": "/rounds",
    "task": f"/rounds/{TASK}",
    "task without a round": f"/rounds/{NEW}",
    "round": f"/rounds/{TASK}/{ROUNDS - 1}",
    "round, poisoned": f"/rounds/{POISONED}/2",
    "round, quarantine": f"/rounds/{TASK}/quarantine?round={ROUNDS - 1}",
    "round, lift": f"/rounds/{POISONED}/lift?round=2",
    "round, measure": f"/rounds/{POISONED}/evaluate",
    "round, release": f"/rounds/{TASK}/release",
    "release that rounds made": "/releases/seal-check@1",
    "model with such a release": "/models/seal-check",
}


@pytest.mark.parametrize("name", SCREENS)
def test_everybody_can_use_every_screen_of_rounds(tab: Tab, name: str) -> None:
    check_that_everybody_can_use_it(tab, SCREENS[name])


def test_a_controller_without_tasks_teaches_how_to_begin(fresh_tab: Tab) -> None:
    page = fresh_tab.go("/rounds")
    expect(page.get_by_text("shoal round plan TASK")).to_be_visible()
    assert fresh_tab.violations() == []
    page.get_by_role("link", name="Rounds").click()
    expect(page.get_by_role("heading", name="No task yet")).to_be_visible()


def test_a_release_names_the_rounds_and_devices_that_trained_it(tab: Tab) -> None:
    page = tab.go("/releases/seal-check@1")
    expect(page.get_by_role("link", name=f"{TASK}, round {ROUNDS - 1}")).to_be_visible()
    expect(page.get_by_role("region", name="Devices that trained it")).to_contain_text(MALICIOUS)
    page = tab.go("/models/seal-check")
    expect(page.get_by_role("link", name="trained by 12 devices")).to_be_visible()


def test_outliers_come_first_and_are_marked_without_colour(tab: Tab) -> None:
    page = tab.go(f"/rounds/{TASK}")
    first = page.locator("table.matrix tbody tr").first
    expect(first).to_contain_text(MALICIOUS)
    outlier = "Update received, outlier: against-the-others"
    assert first.get_by_role("img", name=outlier).count() == ROUNDS - MALICIOUS_FROM + 1
    expect(page.locator("figure[data-x=round] .uplot")).to_have_count(3)
    expect(page.get_by_role("heading", name="Differential privacy")).to_be_visible()
    page.get_by_role("link", name=f"Round {ROUNDS - 1}", exact=True).click()
    row = page.locator(f"#d-{MALICIOUS}")
    expect(row).to_contain_text("Points against the others")
    expect(row).to_contain_text("−0.55" if "−" in row.inner_text() else "-0.55")


def test_a_round_that_goes_on_is_shown_without_a_reload(tab: Tab, console: Console) -> None:
    page = tab.go(f"/rounds/{TASK}")
    page.locator("[data-live-status][data-state=on]").wait_for()
    page.evaluate("window.same = true")
    with console.ctx.store.write() as db:
        rows.set_task(db, console.ctx, TASK, reason="2 devices for a round of 2 to 3 (5 offline)")
    expect(page.get_by_text("5 offline")).to_be_visible()
    assert page.evaluate("window.same") is True


def test_a_round_is_quarantined_with_a_reason_and_the_task_shows_the_round_it_continues_from(
    tab: Tab, console: Console
) -> None:
    page = tab.go(f"/rounds/{POISONED}/1")
    page.get_by_role("button", name="Quarantine…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("2later rounds")
    dialog.get_by_label("Why").fill("its neighbour lied as well")
    dialog.get_by_role("button", name="Quarantine").click()
    page.wait_for_url(f"**/rounds/{POISONED}")
    assert rounds.get_task(console.ctx, POISONED).parent == 0
    expect(page.get_by_text("its neighbour lied as well").first).to_be_visible()


def test_a_checkpoint_is_evaluated_by_eligible_devices_and_the_task_keeps_its_checkpoint(
    tab: Tab, console: Console
) -> None:
    before = rounds.get_task(console.ctx, POISONED)
    page = tab.go(f"/rounds/{POISONED}")
    page.get_by_role("button", name="Evaluate…").click()
    page.get_by_role("dialog").get_by_role("button", name="Evaluate").click()
    page.wait_for_url(f"**/rounds/{POISONED}/4")
    expect(page.get_by_text("evaluation")).to_be_visible()
    assert rounds.get_task(console.ctx, POISONED).checkpoint == before.checkpoint


def test_further_rounds_are_asked_for_and_aborted_by_operators_only(
    tab: Tab, console: Console, chromium: Browser
) -> None:
    page = tab.go(f"/rounds/{NEW}")
    page.get_by_label("Further rounds").fill("7")
    page.get_by_role("button", name="Start rounds").click()
    expect(page.get_by_text("0 of 7")).to_be_visible()
    page.get_by_role("button", name="Abort…").click()
    page.get_by_role("dialog").get_by_role("button", name="Abort").click()
    expect(page.get_by_text("aborted by admin")).to_be_visible()

    context = chromium.new_context(
        ignore_https_errors=True, storage_state=sign_in(chromium, console.url, "viewer")
    )
    viewer = Tab(context, console.url).go(f"/rounds/{NEW}")
    expect(viewer.get_by_role("button", name="Start rounds")).to_have_count(0)
    answer = viewer.request.post(
        f"{console.url}/rounds/{NEW}/abort", headers={"Origin": console.url}
    )
    assert answer.status == 403
    context.close()
