"""Seeded federated rounds: a task with one malicious device, and a task with a quarantined round
that continues from the round before it."""

import numpy as np
from sqlalchemy import select

from browser.seed import DEVICES, MODEL, OTHER, SITES
from recorded_rounds import LOST, REFUSED, UPDATED, add_round, add_task
from shoal.controller.federated.checkpoints import round_quarantine
from shoal.controller.federated.records import Prepared
from shoal.controller.federated.rounds import machine, rows
from shoal.controller.host.context import Context
from shoal.controller.store.tables import release

TASK, POISONED, NEW = "stamps", "stamps-night", "stamps-new"
#: A device whose updates oppose all others from this round on.
MALICIOUS, MALICIOUS_FROM = DEVICES[3], 9
ROUNDS = 14
CLASSES = ("0", "1", "7")


def seed_rounds(ctx: Context) -> None:
    """Seed tasks of the model that the seeded fleet serves."""
    sha256 = ctx.blobs.put_bytes(np.zeros(3, np.float32).tobytes()).sha256
    prepared = Prepared(graph=sha256, loss_graph=sha256, inference=sha256, theta=sha256, size=3)
    names = [*DEVICES[:12]]
    sites = {name: SITES[i % 3] for i, name in enumerate(DEVICES)}
    random = np.random.default_rng(5)
    plan = add_task(ctx, TASK, f"{MODEL}@1", prepared, private=True, budget=4.0)
    for number in range(1, ROUNDS + 1):
        marks = dict.fromkeys(names, UPDATED)
        marks |= {names[number % 12]: LOST, names[(number * 5 + 1) % 12]: REFUSED}
        marks |= {MALICIOUS: UPDATED}
        done = number < ROUNDS
        add_round(
            ctx, plan, number, np.full(3, number, np.float32), marks=marks, sites=sites,
            state=machine.State.DONE if done else machine.State.TRAINING,
            result=_result(number), still={names[2]} if number == 6 else set(),
            facts={name: _update(name, number, random) for name in names}, late=3,
        )  # fmt: skip
    with ctx.store.write() as db:
        rows.set_task(db, ctx, TASK, epsilon=1.5)
    _released(ctx, names, sites)
    other = add_task(ctx, POISONED, f"{MODEL}@1", prepared)
    for number in (1, 2, 3):
        theta = np.full(3, 10 + number, np.float32)
        add_round(ctx, other, number, theta, sites=sites, marks=dict.fromkeys(names, UPDATED))
    round_quarantine.quarantine_round(
        ctx,
        actor="admin",
        task=POISONED,
        number=2,
        why=f"{MALICIOUS} was found with a second camera",
    )
    add_task(ctx, NEW, f"{MODEL}@1", prepared)


def _released(ctx: Context, names: list[str], sites: dict[str, str]) -> None:
    """Record a round as origin of the other model's release."""
    origin = {
        "task": TASK, "number": ROUNDS - 1, "rounds": list(range(1, ROUNDS)), "strategy": "fedavg",
        "release": f"{MODEL}@1", "epsilon": 1.44, "delta": 1e-6, "secure": False,
        "devices": [
            {"device": name, "site": sites[name], "rounds": 12, "examples": 2_000} for name in names
        ],
    }  # fmt: skip
    mine = (release.c.model == OTHER) & (release.c.version == 1)
    with ctx.store.write() as db:
        report = dict(db.scalar(select(release.c.report).where(mine)) or {})
        db.execute(release.update().where(mine).values(report=report | {"origin": origin}))


def _update(name: str, number: int, random: np.random.Generator) -> dict[str, object]:
    malicious = name == MALICIOUS and number >= MALICIOUS_FROM
    norm = float(2.2 / number**0.3 * random.uniform(0.8, 1.2))
    return {
        "examples": int(random.integers(40, 400)), "loss": 2.3 / number**0.5, "norm": norm,
        "cosine": -0.55 if malicious else float(random.uniform(0.2, 0.7)), "seconds": 3.4,
        "bytes": 6_812, "suspect": "against-the-others" if malicious else "",
    }  # fmt: skip


def _result(number: int) -> dict[str, object]:
    accuracy = 0.97 - 0.7 / number
    whole = {
        "rows": 2_400, "loss": 2.2 / number**0.7, "accuracy": accuracy, "devices": 9,
        "low": accuracy - 0.03, "high": min(1.0, accuracy + 0.03),
    }  # fmt: skip
    slices = {f"class:{name}": whole for name in CLASSES} | {f"site:{s}": whole for s in SITES}
    slices |= {f"class:7 site:{SITES[2]} profile:rpi4": whole | {"rows": 80, "low": 0.3}}
    return {
        "measured": whole, "slices": slices, "loss": 2.3 / number**0.5, "bytes": 61_308,
        "seconds": 41.0, "epsilon": 0.4 * number**0.5, "ignored": {"said-before": 2},
    }  # fmt: skip
