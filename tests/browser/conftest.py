"""A controller with a past, its real web process, and a browser that is signed in to it."""

import os
import random
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, StorageState, expect, sync_playwright

from browser.chromium import Tab, launch
from browser.seed import SeedClock, Seeded, seed
from browser.seed_attention import seed_attention
from browser.seed_rounds import seed_rounds
from ports import free_port
from shoal.controller.access import users
from shoal.controller.host.context import Context
from shoal.controller.initialization import InitOptions, make_folder
from shoal.controller.wiring import open_context

PASSWORD = "correct horse battery"
#: A phone's width at 400 % zoom of a desktop: WCAG 1.4.10.
NARROW = {"width": 320, "height": 640}


class Console(NamedTuple):
    """A web process over a folder, and the same folder's use cases in this process."""

    url: str
    ctx: Context
    seeded: Seeded | None


def make(folder: Path, past: bool) -> Console:
    port = free_port()
    wishes = InitOptions(
        port=port, artifacts=free_port(), mqtt=free_port(), baseline_windows=24, cycle="none"
    )
    make_folder(folder, wishes, time.time())
    ctx = open_context(folder)._replace(clock=SeedClock(time.time()), random=random.Random(7))
    users.add_user(ctx, actor="test", name="admin", role="admin", password=PASSWORD)
    users.add_user(ctx, actor="test", name="viewer", role="viewer", password=PASSWORD)
    seeded = seed(ctx, folder) if past else None
    if past:
        seed_rounds(ctx)
        seed_attention(ctx)
    return Console(f"https://localhost:{port}", ctx._replace(clock=time.time), seeded)


def serve(console: Console) -> Iterator[Console]:
    """The web process as `shoal-controller serve` runs it."""
    folder = console.ctx.folder
    command = [sys.executable, "-m", "shoal.controller", "web", "--folder", str(folder)]
    with (folder / "web.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(console.url, process, folder / "web.log")
        yield console
    finally:
        # At once: how it ends well, with streams open, is the supervisor's test.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
        console.ctx.store.close()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    trusting = ssl._create_unverified_context()
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{url}/healthz", timeout=2, context=trusting).read()
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"the web process does not answer: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """One a file: tests change what they see, and another file's must not tell."""
    yield from serve(make(tmp_path_factory.mktemp("console") / "controller", past=True))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """A controller that was just made: nothing in it."""
    yield from serve(make(tmp_path_factory.mktemp("fresh") / "controller", past=False))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launch(playwright)
        expect.set_options(timeout=10_000)  # a busy machine is no failure
        yield browser
        browser.close()


def sign_in(browser: Browser, url: str, user: str = "admin") -> StorageState:
    context = browser.new_context(ignore_https_errors=True)
    page = context.new_page()
    page.goto(url)
    page.get_by_label("User").fill(user)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/")
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture(scope="module")
def signed_in(chromium: Browser, console: Console) -> StorageState:
    return sign_in(chromium, console.url)


@pytest.fixture(scope="module")
def signed_in_fresh(chromium: Browser, fresh: Console) -> StorageState:
    return sign_in(chromium, fresh.url)


@pytest.fixture
def tab(chromium: Browser, console: Console, signed_in: StorageState) -> Iterator[Tab]:
    """A signed-in page; it fails the test if any script failed or the CSP refused something."""
    yield from _tab(chromium, console.url, signed_in)


@pytest.fixture
def fresh_tab(chromium: Browser, fresh: Console, signed_in_fresh: StorageState) -> Iterator[Tab]:
    """The same on a controller that was just made."""
    yield from _tab(chromium, fresh.url, signed_in_fresh)


def _tab(browser: Browser, url: str, state: StorageState) -> Iterator[Tab]:
    context = browser.new_context(
        ignore_https_errors=True, storage_state=state, viewport={"width": 1360, "height": 900}
    )
    context.set_default_timeout(8000)
    made = Tab(context, url)
    yield made
    context.close()
    assert made.complaints == []


def check_that_everybody_can_use_it(tab: Tab, path: str) -> None:
    """A screen has a heading, nothing of it breaks a rule in any light, and a phone shows it."""
    page = tab.go(path)
    expect(page.locator("h1, h2").first).to_be_visible()
    assert tab.violations() == [], "in the light"
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert tab.violations() == [], "in the dark"
    page.set_viewport_size(NARROW)
    widest = page.evaluate("document.documentElement.scrollWidth")
    assert widest <= NARROW["width"], "the page itself scrolls sideways on a phone"
