"""The next step of every alert works as it is printed: the CLI's own parser takes its commands."""

import ast
import re
import shlex
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from shoal.cli.__main__ import cli
from shoal.controller.alerts.members import Group
from shoal.controller.alerts.records import Draft
from shoal.controller.conditions import drafts
from shoal.controller.conditions.health import KIND_OF
from shoal.controller.federated.planning import scheduling
from shoal.controller.fleet import duplicate_devices
from shoal.controller.host.settings import Settings
from shoal.controller.ingest import flooding
from shoal.controller.monitoring import findings, triggers
from shoal.controller.monitoring.records import Finding
from shoal.controller.notifications.io import sender
from shoal.controller.rollouts import (
    quarantine_withdrawal,
    release_revocation,
    served_files,
    stepper,
    trailing,
    unreached,
)
from shoal.controller.store import tables
from shoal.controller.store.io.database import Store
from shoal.wire import Installed
from stores import new_store

NOW = 1_800_000_000.0
SITES = ("north", "", "hall 2; east")
#: A command ends where the sentence goes on: punctuation, or a word between two commands.
_COMMAND = re.compile(r"shoal(?:-agent|-controller)?(?: (?!or )(?:'[^']*'|[^\s';,.)]|\.(?=\S))+)+")
#: Where drafts are made: file -> function.
_MADE = {
    "conditions/clocks.py": "_draft",
    "conditions/drafts.py": "_draft",
    "federated/planning/scheduling.py": "stopped_draft",
    "fleet/duplicate_devices.py": "alert_draft",
    "ingest/flooding.py": "alert_draft",
    "monitoring/findings.py": "alert_draft",
    "notifications/io/sender.py": "alert_draft",
    "rollouts/quarantine_withdrawal.py": "alert_draft",
    "rollouts/release_revocation.py": "alert_draft",
    "rollouts/served_files.py": "alert_draft",
    "rollouts/stepper.py": "stalled_draft",
    "rollouts/trailing.py": "alert_draft",
    "rollouts/unreached.py": "alert_draft",
}


def parse(command: str) -> None:
    """Parse one command line as `shoal` does, without running it."""
    program, *words = shlex.split(command)
    assert program == "shoal", f"{command!r} is not for the CLI: nothing here parses it"
    node, context = cli, click.Context(cli, info_name="shoal")
    while isinstance(node, click.Group):
        assert words, f"{command!r} names no command"
        name, node, words = node.resolve_command(context, words)
        assert node is not None
        if not isinstance(node, click.Group):
            node.make_context(name, list(words), parent=context)
            return
        context = click.Context(node, info_name=name, parent=context)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Three sites with five devices each; one model trained here, by a script, and imported."""
    made = new_store(tmp_path_factory.mktemp("next-steps"))
    devices = [
        {"name": f"cam-{s}-{i}", "site": site, "state": "enrolled", "seen_at": NOW - 9000.0 * s,
         "ring": "stable", "profile": "rpi4", "line": "", "labels": {}, "enrolled_at": 0.0,
         "releases": {}, "variants": {}, "facts": {}}
        for s, site in enumerate(SITES) for i in range(5)
    ]  # fmt: skip
    devices[0]["releases"] = {"trained": "trained@1"}
    reports = {"trained": "logistic", "scripted": "mlp", "imported": "imported", "lone": "ridge"}
    with made.write() as db:
        db.execute(tables.device.insert(), devices)
        db.execute(tables.model.insert(), [{"name": name, "created_at": 0.0} for name in reports])
        db.execute(
            tables.operation.insert().values(
                id="op-1", kind="train", subject="scripted", state="succeeded",
                params={"script": "9c" * 32}, result={}, created_at=0.0,
            )
        )  # fmt: skip
        for name, estimator in reports.items():
            data = "" if name == "lone" else f"{name}-data@3"
            db.execute(
                tables.release.insert().values(
                    model=name, version=1, dataset=data, report={"estimator": estimator},
                    operation="op-1" if name == "scripted" else "", manifest=b"", references=b"",
                )
            )  # fmt: skip
    yield made
    made.close()


def every_draft(store: Store) -> Iterator[Draft]:
    """Alerts of every kind and wording, of devices and sites with awkward names among them."""
    settings = Settings()
    ctx: Any = SimpleNamespace(settings=settings, clock=lambda: NOW)
    kinds = {*drafts.WORDS, *KIND_OF.values(), "fault", "offline", "clock"}
    with store.read() as db:
        for kind in sorted(kinds):
            for s, site in enumerate(SITES):
                for count in (1, 3):
                    first = [SimpleNamespace(device=f"cam-{s}-0", detail="it is so", part="m")]
                    group: Any = Group("key", kind, site, "m", "warning", count, first)
                    yield drafts.draft(db, ctx, group)
        for model in ("trained", "scripted", "imported", "lone"):
            for site in SITES:
                step = triggers.retrain_step(db, f"{model}@1")
                yield findings.alert_draft(site, [finding(model)], step)
        yield release_revocation.alert_draft(db, "trained@1", ["cam-9 fell back"])
    installed = Installed(
        model="m", release="m@2", variant="fp32", slot="a", sha256="0" * 64, role="release",
        since_s=0.0, timings_us={},
    )  # fmt: skip
    flood = {"device": "cam-1", "messages": 9, "bytes": 9, "cut_until": NOW + 9, "cuts": 1}
    for site in SITES:
        yield duplicate_devices.alert_draft("cam-1", site, "Two sessions.")
        yield served_files.alert_draft("cam-1", site, [installed])
        yield flooding.alert_draft(ctx, flood, site)
    for failed in (True, False):
        yield stepper.stalled_draft("r-1", "m@2", "cam-1 failed", failed=failed)
    for cause in (*unreached.STEPS, "golden-mismatch"):
        yield unreached.alert_draft("r-1", "m@2", cause, 1, ["cam-1"], "it is so")
    yield trailing.alert_draft("r-1", "m@2", "2 of 3 failed.")
    yield scheduling.stopped_draft("scratches", "m", "nobody came")
    for way_back in ("m@1", ""):
        step = quarantine_withdrawal.back_step("scratches", "m", way_back)
        yield quarantine_withdrawal.alert_draft("scratches", "m", {"m@2": ["cam-1"]}, step)
    yield sender.alert_draft("notifications/chat", "chat", "no route")


def finding(model: str) -> Finding:
    return Finding(
        id=1, at=0.0, kind="drift", scope="device", subject="cam-3", model=model,
        release=f"{model}@1", feature="contrast", channel="mean", what="mean down by 0.8 sd",
        log10_p=-31.4, log10_alpha=-8.2, moved=0.8, psi=0.9, rows=120,
    )  # fmt: skip


def test_every_command_in_the_next_step_of_an_alert_is_taken_by_the_cli(store: Store):
    refused, commands = [], set()
    for draft in every_draft(store):
        assert draft.next_step, draft
        found = _COMMAND.findall(draft.next_step)
        assert len(found) == draft.next_step.count("shoal "), draft.next_step
        commands.update(found)
    for command in sorted(commands):
        try:
            parse(command)
        except (click.ClickException, AssertionError) as error:
            refused.append(f"{command}: {error}")
    assert refused == []
    assert "shoal model train trained --dataset trained-data --estimator logistic" in commands
    assert "shoal device list --site 'hall 2; east' --state offline" in commands
    assert "shoal model policy scripted --retrain-on-drift --dataset scripted-data" in commands


def test_no_alert_is_drafted_anywhere_but_where_this_test_looks():
    root, made = Path(str(files("shoal.controller"))), {}
    for path in root.rglob("*.py"):
        text = path.read_text()
        if "Draft(" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and any(map(_drafts, ast.walk(node))):
                made[str(path.relative_to(root))] = node.name
    assert made == _MADE


def _drafts(node: ast.AST) -> bool:
    """Whether it makes a draft with words in it."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Draft"
        and any(keyword.arg == "next_step" for keyword in node.keywords)
    )
