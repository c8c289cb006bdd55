"""What a person decided about one device: pinned to a release, held, excluded from a model."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, delete, select

from shoal import manifest
from shoal.controller.access import audit
from shoal.controller.fleet import changed_devices, devices
from shoal.controller.host.context import Context
from shoal.controller.releases import models, retirement
from shoal.controller.rollouts import assignments
from shoal.controller.rollouts.group_records import Override
from shoal.controller.store import changes
from shoal.controller.store.chunks import chunks
from shoal.controller.store.group_tables import device_override
from shoal.errors import AbsentError, ConflictError, InputError

PIN, HOLD, EXCLUDE = "pin", "hold", "exclude"
_LONGEST = 200


def pin(ctx: Context, *, actor: str, device: str, release: str, reason: str = "") -> Override:
    """Have a device run `release`, whatever its group runs; rollouts leave it out.

    AbsentError; ConflictError for a release that is unsigned, quarantined or retired, or whose
    signature the device's ring does not accept.
    """
    found = _enrolled(ctx, device)
    with ctx.store.read() as db:
        role = assignments.role_of(db, release)
        retirement.check_release(db, release)
    if found.ring not in assignments.rings(role):
        raise ConflictError(
            f"{device} is in ring {found.ring} and accepts no {role}",
            f"sign it: shoal release publish {release}",
        )
    model = manifest.parse_release(release)[0]
    return _decide(ctx, actor, device, PIN, model, reason, release)


def unpin(ctx: Context, *, actor: str, device: str, model: str) -> None:
    """Have a device run what its group runs again; AbsentError if it is not pinned."""
    _lift(ctx, actor, device, PIN, model)


def hold(ctx: Context, *, actor: str, device: str, reason: str = "") -> Override:
    """Order nothing to a device until it is released: what it runs it keeps. AbsentError."""
    _enrolled(ctx, device)
    return _decide(ctx, actor, device, HOLD, "", reason)


def release_hold(ctx: Context, *, actor: str, device: str) -> None:
    """End a hold: the device converges on what it is to run. AbsentError if it is not held."""
    _lift(ctx, actor, device, HOLD, "")


def exclude(ctx: Context, *, actor: str, device: str, model: str, reason: str = "") -> Override:
    """Have a device take no release of `model` by a group or a rollout. AbsentError."""
    _enrolled(ctx, device)
    models.get_model(ctx, model)
    return _decide(ctx, actor, device, EXCLUDE, model, reason)


def include(ctx: Context, *, actor: str, device: str, model: str) -> None:
    """Take an exclusion back; AbsentError if there is none."""
    _lift(ctx, actor, device, EXCLUDE, model)


def end_pins(db: Connection, ctx: Context, actor: str, release: str) -> list[str]:
    """End the pins to a release that was revoked; the devices, by name."""
    mine = (device_override.c.kind == PIN) & (device_override.c.release == release)
    names = list(db.scalars(select(device_override.c.device).where(mine)))
    db.execute(delete(device_override).where(mine))
    for name in names:
        detail = {"model": manifest.parse_release(release)[0], "why": f"{release} was revoked"}
        _note(db, ctx, actor, name, f"{PIN}.end", detail)
    return sorted(names)


def overrides_of(db: Connection, names: Iterable[str]) -> dict[str, list[Override]]:
    """Device -> its overrides; devices without one are absent."""
    found: dict[str, list[Override]] = {}
    for some in chunks(sorted(names)):
        query = select(device_override).where(device_override.c.device.in_(some))
        for row in db.execute(query.order_by(device_override.c.kind, device_override.c.model)):
            found.setdefault(row.device, []).append(_record(row))
    return found


def why_left_out(overrides: Iterable[Override], model: str) -> tuple[str, str] | None:
    """(cause, detail) why a rollout of `model` leaves a device out; None if it does not."""
    for one in overrides:
        because = f": {one.reason}" if one.reason else ""
        if one.kind == HOLD:
            return "held", f"held by {one.created_by}{because}"
        if one.model == model:
            what = f"pinned to {one.release}" if one.kind == PIN else "excluded"
            return ("pinned" if one.kind == PIN else "excluded"), f"{what}{because}"
    return None


def _decide(
    ctx: Context, actor: str, device: str, kind: str, model: str, reason: str, release: str = ""
) -> Override:
    if len(reason) > _LONGEST:
        raise InputError(f"reason of {len(reason)} characters", f"write at most {_LONGEST}")
    values: dict[str, Any] = {
        "device": device, "kind": kind, "model": model, "release": release, "reason": reason,
        "created_at": ctx.clock(), "created_by": actor,
    }  # fmt: skip
    with ctx.store.write() as db:
        db.execute(delete(device_override).where(*_is(device, kind, model)))
        db.execute(device_override.insert().values(**values))
        detail = {"model": model, "release": release, "reason": reason}
        _note(db, ctx, actor, device, kind, {k: v for k, v in detail.items() if v})
    return Override(**values)


def _lift(ctx: Context, actor: str, device: str, kind: str, model: str) -> None:
    with ctx.store.write() as db:
        gone = db.execute(delete(device_override).where(*_is(device, kind, model))).rowcount
        if not gone:
            of = f" for {model}" if model else ""
            raise AbsentError(kind, f"of {device}{of}", f"see: shoal device show {device}")
        _note(db, ctx, actor, device, f"{kind}.end", {"model": model} if model else {})


def _note(
    db: Connection, ctx: Context, actor: str, device: str, verb: str, detail: dict[str, Any]
) -> None:
    audit.record(db, ctx, actor, f"device.{verb}", device, **detail)
    changed_devices.add(db, [device], changed_devices.DECIDED)
    changes.note(db, ctx, "device", device)


def _is(device: str, kind: str, model: str) -> tuple[Any, ...]:
    mine = device_override.c
    return mine.device == device, mine.kind == kind, mine.model == model


def _enrolled(ctx: Context, name: str) -> Any:
    found = devices.get_device(ctx, name)
    if found.state != devices.ENROLLED:
        raise ConflictError(f"device {name} is {found.state}", "see: shoal device list")
    return found


def _record(row: Row[Any]) -> Override:
    return Override.of_row(row)
