"""Debian's Chromium, driven by Playwright: how it is started, and what a page must never do."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright

PROGRAM = shutil.which("chromium") or "/usr/bin/chromium"
AXE = Path(__file__).parents[2] / "node_modules/axe-core/axe.min.js"
#: Nothing of the browser's own goes out, and root may run it.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def launch(playwright: Playwright) -> Browser:
    if not Path(PROGRAM).exists():
        pytest.skip("no chromium here: scripts/apt.sh chromium installs it")
    return playwright.chromium.launch(executable_path=PROGRAM, args=list(FLAGS))


class Tab:
    """A page that remembers what went wrong in it: script errors, refusals by its CSP."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page: Page = context.new_page()
        self.url = url
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)

    def _heard(self, message: object) -> None:
        text = str(getattr(message, "text", message))
        if getattr(message, "type", "") == "error" and "status of 40" not in text:
            self.complaints.append(text)

    def go(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page

    def violations(self) -> list[str]:
        """What axe has against the page as it stands, WCAG A and AA."""
        if not self.page.evaluate("() => 'axe' in window"):
            # Through the debugger, as the page's own CSP would rightly refuse it.
            self.page.evaluate(AXE.read_text())
        found = self.page.evaluate(
            "rules => axe.run(document, {runOnly: rules, resultTypes: ['violations']})", RULES
        )
        return [
            f"{v['id']}: {v['help']}: " + "; ".join(n["html"][:160] for n in v["nodes"][:3])
            for v in found["violations"]
        ]
