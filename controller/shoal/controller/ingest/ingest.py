"""Ingest: stores the messages of devices, each exactly once although MQTT delivers at least once.

One batch is one transaction, deduplicated by (device, boot, seq). Acks are returned after the
commit. A message that cannot be stored is logged and never stops the others; when its sequence
number is readable it is acked too and stored as a fault, because a redelivery would fail alike.

    decode        bytes to a message, or to a Rejected
    validate      windows against the release's reference (monitoring.window_validation)
    convert       messages to windows, rows of device_event, and columns of device
    insert        windows and rows with a new key only
    apply         update events to rollouts, faults and inventories to devices, signs of duplicate
                  devices to an alert
    acknowledge   sequence numbers, per device and boot
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, func, select, tuple_, update

from shoal import topics, wire
from shoal.controller.conditions import clocks, device_watch
from shoal.controller.fleet import changed_devices, clock_skew, duplicate_devices, join_tokens
from shoal.controller.fleet.duplicate_devices import ReturnCounter
from shoal.controller.fleet.reported_facts import (
    LABEL,
    json_facts,
    label_faults,
    labels_of,
    line_of,
)
from shoal.controller.host.context import Context
from shoal.controller.host.windows import NewWindow
from shoal.controller.host.windows import WindowKey as Key
from shoal.controller.ingest import device_errors
from shoal.controller.ingest.device_errors import DeviceErrors
from shoal.controller.monitoring.window_validation import WindowValidator
from shoal.controller.rollouts import assignments, served_files, update_events
from shoal.controller.store import changes, window_sums
from shoal.controller.store.arrivals import Arrivals
from shoal.controller.store.chunks import chunks
from shoal.controller.store.tables import device, device_event
from shoal.controller.store.window_tables import window_file
from shoal.errors import ShoalError, StorageError, WireError
from shoal.manifest import is_model
from shoal.wire import FaultEvent, Installed, Inventory, Status, UpdateEvent, WindowReport

_log = logging.getLogger(__name__)
#: Largest integer that JSON numbers and the database hold without loss.
_MAX_INTEGER = 2**53
_MAX_BOOT = 32
#: Models of an inventory, and characters of a release's or variant's name.
_MAX_INSTALLED, _MAX_NAME = 200, 100
_KEY = ("device", "boot", "seq")
#: Columns of a window that are fields of its report.
_AS_REPORTED = (
    "model", "release", "reference", "window_s", "rows", "errors", "slow", "labelled", "correct",
    "merged", "latency", "inputs", "outputs",
)  # fmt: skip
#: Columns that a redelivery repeats, and that two different messages hardly share.
_WINDOW_FINGERPRINT = ("release", "window_s", "rows", "errors")
_EVENT_FINGERPRINT = ("kind", "state", "cause", "release")
#: Prefix of a session that ended: a late or redelivered "online" of it is ignored.
_ENDED = "ended "
Replies = dict[str, list[wire.Ack | wire.Time]]


class _Header(msgspec.Struct, frozen=True):
    """The key of a message that cannot be decoded otherwise: enough to ack it."""

    device: str
    boot: str
    seq: int


class Rejected(NamedTuple):
    """A message that is not stored as such. device "" when the sender is unknown."""

    device: str
    boot: str
    seq: int
    error: ShoalError


def ingest(
    ctx: Context,
    batch: Sequence[tuple[str, bytes]],
    returns: ReturnCounter | None = None,
    on_garbage: Callable[[str], None] = lambda device: None,
) -> Replies:
    """Store a batch of (topic, payload); device -> messages to send to it, now that it is durable.

    returns      kept by the caller between batches: detects duplicate devices
    on_garbage   called with the device of each message that is rejected

    Raises StorageError when the disk refuses: nothing was stored, and the same batch may be given
    again. Any other error rejects only the message that caused it.
    """
    try:
        return _store(ctx, batch, returns, on_garbage)
    except StorageError:
        raise
    except Exception:  # noqa: BLE001 - a bug met by one message must not stop the fleet
        if len(batch) == 1:
            _log.exception("cannot ingest a message on %s", batch[0][0][:200])
            return {}
        _log.exception("cannot ingest a batch of %d at once: one by one", len(batch))
    return _merge(ingest(ctx, [one], returns, on_garbage) for one in batch)


def _store(
    ctx: Context,
    batch: Sequence[tuple[str, bytes]],
    returns: ReturnCounter | None,
    on_garbage: Callable[[str], None],
) -> Replies:
    messages = [_decode(topic, payload) for topic, payload in batch]
    with ctx.store.write() as db:
        stored = _Batch(db, ctx, messages, returns)
        replies = stored.store()
    for device_name in stored.garbage:
        on_garbage(device_name)
    return replies


# --- decode ---------------------------------------------------------------------------------------


def _decode(topic: str, payload: bytes) -> wire.AnyUp | Rejected:
    name = ""
    try:
        name, kind = topics.parse_up(topic)
        message = wire.decode_up(kind, payload)
        if message.device != name:
            raise WireError(f"{kind} of {message.device!r:.80} on the topic of {name}")
        if len(message.boot) > _MAX_BOOT:
            raise WireError(f"{kind}: boot of {len(message.boot)} characters, {_MAX_BOOT} allowed")
        return message
    except ShoalError as error:
        header = _decode_header(name, payload)
        return Rejected(name, header.boot if header else "", header.seq if header else 0, error)


def _decode_header(name: str, payload: bytes) -> _Header | None:
    if not name or len(payload) > max(wire.LIMIT.values()):
        return None
    try:
        header = msgspec.msgpack.decode(payload, type=_Header)
    except (msgspec.MsgspecError, RecursionError):
        return None
    valid = 0 < header.seq <= _MAX_INTEGER and 0 < len(header.boot) <= _MAX_BOOT
    return header if valid and header.device == name else None


class _Batch:
    """One batch inside its transaction.

    windows, events   key -> window, or row of device_event, to insert
    columns   device -> columns to update
    updates   key of an event -> the update event
    errors    how errors of devices change
    seqs      (device, boot) -> sequence numbers to ack
    garbage     device of each message that was rejected
    duplicates   device -> sign that two agents use its name
    changed   device -> why its desired state is to be looked at
    """

    def __init__(
        self,
        db: Connection,
        ctx: Context,
        messages: Sequence[wire.AnyUp | Rejected],
        returns: ReturnCounter | None,
    ) -> None:
        self.db, self.ctx, self.messages, self.returns = db, ctx, messages, returns
        self.now = _arrival_time(db, ctx)
        self.devices = _devices(db, {one.device for one in messages})
        self.inventories = changed_devices.before(
            db, {one.device for one in messages if isinstance(one, Inventory)}
        )
        self.validator = WindowValidator(db)
        self.windows: dict[Key, NewWindow] = {}
        self.events: dict[Key, dict[str, Any]] = {}
        self.columns: dict[str, dict[str, Any]] = defaultdict(dict)
        self.updates: dict[Key, UpdateEvent] = {}
        self.errors = DeviceErrors(db, self.devices)
        self.seqs: dict[tuple[str, str], set[int]] = defaultdict(set)
        self.duplicates: dict[str, str] = {}
        self.garbage: list[str] = []
        self.changed: dict[str, str] = {}
        self.replies: Replies = defaultdict(list)

    def store(self) -> Replies:
        self.validator.read_ahead(one for one in self.messages if isinstance(one, WindowReport))
        for message in self.messages:
            known = self.devices.get(message.device)
            if known is None or known.state != "enrolled":
                _log.warning(
                    "message of %s device %r dropped",
                    "an unknown" if known is None else "a decommissioned",
                    message.device[:80],
                )
            elif isinstance(message, Rejected):
                self._reject(message)
            else:
                self._convert(message)
        arrivals = Arrivals(self.db, {*self.windows, *self.events})
        windows, events = self._insert_windows(arrivals), self._insert_events(arrivals)
        arrivals.save()
        self._apply_events(events)
        self._update_devices(windows, events)
        spoke = {name for name, values in self.columns.items() if "seen_at" in values}
        watch = device_watch.BatchWatch(self.db, self.ctx, self.devices, self.now)
        new = [self.windows[key] for key in windows], [self.events[key] for key in events]
        watch.note(spoke, *new, clocks.reported(self.columns))
        for (name, boot), seqs in self.seqs.items():
            self.replies[name].append(wire.Ack(boot=boot, seqs=sorted(seqs)))
        return dict(self.replies)

    # --- convert ------------------------------------------------------------------------------

    def _convert(self, message: wire.AnyUp) -> None:
        try:
            if isinstance(message, Status):
                self._status(message)
            elif isinstance(message, Inventory):
                self._inventory(message)
            elif message.seq == 0 or not message.boot:
                raise WireError(f"{type(message).__name__} without boot and sequence number")
            elif isinstance(message, WindowReport):
                self._window(message)
            elif isinstance(message, UpdateEvent):
                self._update_event(message)
            elif isinstance(message, FaultEvent):
                self._fault(message)
            else:
                raise WireError(f"{type(message).__name__} is not ingested")
        except StorageError:
            raise
        except ShoalError as error:
            self._reject(Rejected(message.device, message.boot, message.seq, error))

    def _status(self, message: Status) -> None:
        """Set a device online or offline; ignore the last will of an older session, and the
        redelivered "online" of a session that ended."""
        name = message.device
        session = self.columns[name].get("session", self.devices[name].session)
        if not message.online:
            if session in ("", message.session):
                self.columns[name] |= {"online": False, "session": _ENDED + message.session}
            return
        if session == _ENDED + message.session:
            return
        previous = session.removeprefix(_ENDED)
        if self.returns and self.returns.is_duplicate(name, message.session, previous):
            self.duplicates[name] = "A process reconnected that another one had replaced."
        self.errors.on_session(name, message.session, previous)
        self.columns[name] |= {"online": True, "session": message.session, "seen_at": self.now}
        if not self.devices[name].online or session != message.session:
            self.changed.setdefault(name, changed_devices.ONLINE)
        if message.asks_time is True:
            time = wire.Time(asked_s=message.sent_s, now_s=self.ctx.clock())
            self.replies[name].append(time)

    def _inventory(self, message: Inventory) -> None:
        floor = message.floors.get("assignment", 0)
        if not 0 <= floor <= _MAX_INTEGER:  # also rejects NaN
            raise WireError(f"inventory with assignment floor {floor:g}")
        name, installed = message.device, _installed(message)
        self.errors.on_end(name, device_errors.INVENTORY)
        self.columns[name] |= {
            "seen_at": self.now,
            "agent": line_of(message.agent, 80),
            "profile": line_of(message.profile, 80),
            "ring": self._ring(message),
            "line": line_of(message.line, LABEL),
            "labels": labels_of(message.labels),
            "facts": json_facts(message.facts),
            "endpoint": line_of(message.endpoint, 200),
            "releases": {one.model: one.release for one in installed},
            "variants": {one.model: one.variant for one in installed},
            **clock_skew.skew_columns(message.facts),
        }
        if not self.devices[name].site:
            self.columns[name]["site"] = line_of(message.site, LABEL)
        if fault := label_faults(message.line, message.labels):
            self.errors.on_find(name, f"inventory: {fault}; shorten them in its agent.toml")
        if changed_devices.differs(self.inventories[name], self.columns[name]):
            self.changed[name] = changed_devices.CHANGED
        served_files.check(self.db, self.ctx, name, self.devices[name].site, installed)
        assignments.raise_floor(self.db, self.ctx, name, int(floor))

    def _ring(self, message: Inventory) -> str:
        """The ring that the device reports, when its enrolment allows it.

        A device may leave the canary ring by itself; it enters only by a join token for it.
        """
        enrolled = self.devices[message.device].ring
        if message.ring in (enrolled, join_tokens.RINGS[0]):
            self.errors.on_end(message.device, device_errors.WRONG_RING)
            return message.ring
        self.errors.on_find(
            message.device,
            f"{device_errors.WRONG_RING}{message.ring!r:.20} and is enrolled in {enrolled!r}: "
            "enrol it again with a join token for that ring, or set "
            f"ring = {enrolled!r} in its agent.toml",
        )
        return str(enrolled)

    def _window(self, message: WindowReport) -> None:
        self.validator.check(message)
        self.errors.on_end(message.device, device_errors.REJECTED, device_errors.INVENTORY)
        start = clock_skew.window_start(message, self.now, self.ctx.settings.fleet.clock_skew_s)
        one = NewWindow(
            device=message.device,
            boot=message.boot,
            seq=message.seq,
            site=self.devices[message.device].site,
            start_at=start.at,
            received_at=self.now,
            health=msgspec.to_builtins(message.health) | {"clock_synced": start.synced},
            **{name: getattr(message, name) for name in _AS_REPORTED},
        )
        first = self.windows.setdefault(one.key, one)
        self._check_same(one.key, _values(first), _values(one))
        self._arrived(message)

    def _update_event(self, message: UpdateEvent) -> None:
        key = self._add_event(
            message,
            kind="update",
            state=message.state,
            model=message.model,
            release=message.release,
            rollout=message.rollout,
            attempt=message.attempt,
            facts=json_facts(message.facts),
        )
        self.updates.setdefault(key, message)

    def _fault(self, message: FaultEvent) -> None:
        facts = json_facts(message.facts) | {"count": message.count}
        key = self._add_event(message, kind="fault", state=message.severity, facts=facts)
        self.errors.on_fault(key, message)

    def _reject(self, rejected: Rejected) -> None:
        name, boot, seq, error = rejected
        self.garbage.append(name)
        _log.warning("message of %s rejected: %s", name, error)
        self.errors.on_find(name, f"{device_errors.REJECTED}{error}")
        if seq:
            fault = {"kind": "fault", "state": "warning", "cause": error.code}
            row = _event_row((name, boot, seq), self.now, detail=str(error)[:2000], **fault)
            self.events.setdefault((name, boot, seq), row)
            self.seqs[name, boot].add(seq)

    # --- insert -------------------------------------------------------------------------------

    def _add_event(self, message: UpdateEvent | FaultEvent, **values: Any) -> Key:
        plausible = abs(message.sent_s - self.now) < clock_skew.PLAUSIBLE_S
        row = _event_row(
            (message.device, message.boot, message.seq),
            self.now,
            at=message.sent_s if plausible else self.now,
            cause=message.cause,
            detail=message.detail[:2000],
            **values,
        )
        key = (message.device, message.boot, message.seq)
        first = self.events.setdefault(key, row)
        self._check_same(key, _event_values(first), _event_values(row))
        self._arrived(message)
        return key

    def _arrived(self, message: WindowReport | UpdateEvent | FaultEvent) -> None:
        self.seqs[message.device, message.boot].add(message.seq)
        self.columns[message.device]["seen_at"] = self.now

    def _insert_windows(self, arrivals: Arrivals) -> list[Key]:
        """Insert windows with a new key; return these keys in order of arrival."""
        new = [
            one
            for one in self.windows.values()
            if arrivals.add(one.key, self.now, windows=one.merged, rows=one.rows)
        ]
        known = self.windows.keys() - {one.key for one in new}
        for key, stored in self.ctx.store.windows.find(known).items():
            self._check_same(key, _values(stored), _values(self.windows[key]))
        self.ctx.store.windows.add(self.db, new)
        window_sums.add(self.db, new, {name: one.profile for name, one in self.devices.items()})
        return [one.key for one in new]

    def _insert_events(self, arrivals: Arrivals) -> list[Key]:
        """Insert events with a new key; return these keys in order of arrival."""
        new = [key for key in self.events if arrivals.add(key, self.now)]
        key_columns = [device_event.c[name] for name in _KEY]
        for keys in chunks(sorted(self.events.keys() - set(new))):
            stored = select(*key_columns, *(device_event.c[name] for name in _EVENT_FINGERPRINT))
            for name, boot, seq, *values in self.db.execute(
                stored.where(tuple_(*key_columns).in_(keys))
            ):
                key = (name, boot, seq)
                self._check_same(key, tuple(values), _event_values(self.events[key]))
        if new:
            self.db.execute(device_event.insert(), [self.events[key] for key in new])
        return new

    def _check_same(self, key: Key, first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
        """Two different messages with one key come from two agents."""
        if first != second:
            name, _, seq = key
            self.duplicates[name] = (
                f"Two different messages have sequence number {seq}; the second is lost."
            )

    # --- apply --------------------------------------------------------------------------------

    def _apply_events(self, new_events: Sequence[Key]) -> None:
        updates = [self.updates[key] for key in new_events if key in self.updates]
        of_updates = update_events.apply_all(self.db, self.ctx, updates)
        after = self.errors.after(new_events, of_updates)
        update_events.note_errors(self.db, self.ctx, after)
        for name, sign in self.duplicates.items():
            duplicate_devices.raise_alert(self.db, self.ctx, name, self.devices[name].site, sign)

    def _update_devices(self, windows: Sequence[Key], events: Sequence[Key]) -> None:
        """Update device rows, and note the changes that the console shows."""
        changed = {n: values for n, values in self.columns.items() if set(values) - {"seen_at"}}
        for name, values in changed.items():
            self.db.execute(update(device).where(device.c.name == name).values(**values))
        only_seen = [n for n, values in self.columns.items() if values and n not in changed]
        for names in chunks(only_seen):
            self.db.execute(update(device).where(device.c.name.in_(names)).values(seen_at=self.now))
        changes.note_all(self.db, self.ctx, "device", changed)
        for why in sorted({*self.changed.values()}):
            these = sorted(name for name, because in self.changed.items() if because == why)
            changed_devices.add(self.db, these, why)
        for kind, keys in (("window", windows), ("event", events)):
            names = list(dict.fromkeys(key[0] for key in keys))
            changes.note_all(self.db, self.ctx, kind, names)


def _event_row(key: Key, now: float, **values: Any) -> dict[str, Any]:
    """A row with every column, so that one statement inserts all events of a batch."""
    texts = dict.fromkeys(("state", "cause", "detail", "model", "release", "rollout"), "")
    numbers = {"at": now, "received_at": now, "attempt": 0, "facts": {}}
    return dict(zip(_KEY, key, strict=True)) | texts | numbers | values


def _installed(message: Inventory) -> list[Installed]:
    """What the device says it serves, where it can be: other names are of no model of ours."""
    found = message.installed[:_MAX_INSTALLED]
    return [
        one
        for one in found
        if is_model(one.model) and len(one.release) <= _MAX_NAME and len(one.variant) <= _MAX_NAME
    ]


def _values(window: NewWindow) -> tuple[Any, ...]:
    return tuple(getattr(window, name) for name in _WINDOW_FINGERPRINT)


def _event_values(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _EVENT_FINGERPRINT)


def _devices(db: Connection, names: Iterable[str]) -> dict[str, Any]:
    columns = (
        device.c.name, device.c.site, device.c.state, device.c.session, device.c.ring,
        device.c.profile, device.c.seen_at, device.c.error, device.c.online,
    )  # fmt: skip
    found: dict[str, Any] = {}
    for some in chunks(sorted(names)):
        rows = db.execute(select(*columns).where(device.c.name.in_(some)))
        found |= {row.name: row for row in rows}
    return found


def _arrival_time(db: Connection, ctx: Context) -> float:
    """Now, and later than any stored window: the drift monitor reads on from its last position."""
    newest = db.scalar(select(func.max(window_file.c.last_at))) or 0.0
    return max(ctx.clock(), newest + 1e-6)


def _merge(parts: Iterable[Replies]) -> Replies:
    merged: Replies = defaultdict(list)
    for part in parts:
        for name, replies in part.items():
            merged[name] += replies
    return dict(merged)
