"""What is listed of baselines: a row each, written when its state or its alarms change."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, exists, func, or_, select
from sqlalchemy.dialects.sqlite import insert

from shoal.controller.host.context import Context
from shoal.controller.monitoring.findings import DriftTest, Subject, columns
from shoal.controller.store.drift_tables import drift_baseline
from shoal.controller.store.tables import device

LEARNING, WATCHING = "learning", "watching"


class Listed(NamedTuple):
    """What a baseline's row says: its site, state, and the features in alarm."""

    site: str
    state: str
    drifting: tuple[str, ...]


def save(
    db: Connection, ctx: Context, written: dict[Subject, Listed], tests: Sequence[DriftTest]
) -> None:
    """Write the rows of subjects for which they change. written: what they say, kept up to date."""
    now: dict[Subject, Listed] = {}
    began: dict[Subject, float] = {}
    for test in tests:
        state = LEARNING if test.learning else WATCHING
        now[test.subject] = Listed(test.site, state, tuple(test.drifting))
        began.setdefault(test.subject, test.at)
    rows: list[dict[str, Any]] = [
        {
            **columns(subject),
            "site": listed.site,
            "state": listed.state,
            "drifting": list(listed.drifting),
            "began_at": began[subject],
            "updated_at": ctx.clock(),
        }
        for subject, listed in now.items()
        if written.get(subject) != listed
    ]
    if not rows:
        return
    query = insert(drift_baseline)
    changed = {n: query.excluded[n] for n in ("site", "state", "drifting", "updated_at")}
    db.execute(query.on_conflict_do_update(set_=changed), rows)
    written.update(now)


def frozen(db: Connection) -> set[Subject]:
    """Subjects whose normal stays as it is."""
    key = (drift_baseline.c[name] for name in ("scope", "subject", "model", "release"))
    found = db.execute(select(*key).where(drift_baseline.c.frozen_at > 0))
    return {Subject(*row) for row in found}


def selected(
    model: str, *, device_name: str = "", site: str = "", release: str = ""
) -> list[ColumnElement[bool]]:
    """Conditions for a model's baselines of one device, of a site and its devices, or of all.

    release   "": that which each device serves, and those that a site's devices serve
    """
    of = drift_baseline.c
    wanted: list[ColumnElement[bool]] = [of.model == model]
    if device_name:
        wanted += [of.scope == "device", of.subject == device_name]
    if site:
        wanted.append(of.site == site)
    wanted.append(of.release == release if release else _served(model))
    return wanted


def _served(model: str) -> ColumnElement[bool]:
    of, at = drift_baseline.c, device.alias("serving").c  # the query may join the device too
    serves = func.json_extract(at.releases, f'$."{model}"') == of.release
    alone = and_(of.scope == "device", at.name == of.subject)
    member = and_(of.scope == "site", at.site == of.subject, at.state == "enrolled")
    return or_(
        and_(of.scope == "device", exists().where(alone, serves)),
        and_(of.scope == "site", exists().where(member, serves)),
    )
