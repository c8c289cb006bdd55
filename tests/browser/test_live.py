"""What happens while one looks: a rollout, drift, alerts, by mouse and by keyboard."""

import time
from collections.abc import Iterator

import msgspec
import pytest
from playwright.sync_api import Page, expect

from browser.chromium import Tab
from browser.conftest import Console
from browser.seed import LAST, STEPS, DeviceReports
from shoal.controller.host.settings import Rollouts
from shoal.controller.operations import operations
from shoal.controller.rollouts import rollouts, stepper
from shoal.controller.rollouts.records import Rollout
from shoal.controller.store import changes, rollout_tables


@pytest.fixture
def sender(console: Console) -> DeviceReports:
    """Speaks for the devices from now on, in an outbox of its own."""
    made = DeviceReports(console.ctx)
    made.boot = f"live{time.time_ns() % 10**9}"
    return made


@pytest.fixture
def seeded(console: Console) -> Iterator[Rollout]:
    """The rollout that runs, stopped meanwhile: its model has room for another."""
    assert console.seeded is not None
    before = rollouts.get_rollout(console.ctx, console.seeded.running)
    set_rollout(console, before.id, "STOPPED", time.time())
    yield before
    set_rollout(console, before.id, before.state, before.finished_at)


def set_rollout(console: Console, ident: str, state: str, finished_at: float) -> None:
    mine = rollout_tables.rollout.update().where(rollout_tables.rollout.c.id == ident)
    with console.ctx.store.write() as db:
        db.execute(mine.values(state=state, finished_at=finished_at))


def tile(page: Page, device: str):  # type: ignore[no-untyped-def]
    return page.locator(f"#t-{device}")


def test_a_rollout_is_watched_held_resumed_and_aborted(
    tab: Tab, console: Console, sender: DeviceReports
) -> None:
    assert console.seeded is not None
    ident = console.seeded.running
    release = rollouts.get_rollout(console.ctx, ident).release
    page = tab.go(f"/rollouts/{ident}")
    page.evaluate("window.same = true")
    expect(page.locator("#stage-1")).to_contain_text("Running")
    expect(tile(page, LAST)).to_contain_text("Observing")

    # What the last canary says is on the screen at once, and the next stage with it.
    tile(page, LAST).focus()
    for state in STEPS[7:]:
        sender.update(LAST, release, ident, state)
    stepper.step_all(console.ctx)
    expect(tile(page, LAST)).to_contain_text("Succeeded")
    expect(page.locator("#stage-1")).to_contain_text("Successful")
    expect(page.locator("#stage-2")).to_contain_text("Running")
    expect(tile(page, LAST)).to_be_focused()

    # An open dialog outlives what changes behind it.
    page.get_by_role("button", name="Pause").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("11waiting: held back")
    sender.update("station-03", release, ident, "DOWNLOADING")
    expect(tile(page, "station-03")).to_contain_text("Downloading")
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Pause, 11 devices").click()
    expect(page.get_by_text("paused by admin")).to_be_visible()
    page.evaluate("window.same = true")

    page.get_by_role("button", name="Resume").click()
    page.get_by_role("dialog").get_by_role("button", name="Resume").click()
    expect(page.locator("h1 + .state")).to_have_text("Running")

    # Abort, by keyboard alone; the dialog names how many devices each choice touches.
    page.get_by_role("button", name="Abort").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(f"Abort {release}?")
    expect(dialog.get_by_label("Keep it")).to_be_checked()
    expect(dialog).to_contain_text("Keep it: 16 devices affected")
    expect(dialog).to_contain_text("Roll back to what each served before: 19 devices affected")
    assert tab.violations() == []
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="Abort")).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Abort").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("aborted by admin")).to_be_visible()
    assert rollouts.get_rollout(console.ctx, ident).state in ("STOPPING", "STOPPED")


def test_a_paused_rollout_shows_its_reason_and_groups_its_failures(
    tab: Tab, console: Console
) -> None:
    assert console.seeded is not None
    page = tab.go(f"/rollouts/{console.seeded.held}")
    expect(page.get_by_role("status").filter(has_text="Paused")).to_contain_text("golden-mismatch")
    row = page.locator("section", has_text="Why devices").locator("tbody tr").first
    expect(row).to_contain_text("Wrong outputs on its golden vectors")
    expect(row).to_contain_text("worst error 0.84")
    expect(row).to_contain_text("rebuild its variant")
    row.get_by_role("link").click()
    expect(page.locator(".tile")).to_have_count(1)


def test_drift_is_found_on_one_site_and_every_square_leads_to_its_histogram(
    tab: Tab, console: Console
) -> None:
    page = tab.go("/drift?model=lot-codes&scope=site&subject=north-annex")
    expect(page.locator("#drift-summary")).to_contain_text("drifted from the usual")
    heat = page.locator("#heat")
    heat.focus()
    page.keyboard.press("End")
    for _ in range(20):
        page.keyboard.press("ArrowDown")
    said = page.locator("#heat-read").inner_text()
    feature = said.partition(",")[0]
    assert feature.startswith("pixel_2_")
    page.keyboard.press("Enter")
    expect(page.locator("#histogram h2")).to_have_text(feature)
    assert f"feature={feature}" in page.url
    expect(page.locator("#announcer")).to_contain_text(f"{feature}: PSI")

    # A new window refreshes the map and leaves what one looks at.
    with (
        page.expect_response(lambda answer: "/drift" in answer.url and answer.ok),
        console.ctx.store.write() as db,
    ):
        changes.note(db, console.ctx, "window", "station-02")
    expect(page.locator("#histogram h2")).to_have_text(feature)
    expect(heat).to_be_focused()
    box = heat.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] - 20, box["y"] + 30)
    expect(page.locator("#histogram h2")).not_to_have_text(feature)
    page.get_by_label("Subject").select_option("site:harbour")
    expect(page.locator("#drift-summary")).to_contain_text("No feature of site harbour is drifting")


def test_an_alert_leads_to_its_drift_and_can_be_taken_in_hand(tab: Tab) -> None:
    page = tab.go("/alerts")
    drifted = page.locator(".alert", has_text="inputs at north-annex have drifted")
    expect(drifted).to_contain_text("Open")
    expect(drifted.locator(".next")).to_be_visible()
    before = int(page.locator("#alert-badge").inner_text().split()[0])
    drifted.get_by_role("button", name="Acknowledge").focus()
    page.keyboard.press("Enter")
    expect(drifted).to_contain_text("acknowledged by admin")
    expect(page.locator("#alert-badge")).to_contain_text(str(before - 1) if before > 1 else "")
    drifted.get_by_role("link", name="Show the drift").click()
    expect(page.get_by_label("Subject")).to_have_value("site:north-annex")


def test_the_keyboard_reaches_the_content_first_and_focus_is_seen(tab: Tab) -> None:
    page = tab.go("/")
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to content")
    expect(skip).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    focused = page.evaluate("document.activeElement.closest('main') !== null")
    assert focused
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_work_that_takes_too_long_is_given_up_on_its_page(tab: Tab, console: Console) -> None:
    ctx = console.ctx
    asked = operations.enqueue(ctx, actor="eve", kind="import", subject="slow", params={})
    operations.claim_next(ctx)
    operations.progress(ctx, asked.id, 0.3, "validating")
    page = tab.go(f"/operations/{asked.id}")
    expect(page.get_by_text("30 %, validating")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("its work so far is lost")
    assert tab.violations() == []
    dialog.get_by_role("button", name="Cancel it").click()
    expect(page.get_by_text("canceled by admin, about to end")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    operations.end_canceled(ctx, asked.id)
    expect(page.locator("h1 + .state")).to_have_text("Canceled")
    expect(page.locator(".notice")).to_contain_text("canceled by admin")
    assert tab.violations() == []


def test_a_rollout_that_waits_for_another_user_is_approved_on_its_page(
    tab: Tab, console: Console, seeded: Rollout
) -> None:
    settings = msgspec.structs.replace(console.ctx.settings, rollouts=Rollouts(approval="stable"))
    careful = console.ctx._replace(settings=settings)
    one = rollouts.start(careful, actor="ana", plan=seeded.plan)
    page = tab.go(f"/rollouts/{one.id}")
    expect(page.locator("h1 + .state")).to_have_text("Waiting for approval")
    expect(page.get_by_text("an approver other than ana has to approve")).to_be_visible()
    page.get_by_role("button", name="Approve").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(f"Approve {one.release}?")
    assert tab.violations() == []
    dialog.get_by_role("button", name="Approve").click()
    expect(page.locator("h1 + .state")).to_have_text("Running")
    expect(page.get_by_role("button", name="Approve")).to_have_count(0)
    rollouts.abort(console.ctx, actor="ana", id=one.id)
