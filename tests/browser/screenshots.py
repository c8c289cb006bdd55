"""Pictures of the six screens for docs/img: of a seeded controller, or of a running one.

    python tests/browser/screenshots.py [--url https://localhost:8443 --password P] [--out DIR]

Of a running one (a demo, say) it shows whatever is most worth seeing: the site that drifts, the
rollout that its gate held, the device that failed.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from browser.chromium import launch
from browser.conftest import PASSWORD, make, serve

SIZE = {"width": 1360, "height": 850}


def items(page: Page, url: str, path: str) -> list[dict[str, Any]]:
    return list(page.request.get(f"{url}/api/v1/{path}").json()["items"])


def addresses(page: Page, url: str) -> dict[str, str]:
    """Name of the picture -> what it shows."""
    rollouts = items(page, url, "rollouts")
    held = [r for r in rollouts if r["reason"] and any(s["failed"] for s in r["stages"])]
    rollout = (held or rollouts)[0]
    drifting = [a for a in items(page, url, "alerts") if a["kind"] == "drift"]
    place = f"&scope=site&subject={drifting[0]['site']}" if drifting else ""
    model = drifting[0]["model"] if drifting else rollout["model"]
    releases = [r for r in items(page, url, "releases") if r["model"] == model]
    release = next((r for r in releases if r["state"] == "released"), releases[0])
    ref = f"{release['model']}@{release['version']}"
    failed = items(page, url, f"rollouts/{rollout['id']}/devices?state=FAILED")
    devices = [d["device"] for d in failed] or [d["name"] for d in items(page, url, "devices")]
    return {
        "fleet": "/",
        "device": f"/devices/{devices[0]}",
        "rollout": f"/rollouts/{rollout['id']}",
        "drift": f"/drift?model={model}{place}",
        "model-version": f"/releases/{ref}",
        "alerts": "/alerts",
    }


def shoot(url: str, password: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, contextlib.closing(launch(playwright)) as browser:
        context = browser.new_context(
            ignore_https_errors=True, viewport=SIZE, color_scheme="light", reduced_motion="reduce"
        )
        page = context.new_page()
        page.goto(url)
        page.get_by_label("User").fill("admin")
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{url}/")
        for name, path in addresses(page, url).items():
            page.goto(url + path)
            page.locator("[data-live-sign][data-state=on]").wait_for()
            page.wait_for_timeout(400)
            page.screenshot(path=out / f"{name}.png")
            if name in ("fleet", "drift"):
                page.evaluate("document.querySelector('[data-theme-toggle]').click()")
                page.wait_for_timeout(200)
                page.screenshot(path=out / f"{name}-dark.png")
                page.evaluate("document.querySelector('[data-theme-toggle]').click()")
            print(out / f"{name}.png", path)


def seeded() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        for console in serve(make(Path(folder) / "controller", past=True)):
            yield console.url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="")
    parser.add_argument("--password", default=os.environ.get("SHOAL_PASSWORD", PASSWORD))
    parser.add_argument("--out", type=Path, default=Path("docs/img"))
    given = parser.parse_args()
    for url in [given.url] if given.url else seeded():
        shoot(url, given.password, given.out)


if __name__ == "__main__":
    main()
