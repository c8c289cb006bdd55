"""Outboxes that grow: a device makes more messages than its link carries.

What waits after an outage is no fault, since it is sent meanwhile. So what waits is held against
what waited half an hour before, and kept for the next comparison: one row for a device with a
backlog, written once in half an hour.
"""

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from shoal.controller.alerts.members import Key, Sign
from shoal.controller.host.windows import NewWindow
from shoal.controller.store.alert_tables import device_share
from shoal.controller.store.chunks import chunks

KIND = "outbox"
#: So many messages may wait on any link; outboxes are compared after so many seconds.
FEW, COMPARED_S = 60, 1_800.0
_KEY = ("device", "model", "kind")


def note(
    db: Connection, windows: Sequence[NewWindow], known: Mapping[Key, object], now: float
) -> tuple[list[Sign], list[Key]]:
    """Signs of outboxes that grew, and keys of those that do not any more.

    windows   of the last minutes; older ones say nothing of now
    """
    newest = {w.device: (w, int(n)) for w in windows if (n := _waiting(w)) is not None}
    signs, over, kept = [], [], []
    before = _stored(db, [name for name, (_, waiting) in newest.items() if waiting > FEW])
    for name, (w, waiting) in newest.items():
        had, at = before.get(name, (0, 0.0))
        if waiting <= FEW:
            over.append((name, KIND, ""))
        elif not now - 2 * COMPARED_S < at <= now:  # the backlog begins
            kept.append((name, waiting, now))
        elif now - at >= COMPARED_S:
            kept.append((name, waiting, now))
            detail = f"{waiting} messages wait, {(now - at) / 60:.0f} min before it were {had}"
            if waiting > had:
                signs.append(Sign(name, w.site, KIND, detail=detail))
            else:
                over.append((name, KIND, ""))
    _save(db, kept)
    return signs, [key for key in over if key in known]


def _waiting(w: NewWindow) -> float | None:
    value = w.health.get("outbox")
    return value if isinstance(value, int | float) else None


def _stored(db: Connection, devices: Iterable[str]) -> dict[str, tuple[int, float]]:
    """Device -> messages that waited, and when."""
    found = {}
    for names in chunks(sorted(devices)):
        mine = device_share.c.device.in_(names) & (device_share.c.kind == KIND)
        for row in db.execute(select(device_share).where(mine)):
            found[row.device] = (row.trials, row.score)
    return found


def _save(db: Connection, rows: Sequence[tuple[str, int, float]]) -> None:
    if rows:
        made = [
            {"device": name, "model": "", "kind": KIND, "release": "", "trials": waiting,
             "hits": 0, "score": at}
            for name, waiting, at in rows
        ]  # fmt: skip
        upsert = insert(device_share)
        new = {n: upsert.excluded[n] for n in ("trials", "score")}
        db.execute(upsert.on_conflict_do_update(index_elements=_KEY, set_=new), made)
