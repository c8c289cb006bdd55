"""A controller folder as `init` makes it, with a release and device rows."""

import random
import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import insert, select

from bench import brokers
from bench.releases import MODEL, Release
from shoal.controller.host.context import Context
from shoal.controller.initialization import InitOptions, make_folder
from shoal.controller.releases import models, releases
from shoal.controller.store import tables
from shoal.controller.wiring import open_context

ACTOR = "bench"


def make_controller(folder: Path, *, baseline_windows: int = 96) -> Context:
    """A new controller on free ports; the caller starts its processes."""
    port, artifacts, mqtt = brokers.free_ports(3)
    wishes = InitOptions(
        port=port,
        artifacts=artifacts,
        mqtt=mqtt,
        window_s=60.0,
        baseline_windows=baseline_windows,
    )
    make_folder(folder, wishes, time.time())
    return open_context(folder)._replace(random=random.Random(7))


def add_release(ctx: Context, release: Release) -> str:
    """Put a release where training would have put it, and publish it; "model@version"."""
    for data in (*release.files.values(), release.data):
        ctx.blobs.put_bytes(data)
    with ctx.store.write() as db:
        models.ensure_model(db, ctx, actor=ACTOR, name=MODEL)
        db.execute(insert(tables.release).values(**_row(release)))
    releases.publish(ctx, actor=ACTOR, ref=release.manifest.release)
    return release.manifest.release


def add_devices(ctx: Context, names: Sequence[str]) -> None:
    """Rows of enrolled devices, without certificates."""
    empty: dict[str, object] = {"labels": {}, "releases": {}, "variants": {}, "facts": {}}
    rows = [
        {"name": name, "site": f"site-{i % 10}", "state": "enrolled", "enrolled_at": 1.0, **empty}
        for i, name in enumerate(names)
    ]
    with ctx.store.write() as db:
        db.execute(insert(tables.device), rows)


def is_online(ctx: Context, device: str) -> bool:
    with ctx.store.read() as db:
        name = tables.device.c.name
        return bool(db.scalar(select(tables.device.c.online).where(name == device)))


def _row(release: Release) -> dict[str, object]:
    manifest = release.manifest
    report = {
        "task": manifest.task,
        "estimator": "mlp",
        "metrics": {},
        "by_site": {},
        "variants": [],
        "verdicts": [],
        "signatures": [],
        "labels": manifest.labels,
        "features": [feature.name for feature in manifest.features],
        "params": {},
    }
    return {
        "model": MODEL,
        "version": manifest.version,
        "state": "validated",
        "dataset": manifest.dataset,
        "created_at": time.time(),
        "created_by": ACTOR,
        "report": report,
        "manifest": release.data,
        "references": release.files["reference.json"],
        "trigger": "manual",
    }
