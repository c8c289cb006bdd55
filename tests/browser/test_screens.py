"""Every screen, by its address: it says what it should, to everybody, in any light and size."""

import pytest
from playwright.sync_api import Browser, expect

import tensor_releases
from browser.chromium import Tab
from browser.conftest import Console, check_that_everybody_can_use_it, sign_in
from browser.seed import LAST, LONG, WRONG
from browser.seed_attention import GROUP
from shoal.controller.alerts import listing

SCREENS = {
    "needs you": "/",
    "fleet": "/fleet",
    "fleet, nothing found": "/fleet?q=no-such-device",
    "device": "/devices/station-00",
    "device that failed": f"/devices/{WRONG}",
    "device never connected": "/devices/station-19",
    "rollouts": "/rollouts",
    "rollout, running": "/rollouts/{running}",
    "rollout, held": "/rollouts/{held}",
    "rollout, abort": "/rollouts/{running}/abort",
    "new rollout": "/rollouts/new",
    "drift": "/drift?model=lot-codes&scope=site&subject=north-annex",
    "alerts": "/alerts",
    "alerts, those of a site": "/alerts?state=snoozed&site=mill-road",
    "alert of devices": "/alerts/{alert}",
    "groups": "/groups",
    "group": "/groups/{group}",
    "notifications": "/notifications",
    "models": "/models",
    "import": "/import",
    "train": "/train",
    "release of tensors": f"/releases/{tensor_releases.MODEL}@1",
    "model": "/models/lot-codes",
    "model version": "/releases/lot-codes@1",
    "model version, refused": "/releases/lot-codes@2",
    "undeploy": "/models/lot-codes/undeploy",
    "undeployment": "/undeployments/{undeployment}",
    "retire a model": "/models/lot-codes/retire",
    "retire a release": "/releases/lot-codes@2/retire",
    "delete, needed": "/delete/models/lot-codes",
    "delete": "/delete/releases/lot-codes@2",
    "datasets": "/datasets",
    "dataset, table": "/datasets/lot-codes@1",
    "dataset, images": "/datasets/marks@1",
    "add a dataset": "/datasets/add",
    "operations": "/operations",
    "runs": "/runs?model=lot-codes",
    "lineage": "/lineage?thing=lot-codes@1",
    "audit": "/audit",
    "people": "/people",
    "people, reset": "/people/users/viewer/reset",
    "password": "/password",
    "settings": "/settings",
    "add devices": "/enrol",
    "nothing there": "/devices/no-such-device",
}


def address(console: Console, name: str) -> str:
    assert console.seeded is not None
    [alert] = listing.page(console.ctx, kind="disk")[0]
    more = {"alert": alert.id, "group": GROUP}
    return SCREENS[name].format(**console.seeded._asdict(), **more)


@pytest.mark.parametrize("name", SCREENS)
def test_everybody_can_use_every_screen(tab: Tab, console: Console, name: str) -> None:
    check_that_everybody_can_use_it(tab, address(console, name))


def test_a_fault_in_a_page_would_be_found(tab: Tab) -> None:
    page = tab.go("/models")
    page.evaluate("document.querySelector('h1').insertAdjacentHTML('afterend', '<input>')")
    page.evaluate("document.querySelector('h1').style.color = '#cccccc'")
    assert [found.split(":")[0] for found in tab.violations()] == ["color-contrast", "label"]
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\">x</p>')")
    assert "Content Security Policy" in tab.complaints.pop()


def test_sign_in_reports_a_wrong_password_and_returns_to_the_requested_page(
    chromium: Browser, console: Console
) -> None:
    context = chromium.new_context(ignore_https_errors=True)
    tab = Tab(context, console.url)
    page = tab.go("/alerts?state=open")
    assert tab.violations() == []
    page.get_by_label("User").fill("admin")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("password is wrong")
    page.get_by_label("Password").fill("correct horse battery")
    page.keyboard.press("Enter")
    page.wait_for_url("**/alerts?state=open")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in")
    page.go_back()
    expect(page.get_by_label("User")).to_be_visible()
    page.goto(f"{console.url}/alerts")
    expect(page.get_by_label("User")).to_be_visible()
    context.close()
    assert tab.complaints == []


def test_a_viewer_sees_everything_and_is_offered_nothing_to_press(
    chromium: Browser, console: Console
) -> None:
    state = sign_in(chromium, console.url, "viewer")
    context = chromium.new_context(ignore_https_errors=True, storage_state=state)
    page = Tab(context, console.url).go(address(console, "rollout, running"))
    expect(page.get_by_role("heading", name="Devices", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Abort")).to_have_count(0)
    answer = page.request.post(
        f"{console.url}{address(console, 'rollout, running')}/pause",
        headers={"Origin": console.url},
    )
    assert answer.status == 403
    assert "this needs operator" in answer.text()
    context.close()


def test_the_colours_follow_the_system_until_one_chooses_and_the_choice_is_kept(
    tab: Tab,
) -> None:
    page = tab.page
    page.emulate_media(color_scheme="dark")
    tab.go("/")
    root = page.locator("html")
    expect(root).to_have_attribute("data-theme", "dark")
    page.get_by_role("button", name="Switch between light and dark").click()
    expect(root).to_have_attribute("data-theme", "light")
    tab.go("/rollouts")
    expect(root).to_have_attribute("data-theme", "light")


def test_the_fleet_is_searched_without_a_reload_and_the_address_holds_the_filters(tab: Tab) -> None:
    page = tab.go("/fleet")
    page.evaluate("window.same = true")
    page.get_by_role("searchbox").press_sequentially("packaging-hall")
    rows = page.locator("#devices tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(LONG)
    assert "q=packaging-hall" in page.url
    assert page.evaluate("window.same") is True
    expect(page.get_by_role("searchbox")).to_be_focused()
    expect(page.locator("#announcer")).to_have_text("1 device")
    page.goto(f"{tab.url}/fleet?site=mill-road")
    expect(page.get_by_label("Site")).to_have_value("mill-road")
    page.get_by_label("Failing only").check()
    page.wait_for_url("**/fleet?site=mill-road&problem=1")
    expect(rows).to_have_count(3)
    expect(rows.filter(has_text="golden-mismatch")).to_have_count(1)


def test_a_failing_devices_page_shows_cause_and_hint(tab: Tab) -> None:
    page = tab.go(f"/devices/{WRONG}")
    notice = page.locator(".notice").first
    expect(notice).to_contain_text("Wrong outputs on its golden vectors")
    expect(notice).to_contain_text("worst error 0.84")
    expect(notice).to_contain_text("rebuild its variant")
    for figure in page.locator("figure[data-chart]").all():
        expect(figure.locator("canvas")).to_be_visible()
        expect(figure.locator("tbody tr").first).to_be_attached()


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("/fleet", "shoal device token --site SITE --uses 10"),
        ("/rollouts", "shoal rollout start MODEL@VERSION"),
        ("/models", "shoal dataset add FILE.csv --name NAME --label COLUMN"),
        ("/datasets", "shoal dataset add FILE.csv --name NAME --label COLUMN"),
        ("/operations", "shoal model train MODEL --dataset NAME"),
    ],
)
def test_an_empty_screen_shows_the_next_command(
    chromium: Browser, fresh: Console, fresh_tab: Tab, path: str, command: str
) -> None:
    page = fresh_tab.go(path)
    expect(page.locator("code", has_text=command)).to_be_visible()
    assert fresh_tab.violations() == []


def test_a_join_token_is_shown_once_in_the_command_that_uses_it(fresh_tab: Tab) -> None:
    page = fresh_tab.go("/fleet")
    page.get_by_role("link", name="Make a join token").click()
    page.get_by_label("Site").fill("harbour")
    page.get_by_role("button", name="Make a join token").click()
    command = page.locator("#join-command")
    expect(command).to_contain_text("shoal-agent enroll --folder")
    expect(command).to_contain_text("--token sj1.")
    fresh_tab.go("/settings")
    expect(page.get_by_role("region", name="Join tokens").last).to_contain_text("harbour")
    assert "sj1." not in page.content()


def test_a_rollout_shows_how_often_outputs_of_the_new_release_differ(
    tab: Tab, console: Console
) -> None:
    where = address(console, "rollout, running")
    page = tab.go(where)
    expect(page.locator("#stage-1")).to_contain_text("outputs differ2.0 % of")
    expect(page.locator(f"#t-{LAST}")).to_contain_text("2.0 % differ")
    title = page.locator(f"#t-{LAST}").get_attribute("title") or ""
    assert "outputs differ on 2.0 % of 256 recent inputs" in title
    told = page.request.get(f"{console.url}/api/v1{where}").json()["stages"][0]
    assert told["disagree"] == pytest.approx(5 / 256)
    assert told["compared"] % 256 == 0
    devices = page.request.get(f"{console.url}/api/v1{where}/devices").json()["items"]
    assert {"disagree": 0.02, "compared": 256}.items() <= next(
        one["facts"].items() for one in devices if one["device"] == LAST
    )


def test_an_admin_adds_a_user_who_chooses_a_password_before_anything_else(
    tab: Tab, chromium: Browser, console: Console
) -> None:
    page = tab.go("/people")
    page.get_by_label("Name", exact=True).first.fill("ana")
    page.get_by_label("Role", exact=True).first.select_option("operator")
    page.get_by_role("button", name="Add", exact=True).click()
    once = page.locator("#shown-secret").inner_text()
    other = chromium.new_context(ignore_https_errors=True)
    new = Tab(other, console.url).go("/sign-in")
    new.get_by_label("User").fill("ana")
    new.get_by_label("Password").fill(once)
    new.keyboard.press("Enter")
    expect(new.get_by_role("heading", name="Change your password")).to_be_visible()
    new.get_by_label("One-time password").fill(once)
    new.get_by_label("New password, 12").fill("a password of my own")
    new.get_by_label("New password again").fill("a password of my own")
    new.get_by_role("button", name="Change").click()
    expect(new.get_by_role("heading", name="People")).to_be_visible()
    page.get_by_role("button", name="Disable… ana").click()
    page.get_by_label("Reason, for the audit log").fill("test")
    page.get_by_role("dialog").get_by_role("button", name="Disable").click()
    expect(page.get_by_role("row", name="Role of ana")).to_contain_text("disabled")
    new.reload()
    expect(new.get_by_role("button", name="Sign in")).to_be_visible()
    other.close()
