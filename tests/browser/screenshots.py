"""Screenshots of the console for docs/img: of a seeded controller, or of a running demo.

    python tests/browser/screenshots.py [--demo FOLDER] [--out docs/img]

With `shoal demo --folder FOLDER` running beside it, the drift is captured while its alert is open;
when the demo has finished, one of its bad releases is rolled out again, for a gate that holds it.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from browser.chromium import launch
from browser.conftest import PASSWORD, make, serve
from shoal.controller.access import users
from shoal.controller.wiring import open_context
from shoal.errors import ShoalError

SIZE = {"width": 1360, "height": 850}
ALSO_DARK = ("fleet", "drift")
LONGEST_S = 400


class Camera:
    """Takes screenshots of a signed-in page into the folder `out`."""

    def __init__(self, page: Page, url: str, out: Path) -> None:
        self.page, self.url, self.out = page, url, out
        out.mkdir(parents=True, exist_ok=True)

    def sign_in(self, user: str) -> None:
        self.page.goto(self.url)
        self.page.get_by_label("User").fill(user)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url(f"{self.url}/")

    def items(self, path: str) -> list[dict[str, Any]]:
        return list(self.page.request.get(f"{self.url}/api/v1/{path}").json()["items"])

    def take(self, name: str, path: str) -> None:
        self.page.goto(self.url + path)
        self.page.locator("[data-live-status][data-state=on]").wait_for()
        self.page.wait_for_timeout(400)
        self.page.screenshot(path=self.out / f"{name}.png")
        if name in ALSO_DARK:
            self._toggle()
            self.page.screenshot(path=self.out / f"{name}-dark.png")
            self._toggle()
        print(self.out / f"{name}.png", path)

    def _toggle(self) -> None:
        self.page.evaluate("document.querySelector('[data-theme-toggle]').click()")
        self.page.wait_for_timeout(250)

    def until(self, condition: Callable[[], Any]) -> Any:
        for _ in range(LONGEST_S * 4):
            if found := condition():
                return found
            self.page.wait_for_timeout(250)
        raise SystemExit(f"waited {LONGEST_S} s for {condition.__name__}")

    # --- screens ----------------------------------------------------------------------------

    def drift_alert(self) -> dict[str, Any] | None:
        found = [a for a in self.items("alerts?state=open") if a["kind"] == "drift"]
        return found[0] if found else None

    def held(self) -> dict[str, Any] | None:
        """A rollout that its gate holds, awaiting a decision."""
        rollouts = self.items("rollouts")
        return next((r for r in rollouts if r["state"] == "PAUSED" and _failed(r)), None)

    def roll_out_again(self) -> None:
        """Roll out the first release that failed on devices: it fails again."""
        bad = [r for r in self.items("rollouts") if _failed(r)][-1]
        plan = {"release": bad["release"], "stages": bad["plan"]["stages"]}
        answer = self.page.request.post(
            f"{self.url}/api/v1/rollouts", data=plan, headers={"Origin": self.url}
        )
        assert answer.ok, answer.text()

    def take_drift(self) -> None:
        alert = self.until(self.drift_alert)
        self.page.wait_for_timeout(9000)  # a few windows more
        model, site = alert["model"], alert["site"]
        self.take("drift", f"/drift?model={model}&scope=site&subject={site}&span=1h")

    def take_rounds(self) -> None:
        """The task with the most rounds, if there is one."""
        tasks = sorted(self.items("tasks"), key=lambda task: -task["rounds"])
        for task in tasks[:1]:
            self.take("rounds", f"/rounds/{task['name']}")

    def take_the_rest(self) -> None:
        held = self.until(self.held)
        failed = self.items(f"rollouts/{held['id']}/devices?state=FAILED")
        finished = [r["release"] for r in self.items("rollouts") if r["state"] == "FINISHED"]
        self.take("rollout", f"/rollouts/{held['id']}")
        self.take("fleet", "/fleet")
        self.take("device", f"/devices/{failed[0]['device']}")
        self.take("alerts", "/alerts")
        self.take("model", f"/releases/{finished[0]}")


def _failed(rollout: dict[str, Any]) -> bool:
    return any(stage["failed"] for stage in rollout["stages"])


@contextlib.contextmanager
def camera(url: str, out: Path) -> Iterator[Camera]:
    with sync_playwright() as playwright, contextlib.closing(launch(playwright)) as browser:
        context = browser.new_context(
            ignore_https_errors=True, viewport=SIZE, color_scheme="light", reduced_motion="reduce"
        )
        yield Camera(context.new_page(), url, out)


def capture_seeded(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for console in serve(make(Path(folder) / "controller", past=True)):
            with camera(console.url, out) as made:
                made.sign_in("admin")
                made.take_drift()
                made.take_the_rest()
                made.take_rounds()


def capture_demo(folder: Path, out: Path) -> None:
    url = _add_user(folder / "controller", "maria")
    with camera(url, out) as made:
        made.sign_in("maria")
        made.take_drift()
        made.until(lambda: (folder / "demo.json").exists())
        made.roll_out_again()
        made.take_the_rest()


def _add_user(folder: Path, user: str) -> str:
    """Add a user to the running controller; return the console's URL."""
    for _ in range(LONGEST_S):
        time.sleep(1)
        if not (folder / "controller.db").exists():
            continue
        with contextlib.suppress(ShoalError):
            ctx = open_context(folder)
            users.add_user(ctx, actor="screenshots", name=user, role="admin", password=PASSWORD)
            return f"https://localhost:{ctx.settings.network.port}"
    raise SystemExit(f"no controller in {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/img"))
    given = parser.parse_args()
    if given.demo:
        capture_demo(given.demo, given.out)
    else:
        capture_seeded(given.out)


if __name__ == "__main__":
    main()
