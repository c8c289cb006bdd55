"""Seed of a large plant, inserted in bulk: 10 000 devices at 83 sites and their past, in seconds.

For tests and benches of pages and lists: rows as the use cases write them, without the work that
leads to them. Every number is drawn from one seed.
"""

import random
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Table, insert

from api.controller_app import ControllerApp
from browser.seed import add_release, references_of
from browser.seed import images as digits
from shoal.controller.host.context import Context
from shoal.controller.store import alert_tables, rollout_tables, tables, window_tables
from shoal.controller.store.drift_tables import drift_point

MODEL = "lot-codes"
SITES = [f"site-{i:02d}" for i in range(83)]
PROFILES = ("rpi4", "rpi5", "x86-avx2", "jetson-orin")
KINDS = ("offline", "disk", "drift", "rollout", "errors", "memory")
STATES = ("open", "acknowledged", "snoozed", "closed")
DAY, HOUR = 86_400.0, 3_600


class Sizes(NamedTuple):
    """Rows of each kind; released: of the model that all devices serve."""

    devices: int = 10_000
    alerts: int = 3_000
    rollouts: int = 500
    audit: int = 60_000
    operations: int = 2_000
    models: int = 120
    datasets: int = 400
    released: int = 60
    hours: int = 26


class Large(NamedTuple):
    """A signed-in controller with a plant; no test changes it."""

    app: ControllerApp
    seeded: "Plant"


class Plant(NamedTuple):
    """What the pages of the plant are about.

    large   rollout of all devices; alert: one that stands for many devices
    """

    ref: str
    large: str
    alert: int
    site: str
    device: str


def build(ctx: Context, sizes: Sizes | None = None) -> Plant:
    """Fill an empty controller. Its clock must have `now`, which can be set."""
    sizes, now, rng = sizes or Sizes(), ctx.clock(), random.Random(83)
    ref = add_release(ctx, references_of(digits()), 1, "released")
    ctx.clock.now = now  # type: ignore[attr-defined]
    _devices(ctx, sizes, now, rng)
    _alerts(ctx, sizes, now, rng)
    _rollouts(ctx, sizes, now, rng)
    _work(ctx, sizes, now, rng)
    _windows(ctx, sizes, now, ref)
    return Plant(ref, "r-00000000", 1, SITES[7], name_of(7))


def name_of(i: int) -> str:
    return f"cam-{i:05d}"


def site_of(i: int) -> str:
    return SITES[i % len(SITES)]


def _add(ctx: Context, table: Table, rows: list[dict[str, Any]]) -> None:
    with ctx.store.write() as db:
        db.execute(insert(table), rows)


def _devices(ctx: Context, sizes: Sizes, now: float, rng: random.Random) -> None:
    rows = [
        {
            "name": name_of(i), "site": site_of(i), "line": f"line {i % 7}",
            "labels": {"shift": "early"} if i % 5 == 0 else {}, "profile": PROFILES[i % 4],
            "ring": "canary" if i % 50 == 0 else "stable",
            "state": "decommissioned" if i % 500 == 499 else "enrolled",
            "online": rng.random() < 0.96, "enrolled_at": now - 90 * DAY,
            "seen_at": now - (rng.random() * 20 if rng.random() < 0.95 else rng.random() * 9 * DAY),
            "certificate_expires_at": now + rng.uniform(-1, 90) * DAY,
            "releases": {MODEL: f"{MODEL}@1"}, "variants": {MODEL: "int8-u8s8-pc"}, "facts": {},
            "error": "golden-mismatch: worst error 0.84" if rng.random() < 0.004 else "",
            "agent": "0.3.0",
        }
        for i in range(sizes.devices)
    ]  # fmt: skip
    _add(ctx, tables.device, rows)


def _alerts(ctx: Context, sizes: Sizes, now: float, rng: random.Random) -> None:
    rows: list[dict[str, Any]] = []
    for i in range(sizes.alerts):
        kind, at = rng.choice(KINDS), now - rng.random() * 30 * DAY
        state = rng.choices(STATES, (5, 2, 1, 12))[0]
        rows.append(
            {
                "key": f"{kind}:{i}", "kind": kind, "state": state,
                "severity": rng.choices(("critical", "warning", "info"), (1, 6, 3))[0],
                "title": f"{rng.randint(1, 400)} devices of {site_of(i)}: {kind}",
                "detail": f"{kind} since then, first {name_of(i)}, and what stands behind it",
                "next_step": f"Look at the devices of {site_of(i)}.", "site": site_of(i),
                "model": MODEL, "release": f"{MODEL}@1", "features": ["pixel_0_0", "pixel_3_5"],
                "findings": 3, "opened_at": at, "updated_at": at + 60, "members": 40,
                "closed_at": at + 900 if state == "closed" else 0.0,
            }
        )  # fmt: skip
    _add(ctx, tables.alert, rows)
    members = [
        {"device": name_of(i), "kind": "offline", "part": "", "alert_key": rows[0]["key"],
         "site": site_of(i), "severity": "warning", "state": "standing", "detail": "it is silent",
         "since_at": now - i, "seen_at": now}
        for i in range(min(2_000, sizes.devices))
    ]  # fmt: skip
    _add(ctx, alert_tables.alert_member, members)


_ENDS = ("FINISHED", "STOPPED", "ROLLED_BACK")
_OF_DEVICE = ("SUCCEEDED", "WAITING", "FAILED", "DOWNLOADING")


def _rollouts(ctx: Context, sizes: Sizes, now: float, rng: random.Random) -> None:
    def stage(name: str, state: str) -> dict[str, Any]:
        zero = dict.fromkeys(("devices", "succeeded", "failed", "skipped", "unseen"), 0)
        return {"name": name, "state": state, **zero, "started_at": now, "finished_at": 0.0}

    rows: list[dict[str, Any]] = []
    counts: list[dict[str, Any]] = []
    for i in range(sizes.rollouts):
        ident = f"r-{i:08x}"
        state = "RUNNING" if i == 0 else rng.choice(_ENDS) if i > 4 else "PAUSED"
        rows.append(
            {
                "id": ident, "release": f"{MODEL}@1" if i < 90 else f"model-{i % 40:03d}@1",
                "model": MODEL if i < 90 else f"model-{i % 40:03d}", "state": state,
                "plan": {"release": f"{MODEL}@1", "stages": [{"name": "canary"}, {"name": "rest"}]},
                "stages": [stage("canary", "SUCCESSFUL"), stage("rest", "RUNNING")],
                "reason": "stage rest: 3 of 20 failed" if state == "PAUSED" else "",
                "created_at": now - i * HOUR, "created_by": rng.choice(("maria", "jan", "admin")),
            }
        )  # fmt: skip
        counts += [
            {"rollout": ident, "stage": name, "state": one, "devices": rng.randint(1, 900)}
            for name in ("canary", "rest")
            for one in _OF_DEVICE
            if i
        ]
    of_device = [rng.choices(_OF_DEVICE, (70, 25, 2, 3))[0] for _ in range(sizes.devices)]
    devices: list[dict[str, Any]] = [
        {"rollout": "r-00000000", "device": name_of(i), "stage": "rest", "state": state,
         "attempt": 1, "facts": {}, "updated_at": now - i,
         "cause": "golden-mismatch" if state == "FAILED" else "",
         "detail": "worst error 0.84 on vector 3" if state == "FAILED" else ""}
        for i, state in enumerate(of_device)
    ]  # fmt: skip
    counts += [
        {"rollout": "r-00000000", "stage": "rest", "state": one, "devices": of_device.count(one)}
        for one in _OF_DEVICE
    ]
    _add(ctx, rollout_tables.rollout, rows)
    _add(ctx, rollout_tables.rollout_device, devices)
    _add(ctx, rollout_tables.rollout_count, counts)


def _work(ctx: Context, sizes: Sizes, now: float, rng: random.Random) -> None:
    """Audit log, operations, models with releases, datasets."""
    verbs = ("rollout.start", "device.enrol", "release.build", "alert.acknowledge")
    entries = [
        {"at": now - (sizes.audit - i) * 40, "actor": rng.choice(("maria", "jan", "admin")),
         "verb": rng.choice(verbs), "subject": name_of(i % sizes.devices),
         "detail": {"release": f"{MODEL}@1"}, "hash": f"{i:064x}"}
        for i in range(sizes.audit)
    ]  # fmt: skip
    _add(ctx, tables.audit, entries)
    operations = [
        {"id": f"op-{i:012x}", "kind": rng.choice(("train", "import")), "progress": 1.0,
         "state": rng.choices(("succeeded", "failed", "canceled"), (8, 1, 1))[0], "step": "",
         "subject": f"model-{i % 40:03d}", "created_at": now - i * 500, "created_by": "jan",
         "started_at": now - i * 500 + 1, "finished_at": now - i * 500 + 60, "params": {},
         "result": {"release": f"model-{i % 40:03d}@1"}, "error": ""}
        for i in range(sizes.operations)
    ]  # fmt: skip
    _add(ctx, tables.operation, operations)
    with ctx.store.read() as db:
        packed = dict(db.execute(tables.release.select()).mappings().one())
    models: list[dict[str, Any]] = [
        {"name": f"model-{i:03d}", "created_at": now - i} for i in range(sizes.models)
    ]
    _add(ctx, tables.model, models)
    versions = [(MODEL, v) for v in range(2, sizes.released)]
    versions += [(one["name"], v) for one in models for v in range(1, 4)]
    releases = [
        {**packed, "model": name, "version": v, "created_at": now - 1_000 * v,
         "state": rng.choices(("released", "refused", "candidate", "validated"), (6, 2, 1, 1))[0]}
        for name, v in versions
    ]  # fmt: skip
    _add(ctx, tables.release, releases)
    datasets = [
        {"name": f"parts-{i % 50:02d}", "version": 1 + i // 50, "sha256": f"{i:064x}",
         "size": 1_000 * i, "rows": 100 * i, "columns": [], "label": "ok", "parents": [],
         "how": "uploaded", "sites": {"north": 100 * i}, "created_at": now - i * 900,
         "created_by": "jan"}
        for i in range(sizes.datasets)
    ]  # fmt: skip
    _add(ctx, tables.dataset, datasets)


def _windows(ctx: Context, sizes: Sizes, now: float, ref: str) -> None:
    """Sums by hour of every site, and a day of drift of one."""
    hour = int(now // HOUR) * HOUR
    latency = [0] * 20 + [5, 60, 300, 500, 90, 12, 3]
    sums = [
        {"model": MODEL, "span": HOUR, "scope": "site", "at": hour - h * HOUR, "subject": site,
         "release": ref, "windows": 7_200, "rows": 90_000, "errors": 3, "slow": 9, "labelled": 900,
         "correct": 870, "since": float(hour - h * HOUR), "until": float(hour - h * HOUR + HOUR),
         "latency": latency}
        for site in SITES
        for h in range(sizes.hours)
    ]  # fmt: skip
    _add(ctx, window_tables.window_sum, sums)
    subjects = [("site", site) for site in SITES]
    subjects += [("device", name_of(i)) for i in range(sizes.devices)]
    _add(
        ctx,
        window_tables.window_subject,
        [
            {"model": MODEL, "scope": scope, "subject": one, "release": ref, "start_at": now}
            for scope, one in subjects
        ],
    )
    features = len(digits().names) + 3  # two outputs and the number of rows
    draw = np.random.default_rng(83)
    points = [
        {
            "scope": "site", "subject": SITES[7], "model": MODEL, "at": now - 60.0 * i,
            "release": ref, "windows": 3_000 - i, "covered": 24,
            "log10_p": (-draw.exponential(2, features)).astype("<f4").tobytes(),
            "moved": draw.exponential(0.3, features).astype("<f4").tobytes(),
            "alarmed": (draw.random(features) < 0.01).astype(np.uint8).tobytes(),
        }
        for i in range(1_440)
    ]  # fmt: skip
    _add(ctx, drift_point, points)
