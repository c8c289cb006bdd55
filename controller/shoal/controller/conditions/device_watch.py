"""What a batch of messages says of the devices' condition, inside its transaction."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete

from shoal.controller.alerts import members
from shoal.controller.alerts.members import Key, Sign
from shoal.controller.conditions import answers, clocks, health, offline, outboxes
from shoal.controller.conditions.clocks import DeviceClock
from shoal.controller.conditions.drafts import draft
from shoal.controller.host.context import Context
from shoal.controller.host.windows import NewWindow
from shoal.controller.store.alert_tables import device_share

_log = logging.getLogger(__name__)
#: What a window that is older than this says of the machine is history.
STALE_S = 900.0


def forget(db: Connection, ctx: Context, name: str) -> None:
    """Forget what a device showed, and its rhythm: it was decommissioned, or enrols anew."""
    offline.forget(db, name)
    db.execute(delete(device_share).where(device_share.c.device == name))
    members.forget(db, ctx, name, draft)


class BatchWatch:
    """The watch over one batch.

    devices   device -> its row before the batch: seen_at, site
    """

    def __init__(
        self, db: Connection, ctx: Context, devices: Mapping[str, Any], now: float
    ) -> None:
        self.db, self.ctx, self.devices, self.now = db, ctx, devices, now
        self._dirty: set[str] = set()
        self._wrong: set[str] = set()

    def note(
        self,
        spoke: set[str],
        windows: Sequence[NewWindow],
        events: Sequence[Mapping[str, Any]],
        clock_reports: Sequence[DeviceClock] = (),
    ) -> None:
        """Learn from devices that spoke, their new windows, events and clocks; raise and end
        alerts.

        A rule that fails is logged and costs neither telemetry nor the other rules.
        """
        heard = {n: (self.devices[n].seen_at, self.devices[n].site) for n in spoke}
        known = members.of_devices(self.db, spoke)
        self._guarded(lambda: offline.spoke(self.db, self.ctx, heard, self.now))
        self._guarded(lambda: self._clocks(clock_reports, known))
        self._guarded(lambda: self._levels(windows, known))
        self._guarded(lambda: self._outboxes(windows, known))
        self._guarded(lambda: self._answers(windows, known))
        self._guarded(lambda: self._faults(windows, events, known))
        members.refresh(self.db, self.ctx, self._dirty, draft)

    def _guarded(self, rule: Callable[[], set[str]]) -> None:
        try:
            with self.db.begin_nested():
                dirty = rule()
        except Exception:  # noqa: BLE001 - a bug in a rule must not cost telemetry
            _log.exception("conditions of devices")
        else:
            self._dirty |= dirty

    def _levels(self, windows: Sequence[NewWindow], known: Mapping[Key, Any]) -> set[str]:
        limits = self.ctx.settings.alerts
        found: dict[Key, tuple[NewWindow, health.Level]] = {}
        for w in windows:
            if w.start_at + w.window_s < self.now - STALE_S:
                continue
            levels = health.of_window(w, limits, lambda kind: (w.device, kind, "") in known)  # noqa: B023
            found |= {(w.device, level.kind, ""): (w, level) for level in levels}
        signs = [
            Sign(w.device, w.site, one.kind, detail=one.detail, hold_s=health.HOLD_S)
            for w, one in found.values()
            if one.bad
        ]
        well = (key for key, (_, one) in found.items() if not one.bad)
        return self._store(signs, [key for key in well if self._measured(known, key)], known)

    def _outboxes(self, windows: Sequence[NewWindow], known: Mapping[Key, Any]) -> set[str]:
        fresh = [w for w in windows if w.start_at + w.window_s >= self.now - STALE_S]
        signs, well = outboxes.note(self.db, fresh, known, self.now)
        return self._store(signs, [key for key in well if self._measured(known, key)], known)

    def _measured(self, known: Mapping[Key, Any], key: Key) -> bool:
        """Whether a condition came from a measured level: a fault ends by itself."""
        return key in known and not known[key].calm_s

    def _answers(self, windows: Sequence[NewWindow], known: Mapping[Key, Any]) -> set[str]:
        signs, over = answers.note(self.db, windows, known)
        return self._store(signs, over, known)

    def _clocks(self, reports: Sequence[DeviceClock], known: Mapping[Key, Any]) -> set[str]:
        sites = [(one, self.devices[one.device].site) for one in reports]
        signs, right = clocks.signs_of(sites, self.ctx.settings.fleet.clock_skew_s)
        self._wrong = {sign.device for sign in signs}
        return self._store(signs, right, known)

    def _faults(
        self,
        windows: Sequence[NewWindow],
        events: Sequence[Mapping[str, Any]],
        known: Mapping[Key, Any],
    ) -> set[str]:
        found = [health.of_merged(w) for w in windows]
        wrong = self._wrong | {device for device, kind, _ in known if kind == clocks.KIND}
        found += [
            health.of_event(one, self.devices[one["device"]].site)
            for one in events
            if one["cause"] != clocks.KIND or one["device"] not in wrong  # it has its alert
        ]
        signs = [sign for sign in found if sign is not None]
        # A rule before may have stored the same trouble by what was measured.
        return self._store(signs, [], members.of_devices(self.db, {one.device for one in signs}))

    def _store(
        self, signs: Sequence[Sign], over: Sequence[Key], known: Mapping[Key, Any]
    ) -> set[str]:
        ended = members.end(self.db, over, known)
        return ended | members.show(self.db, self.ctx, signs, known)
