"""Versions that a followed alias moved to: imported, signed, rolled out; the outcome as tags.

Each version of a rule is dealt with once: its row is written when it is seen, each state before the
next act, and every act finds what it has begun already. So power may fail between any two lines.
"""

import logging
from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import Row, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from shoal.controller.access import roles, users
from shoal.controller.host.context import Context
from shoal.controller.mlflow import follows, imports, mirror, registry
from shoal.controller.mlflow.records import (
    CANDIDATE,
    FAILED,
    IMPORTING,
    REFUSED,
    ROLLING_OUT,
    SEEN,
    SIGNING,
    STARTING,
    SUPERSEDED,
    Follow,
)
from shoal.controller.mlflow.registry import Registry
from shoal.controller.operations import operations
from shoal.controller.releases import releases
from shoal.controller.rollouts import rollouts
from shoal.controller.rollouts.machine import ENDED
from shoal.controller.rollouts.machine import State as RolloutState
from shoal.controller.store.mlflow_tables import mlflow_follow, mlflow_version
from shoal.controller.store.rollout_tables import rollout
from shoal.controller.store.tables import operation
from shoal.controller.training.imports import ImportRequest, ReadFacts
from shoal.errors import (
    AbsentError,
    ConflictError,
    DeniedError,
    LinkError,
    SettingError,
    ShoalError,
)

_log = logging.getLogger(__name__)
#: Acts of one version in a step; seconds between two tries of what was refused for now.
_ACTS, _AGAIN_S = 5, 10.0
#: The role that a rule's author needs when it acts.
_ROLE = "approver"
Change = dict[str, Any]


class Follower:
    """Follows the aliases of one controller; there must be no second."""

    def __init__(self, ctx: Context, server: Registry, read_facts: ReadFacts) -> None:
        self._ctx, self._server, self._read_facts = ctx, server, read_facts
        self._look_at = 0.0
        self._not_before: dict[tuple[str, int], float] = {}
        self._acts: dict[str, Callable[[Follow, Row[Any]], Change]] = {
            SEEN: self._import,
            IMPORTING: self._wait_for_import,
            SIGNING: self._sign,
            STARTING: self._start,
            ROLLING_OUT: self._watch,
        }

    def step(self) -> None:
        """Look at the aliases when it is time, move what is open, and write the outcomes."""
        ctx, now = self._ctx, self._ctx.clock()
        with ctx.store.read() as db:
            rules = [follows.of_row(row) for row in db.execute(select(mlflow_follow))]
        if rules and now >= self._look_at:
            self._look_at = now + ctx.settings.mlflow.poll_s
            self._look(rules)
        opened = select(mlflow_version).where(mlflow_version.c.ended_at == 0)
        untagged = select(mlflow_version).where(mlflow_version.c.written != mlflow_version.c.tags)
        by_name = {rule.name: rule for rule in rules}
        with ctx.store.read() as db:
            rows = db.execute(opened.order_by(mlflow_version.c.version)).all()
        for row in rows:
            if row.follow in by_name:
                self._move(by_name[row.follow], row)
        with ctx.store.read() as db:
            rows = db.execute(untagged).all()
        for row in rows:
            self._tag(row)

    # --- aliases ------------------------------------------------------------------------------

    def _look(self, rules: list[Follow]) -> None:
        for rule in rules:
            try:
                version = self._server.alias_version(registry.parse_reference(rule.name))
                error = ""
            except AbsentError:
                version, error = "", ""  # no such alias now
            except ShoalError as failure:
                version, error = rule.version, str(failure)[:500]
            self._seen(rule, version, error)

    def _seen(self, rule: Follow, version: str, error: str) -> None:
        """Write down what an alias names; a version that is new to the rule is to be dealt with."""
        ctx, now = self._ctx, self._ctx.clock()
        mine = mlflow_version.c.follow == rule.name
        moved = bool(version) and version != rule.version
        with ctx.store.write() as db:
            values = {"version": version, "checked_at": now, "error": error}
            one = update(mlflow_follow).where(mlflow_follow.c.name == rule.name)
            db.execute(one.values(values))
            if not moved:
                return
            older = mine & mlflow_version.c.state.in_((SEEN, IMPORTING, SIGNING, STARTING))
            text = f"the alias moved to version {version}"
            ended = {"state": SUPERSEDED, "reason": text, "ended_at": now}
            later = older & (mlflow_version.c.version != int(version))
            db.execute(update(mlflow_version).where(later).values(**ended))
            row = upsert(mlflow_version).values(
                follow=rule.name, version=int(version), state=SEEN, seen_at=now
            )
            db.execute(row.on_conflict_do_nothing())

    # --- versions -----------------------------------------------------------------------------

    def _move(self, rule: Follow, row: Row[Any]) -> None:
        """Act until nothing changes; what is refused for now is tried again."""
        key = (row.follow, row.version)
        if self._ctx.clock() < self._not_before.get(key, 0.0):
            return
        for _ in range(_ACTS):
            try:
                if row.state in (SEEN, SIGNING, STARTING):
                    self._check_author(rule)
                changes = self._acts[row.state](rule, row)
            except (LinkError, ConflictError, DeniedError, SettingError) as error:
                self._not_before[key] = self._ctx.clock() + _AGAIN_S
                changes = {"reason": str(error)[:500]}
            except ShoalError as error:
                changes = self._end(FAILED, str(error))
            before = {name: getattr(row, name) for name in changes}
            if before == changes:
                return
            row = self._save(row, changes)
            if row.ended_at or "state" not in changes:
                return

    def _import(self, rule: Follow, row: Row[Any]) -> Change:
        begun = self._begun(rule, row)
        if not begun:
            asked, given = registry.parse_reference(rule.name), rule.rule
            request = ImportRequest(
                given.task, given.dataset, given.labels, given.pipeline, {}, given.kinds,
                given.settings, trigger=f"mlflow:{rule.name}",
            )  # fmt: skip
            begun = imports.start(
                self._ctx, self._server, self._read_facts, actor=rule.created_by,
                model=rule.model, reference=f"mlflow:{asked.name}/{row.version}", request=request,
            ).id  # fmt: skip
        return {"state": IMPORTING, "operation": begun, "reason": ""}

    def _begun(self, rule: Follow, row: Row[Any]) -> str:
        """The import that this version has begun already, before the power failed; "" for none."""
        mine = operation.c
        name = f"{registry.parse_reference(rule.name).name}/{row.version}"
        query = select(mine.id).where(
            mine.kind == "import",
            mine.subject == rule.model,
            mine.created_at >= row.seen_at,
            mine.params["trigger"].as_string() == f"mlflow:{rule.name}",
            mine.params["source"]["name"].as_string() == name,
        )
        with self._ctx.store.read() as db:
            return db.scalar(query.limit(1)) or ""

    def _wait_for_import(self, rule: Follow, row: Row[Any]) -> Change:
        one = operations.get_operation(self._ctx, row.operation)
        if one.state == operations.SUCCEEDED:
            return {"state": SIGNING, "release": one.result["release"]}
        return self._end(FAILED, one.error) if one.state in operations.ENDED else {}

    def _sign(self, rule: Follow, row: Row[Any]) -> Change:
        found = releases.get_release(self._ctx, row.release)
        if found.state == releases.REFUSED:
            return self._end(REFUSED, found.why_refused)
        if rule.rule.policy == CANDIDATE:
            releases.sign_candidate(self._ctx, row.release)
        else:
            releases.publish(self._ctx, actor=rule.created_by, ref=row.release)
        return {"state": STARTING, "reason": ""}

    def _start(self, rule: Follow, row: Row[Any]) -> Change:
        mine = select(rollout.c.id).where(rollout.c.release == row.release)
        with self._ctx.store.read() as db:
            begun = db.scalar(mine.limit(1)) or ""
        if not begun:
            plan = msgspec.structs.replace(rule.rule.plan, release=row.release)
            begun = rollouts.start(self._ctx, actor=rule.created_by, plan=plan).id
        return {"state": ROLLING_OUT, "rollout": begun, "reason": ""}

    def _watch(self, rule: Follow, row: Row[Any]) -> Change:
        one = rollouts.get_rollout(self._ctx, row.rollout)
        if RolloutState(one.state) in ENDED:
            return self._end(one.state, one.reason)
        return {"reason": f"{one.state}: {one.reason}" if one.reason else one.state}

    def _check_author(self, rule: Follow) -> None:
        """DeniedError unless who made the rule may still sign: it acts in that user's name."""
        for one in users.list_users(self._ctx):
            may = not one.disabled_at and roles.reaches(one.role, _ROLE)
            if one.name == rule.created_by and may:
                return
        raise DeniedError(
            f"{rule.created_by}, who follows {rule.name}, is no {_ROLE} any more",
            f"let another one follow it: shoal mlflow unfollow {rule.name}, then follow it",
            signed_in=True,
        )

    def _end(self, state: str, reason: str) -> Change:
        return {"state": state, "reason": reason[:2_000], "ended_at": self._ctx.clock()}

    def _save(self, row: Row[Any], changes: Change) -> Row[Any]:
        mine = (mlflow_version.c.follow == row.follow) & (mlflow_version.c.version == row.version)
        with self._ctx.store.write() as db:
            db.execute(update(mlflow_version).where(mine).values(**changes))
            found = db.execute(select(mlflow_version).where(mine)).one()
            tags = msgspec.json.encode(self._tags(found)).decode()
            db.execute(update(mlflow_version).where(mine).values(tags=tags))
        return found

    # --- outcomes -----------------------------------------------------------------------------

    def _tags(self, row: Row[Any]) -> dict[str, str]:
        page = f"rollouts/{row.rollout}" if row.rollout else f"releases/{row.release}"
        return {
            "shoal.state": row.state,
            "shoal.reason": row.reason,
            "shoal.release": row.release,
            "shoal.rollout": row.rollout,
            "shoal.url": mirror.console(self._ctx, page) if row.release else "",
        }

    def _tag(self, row: Row[Any]) -> None:
        """Write the outcome back to MLflow, what has changed of it."""
        key, now = (f"tags of {row.follow}", row.version), self._ctx.clock()
        if now < self._not_before.get(key, 0.0):
            return
        wanted = msgspec.json.decode(row.tags, type=dict[str, str])
        has = msgspec.json.decode(row.written, type=dict[str, str]) if row.written else {}
        name = registry.parse_reference(row.follow).name
        try:
            for tag, text in wanted.items():
                if has.get(tag, "") != text:
                    body = {"name": name, "version": str(row.version), "key": tag, "value": text}
                    self._server.call("POST", "model-versions/set-tag", body)
        except ShoalError as error:
            self._not_before[key] = now + _AGAIN_S
            _log.warning("%s version %d is not tagged: %s", row.follow, row.version, error)
            return
        mine = (mlflow_version.c.follow == row.follow) & (mlflow_version.c.version == row.version)
        with self._ctx.store.write() as db:
            db.execute(update(mlflow_version).where(mine).values(written=row.tags))
