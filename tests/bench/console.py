"""Cost of each page of the console at 10 000 devices: CPU of the web process, bytes as sent.

The application in this process, as gunicorn calls it, over a database of the plant that tests use;
beside each page the form for a join token, which reads nothing.
"""

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import plant
from api.controller_app import ORIGIN, ControllerApp, make_template
from bench.measuring import compare, cpu_seconds, interleave
from bench.report import Aim, Found, Row

CPU_MS, KB = 80.0, 100.0
BARE = "/enrol"
_SMALL = plant.Sizes(
    devices=300, alerts=90, rollouts=20, audit=500, operations=60, models=9, datasets=20
)


def pages(seeded: plant.Plant) -> dict[str, str]:
    """Name -> address of every page that shows the plant."""
    drift = f"/drift?model={plant.MODEL}&scope=site&subject={seeded.site}"
    lists = (
        "fleet", "rollouts", "rollouts/new", "alerts", "models", "datasets", "operations", "audit",
        "groups", "rounds", "settings", "import", "train",
    )  # fmt: skip
    return {
        "needs you": "/",
        **{name: f"/{name}" for name in lists},
        "fleet, searched": "/fleet?q=cam-09",
        "device": f"/devices/{seeded.device}",
        "rollout of all devices": f"/rollouts/{seeded.large}",
        "drift of a site": drift,
        "drift, a device searched": f"{drift}&find=cam-00",
        "alert of many devices": f"/alerts/{seeded.alert}",
        "model": f"/models/{plant.MODEL}",
        "release": f"/releases/{seeded.ref}",
    }


def run(*, quick: bool) -> Found:
    """Every page, and the bare one beside it."""
    with tempfile.TemporaryDirectory() as name:
        app = ControllerApp(make_template(Path(name) / "template"), Path(name) / "controller")
        seeded = plant.build(app.ctx, _SMALL if quick else None)
        app.sign_in()
        rows: list[Row] = []
        lines: list[dict[str, Any]] = []
        for page, path in pages(seeded).items():
            sides = {
                "page": functools.partial(_cpu_ms, app, path),
                "bare": functools.partial(_cpu_ms, app, BARE),
            }
            timed = interleave(2 if quick else 7, sides)
            row = compare(
                page, "ms CPU", timed["page"], timed["bare"], against="a page that reads nothing",
                aim=Aim(at_most=CPU_MS),
            )  # fmt: skip
            kb = len(_get(app, path)) / 1e3
            cpu_ms = float(np.median(timed["page"]))
            rows.append(row)
            lines.append({"page": page, "cpu_ms": cpu_ms, "kb": kb, "ratio": row.ratio})
        app.ctx.store.close()
    over = [line["page"] for line in lines if line["kb"] > KB]
    return Found(
        rows=rows,
        notes={f"pages over {KB:.0f} kB as sent": ", ".join(over) or "none"},
        tables={"pages": lines},
    )


def _cpu_ms(app: ControllerApp, path: str) -> float:
    return 1e3 * cpu_seconds(lambda: _get(app, path))


def _get(app: ControllerApp, path: str) -> bytes:
    """Bytes of a page as sent."""
    answer = app.client.get(path, base_url=ORIGIN, headers={"Accept-Encoding": "gzip"})
    assert answer.status_code == 200, (path, answer.status_code)
    return bytes(answer.get_data())
