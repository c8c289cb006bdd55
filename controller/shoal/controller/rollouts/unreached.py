"""Alerts of devices that cannot get what their group runs: one for each release and cause."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, func, select

from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft
from shoal.controller.host.context import Context
from shoal.controller.rollouts import device_states
from shoal.controller.rollouts.desired_state import TRAILING
from shoal.controller.store.rollout_tables import rollout_device
from shoal.controller.store.tables import alert

_NAMED = 4
_UNREACHED = sorted(device_states.FAILURES | {device_states.SKIPPED})
#: What a person decided, and devices that left: no fault.
_MEANT = ("held", "pinned", "excluded", "decommissioned")
STEPS = {
    device_states.UNSUPPORTED: "Publish a release with a variant for their profile, or leave them "
    "out: shoal device exclude {device} {model}",
    device_states.OUTDATED: "Update their agents: they get it as soon as they report",
    "disk-full": "Free disk on them; how much it needs: shoal device show {device}; then: "
    "shoal rollout resume {rollout}",
}
_STEP = (
    "Fix the cause and try them again: shoal rollout resume {rollout}; or leave them out: "
    "shoal device exclude {device} {model}"
)


def update_alerts(db: Connection, ctx: Context, rollout: str, release: str) -> None:
    """Open, update or close the alerts of the trailing stage of a rollout, by its devices now."""
    now = _causes(db, rollout)
    known = _open(db, rollout)
    for cause, (devices, names, detail) in now.items():
        draft = alert_draft(rollout, release, cause, devices, names, detail)
        row = known.get(draft.key)
        if row is None or row.detail != draft.detail:
            alerts.raise_alert(db, ctx, draft, findings=0 if row else 1)
    wanted = {_key(rollout, cause) for cause in now}
    for key in known.keys() - wanted:
        alerts.close(db, ctx, key, "no device is left")


def close_alerts(db: Connection, ctx: Context, rollout: str) -> None:
    """Close them all: the release is no group's any more."""
    for key in _open(db, rollout):
        alerts.close(db, ctx, key, "its group runs another release now")


def _causes(db: Connection, rollout: str) -> Mapping[str, tuple[int, list[str], str]]:
    """Cause -> number of devices, the first of them, and the detail of the first."""
    mine = rollout_device.c
    lost = (mine.rollout == rollout) & (mine.stage == TRAILING) & mine.state.in_(_UNREACHED)
    found = {}
    grouped = select(mine.cause, func.count()).where(lost, mine.cause.not_in(_MEANT))
    for cause, devices in db.execute(grouped.group_by(mine.cause)).all():
        these = select(mine.device, mine.detail).where(lost, mine.cause == cause)
        first = db.execute(these.order_by(mine.device).limit(_NAMED)).all()
        found[cause] = (devices, [row.device for row in first], first[0].detail)
    return found


def _open(db: Connection, rollout: str) -> dict[str, Row[Any]]:
    mine = alert.c.key.startswith(_key(rollout, "")) & alert.c.state.in_(alerts.UNRESOLVED)
    return {row.key: row for row in db.execute(select(alert).where(mine))}


def _key(rollout: str, cause: str) -> str:
    return f"unreached/{rollout}/{cause}"


def alert_draft(
    rollout: str, release: str, cause: str, devices: int, names: list[str], detail: str
) -> Draft:
    """Alert of so many devices, the first by `names`, that one cause keeps from a release."""
    model = release.partition("@")[0]
    more = f" and {devices - len(names)} more" if devices > len(names) else ""
    plural = "device" if devices == 1 else "devices"
    step = STEPS.get(cause, _STEP).format(device=names[0], model=model, rollout=rollout)
    return Draft(
        key=_key(rollout, cause),
        kind="rollout",
        severity="warning",
        title=f"{devices} {plural} cannot get {release}, which their group runs: {cause}",
        detail=f"{', '.join(names)}{more}. {names[0]}: {detail or cause}.",
        next_step=step,
        model=model,
        release=release,
    )
