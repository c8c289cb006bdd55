"""The console over the real thing: controller, broker and agents as processes, nothing seeded."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from browser.chromium import Tab
from browser.deployment import Deployment, write_digits

pytestmark = [pytest.mark.timeout(240)]


@pytest.fixture
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("deployment"))
    yield made
    made.end()


def test_real_devices_take_a_real_release_while_one_looks(
    chromium: Browser, deployment: Deployment
) -> None:
    context = chromium.new_context(ignore_https_errors=True)
    context.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    tab = Tab(context, deployment.url)
    page = tab.go("/fleet")
    page.get_by_label("User").fill("admin")
    page.get_by_label("Password").fill(deployment.password)
    page.get_by_role("button", name="Sign in").click()

    # An empty fleet fills by itself.
    expect(page.get_by_text("No device has joined yet")).to_be_visible()
    page.evaluate("window.same = true")
    data = write_digits(deployment.folder / "digits.csv")
    deployment.add_agents({"station-01": "canary", "station-02": "stable"}, data)
    rows = page.locator("#devices tbody tr", has_text="Online")
    expect(rows).to_have_count(2)
    assert page.evaluate("window.same") is True

    ref = deployment.release_digits(data)
    tab.go("/rollouts")
    page.evaluate("window.same = true")
    stages = [{"name": "canary", "select": {"ring": "canary"}}, {"name": "rest"}]
    ident = deployment.post("rollouts", release=ref, stages=stages)["id"]
    page.get_by_role("link", name=ident).click()
    page.evaluate("window.same = true")
    expect(page.locator("#stage-1 .state")).to_have_text("Successful")
    expect(page.locator("#t-station-02")).to_contain_text("Succeeded")
    expect(page.locator("h1 + .state")).to_have_text("Finished")
    assert page.evaluate("window.same") is True

    # Windows come, and the charts draw them.
    page.locator("#t-station-01").click()
    expect(page.locator("figure[data-chart=rate] canvas")).to_be_visible()
    expect(page.locator("figure[data-chart=pct] tbody tr")).not_to_have_count(0)
    expect(page.locator(".timeline")).to_contain_text("Observing")
    assert tab.violations() == []
    expect.set_options(timeout=10_000)
    context.close()
    assert tab.complaints == []
