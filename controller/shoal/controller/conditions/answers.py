"""Failed requests, slow ones and wrong answers of a model on a device, against its own past."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from shoal.controller.alerts.members import Key, Sign
from shoal.controller.conditions.shares import Share, observe
from shoal.controller.host.windows import NewWindow
from shoal.controller.store.alert_tables import device_share
from shoal.controller.store.chunks import chunks

#: kind -> trials of its baseline. Labels are few: their baseline is short.
BASELINE = {"errors": 500, "latency": 500, "accuracy": 200}
_KEY = ("device", "model", "kind")


def note(
    db: Connection, windows: Sequence[NewWindow], known: Mapping[Key, Any]
) -> tuple[list[Sign], list[Key]]:
    """Add windows to what is known of their models; signs, and keys of what is well again.

    A new release begins anew. A state is written only when it changed: not for a device whose
    requests succeed.
    """
    counted = [(w, kind, *numbers) for w in windows for kind, numbers in _numbers(w)]
    stored = _stored(db, {w.device for w, *_ in counted})
    states = dict(stored)
    signs: dict[Key, Sign] = {}
    over: set[Key] = set()
    for w, kind, trials, hits in counted:
        key, member = (w.device, w.model, kind), (w.device, kind, w.model[:80])
        release, share = states.get(key, (w.release, Share()))
        share = observe(share if release == w.release else Share(), trials, hits, BASELINE[kind])
        states[key] = (w.release, share)
        if share.risen:
            signs[member] = _sign(w, kind, share, trials, hits)
            over.discard(member)
        elif share.score == 0 and member in known | signs.keys():
            over.add(member)
            signs.pop(member, None)
    _save(db, {k: v for k, v in states.items() if stored.get(k) != v})
    return list(signs.values()), list(over)


def _numbers(w: NewWindow) -> Iterable[tuple[str, tuple[int, int]]]:
    """(kind, (trials, bad ones)) of a window."""
    requests = w.rows + w.errors
    yield "errors", (requests, w.errors)
    yield "latency", (w.rows, w.slow)
    yield "accuracy", (w.labelled, w.labelled - w.correct)


def _sign(w: NewWindow, kind: str, share: Share, trials: int, hits: int) -> Sign:
    what = {"errors": "failed", "latency": "slow", "accuracy": "wrong"}[kind]
    detail = f"{hits} of {trials} {what} in the last window, usually {share.usual:.1%} at most"
    severity = "critical" if kind == "errors" and hits > trials / 2 else "warning"
    return Sign(w.device, w.site, kind, w.model[:80], severity, detail)


def _stored(
    db: Connection, devices: Iterable[str]
) -> dict[tuple[str, str, str], tuple[str, Share]]:
    found = {}
    for names in chunks(sorted(devices)):
        query = select(device_share).where(device_share.c.device.in_(names))
        for row in db.execute(query):
            share = Share(row.trials, row.hits, row.score)
            found[row.device, row.model, row.kind] = (row.release, share)
    return found


def _save(db: Connection, states: Mapping[tuple[str, str, str], tuple[str, Share]]) -> None:
    rows = [
        dict(zip(_KEY, key, strict=True)) | {"release": release} | share._asdict()
        for key, (release, share) in states.items()
        if share != Share()
    ]
    if rows:
        upsert = insert(device_share)
        new = {n: upsert.excluded[n] for n in ("release", "trials", "hits", "score")}
        db.execute(upsert.on_conflict_do_update(index_elements=_KEY, set_=new), rows)
