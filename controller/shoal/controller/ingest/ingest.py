"""What devices say, into the database: at least once on the wire, exactly once here.

One transaction a batch, on (device, boot, seq). A message that cannot be taken is told of and
never stops the others; one whose number can still be read is acked too, as a fault in its place,
for it will be no better the next time. Acks are returned only after the commit.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Table, func, select, tuple_, update

from shoal import topics, wire
from shoal.controller.fleet import clock_skew, duplicate_devices, join_tokens
from shoal.controller.fleet.duplicate_devices import ReturnCounter
from shoal.controller.host.context import Context
from shoal.controller.monitoring.window_validation import Intake, plain
from shoal.controller.rollouts import assignments, update_events
from shoal.controller.store import changes
from shoal.controller.store.tables import device, device_event, window
from shoal.errors import ShoalError, StorageError, WireError
from shoal.wire import FaultEvent, Inventory, Status, UpdateEvent, WindowReport

_log = logging.getLogger(__name__)
#: What a JSON number and a column of the database hold without loss.
_HIGHEST = 2**53
_KEY = ("device", "boot", "seq")
#: What is the same however often a message comes, and is not in another one by chance.
_TELLING: dict[Table, tuple[str, ...]] = {
    window: ("release", "window_s", "rows", "errors"),
    device_event: ("kind", "state", "cause", "release"),
}
#: What a session is called once it ended: a late or repeated "online" of it is not believed.
_ENDED = "ended "
Answers = dict[str, list[wire.Ack | wire.Time]]


class _Salvage(msgspec.Struct, frozen=True):
    """What is left of a message that is otherwise no message: enough to ack it away."""

    device: str
    boot: str
    seq: int


class Refused(NamedTuple):
    """A message that was not taken. device "" when it is not known who sent it."""

    device: str
    boot: str
    seq: int
    error: ShoalError


def ingest(
    ctx: Context, batch: Sequence[tuple[str, bytes]], returns: ReturnCounter | None = None
) -> Answers:
    """Take a batch of (topic, payload); device -> what to say to it now that it is durable.

    returns   kept by the caller from one batch to the next: finds devices that are there twice

    Raises StorageError when the disk refuses: nothing was taken, and the same batch may be given
    again. Anything else that goes wrong costs the message that it went wrong with.
    """
    try:
        return _take(ctx, batch, returns)
    except StorageError:
        raise
    except Exception:  # noqa: BLE001 - a bug met by one message must not stop the fleet
        if len(batch) == 1:
            _log.exception("a message on %s cannot be taken", batch[0][0][:200])
            return {}
        _log.exception("a batch of %d cannot be taken whole: one by one", len(batch))
    return _join(ingest(ctx, [one], returns) for one in batch)


def _take(
    ctx: Context, batch: Sequence[tuple[str, bytes]], returns: ReturnCounter | None
) -> Answers:
    read = [_read(topic, payload) for topic, payload in batch]
    with ctx.store.write() as db:
        return _Batch(db, ctx, read, returns).take()


def _read(topic: str, payload: bytes) -> wire.AnyUp | Refused:
    """The message, or why it is none."""
    name = ""
    try:
        name, kind = topics.parse_up(topic)
        message = wire.decode_up(kind, payload)
        if message.device != name:
            raise WireError(f"{kind} of {message.device!r:.80} on the topic of {name}")
        if len(message.boot) > 32:
            raise WireError(f"{kind}: boot of {len(message.boot)} characters, 32 allowed")
        return message
    except ShoalError as error:
        left = _salvage(name, payload)
        return Refused(name, left.boot if left else "", left.seq if left else 0, error)


def _salvage(name: str, payload: bytes) -> _Salvage | None:
    if not name or len(payload) > max(wire.LIMIT.values()):
        return None
    try:
        left = msgspec.msgpack.decode(payload, type=_Salvage)
    except (msgspec.MsgspecError, RecursionError):
        return None
    honest = left.device == name and 0 < left.seq <= 2**53 and 0 < len(left.boot) <= 32
    return left if honest else None


class _Batch:
    """One batch inside its transaction."""

    def __init__(
        self,
        db: Connection,
        ctx: Context,
        read: Sequence[wire.AnyUp | Refused],
        returns: ReturnCounter | None,
    ) -> None:
        self.db, self.ctx, self.read, self.returns = db, ctx, read, returns
        self.twice: dict[str, str] = {}
        self.now = _next_instant(db, ctx)
        self.devices = _devices(db, {one.device for one in read})
        self.changed: dict[str, dict[str, Any]] = defaultdict(dict)
        self.rows: dict[Table, dict[tuple[str, str, int], dict[str, Any]]] = {
            window: {}, device_event: {}
        }  # fmt: skip
        self.updates: dict[tuple[str, str, int], UpdateEvent] = {}
        self.errors: dict[tuple[str, str, int], str] = {}
        self.seqs: dict[tuple[str, str], set[int]] = defaultdict(set)
        self.intake = Intake(db)
        self.answers: Answers = defaultdict(list)

    def take(self) -> Answers:
        for message in self.read:
            known = self.devices.get(message.device)
            if known is None or known.state != "enrolled":
                _log.warning(
                    "message of %s device %r dropped",
                    "an unknown" if known is None else "a decommissioned",
                    message.device[:80],
                )
            elif isinstance(message, Refused):
                self._refuse(message)
            else:
                self._one(message)
        new = {table: self._insert(table) for table in self.rows}
        for key in new[device_event]:
            if key in self.updates:
                update_events.apply(self.db, self.ctx, self.updates[key])
            elif key in self.errors:
                update_events.note_error(self.db, self.ctx, key[0], self.errors[key])
        for name, sign in self.twice.items():
            duplicate_devices.raise_alert(self.db, self.ctx, name, self.devices[name].site, sign)
        self._write_devices(new)
        for (name, boot), seqs in self.seqs.items():
            self.answers[name].append(wire.Ack(boot=boot, seqs=sorted(seqs)))
        return dict(self.answers)

    def _one(self, message: wire.AnyUp) -> None:
        try:
            if isinstance(message, Status):
                self._status(message)
            elif isinstance(message, Inventory):
                self._inventory(message)
            elif message.seq == 0 or not message.boot:
                raise WireError(f"{type(message).__name__} without boot and number")
            elif isinstance(message, WindowReport):
                self._window(message)
            elif isinstance(message, UpdateEvent | FaultEvent):
                self._event(message)
            else:
                raise WireError(f"{type(message).__name__} is no report")
        except StorageError:
            raise
        except ShoalError as error:
            self._refuse(Refused(message.device, message.boot, message.seq, error))

    def _status(self, message: Status) -> None:
        """A will of an older session is late, a greeting of one that ended is repeated."""
        session = self._current(message.device, "session")
        if message.online:
            if session != _ENDED + message.session:
                self._look_for_another(message, session.removeprefix(_ENDED))
                self.changed[message.device] |= {
                    "online": True, "session": message.session, "seen_at": self.now
                }  # fmt: skip
                if message.asks_time is True:
                    time = wire.Time(asked_s=message.sent_s, now_s=self.ctx.clock())
                    self.answers[message.device].append(time)
        elif session in ("", message.session):
            self.changed[message.device] |= {"online": False, "session": _ENDED + message.session}

    def _look_for_another(self, message: Status, before: str) -> None:
        if self.returns and self.returns.is_duplicate(message.device, message.session, before):
            self.twice[message.device] = "A process is back that another one had replaced."

    def _inventory(self, message: Inventory) -> None:
        floor = message.floors.get("assignment", 0)
        if not 0 <= floor <= _HIGHEST:  # nor is what is no number
            raise WireError(f"inventory with assignment floor {floor:g}")
        self.changed[message.device] |= {
            "seen_at": self.now,
            "agent": message.agent[:80],
            "profile": message.profile,
            "ring": self._ring(message),
            "line": message.line,
            "labels": message.labels,
            "facts": plain(message.facts),
            "endpoint": message.endpoint[:200],
            "releases": {one.model: one.release for one in message.installed},
            "variants": {one.model: one.variant for one in message.installed},
            **clock_skew.skew_columns(message.facts),
        }
        if not self.devices[message.device].site:
            self.changed[message.device]["site"] = message.site
        assignments.raise_floor(self.db, self.ctx, message.device, int(floor))

    def _ring(self, message: Inventory) -> str:
        """The ring that the device says, unless it is more than it was enrolled for.

        It may step back to stable by itself; canary is what a join token for it has let in.
        """
        enrolled = self.devices[message.device].ring
        if message.ring in (enrolled, join_tokens.RINGS[0]):
            return message.ring
        self._error(
            message.device,
            f"it says ring {message.ring!r:.20}, and was let in for {enrolled!r}: enrol it again "
            f"with a join token for that ring, or set ring = {enrolled!r} in its agent.toml",
        )
        return str(enrolled)

    def _window(self, message: WindowReport) -> None:
        self.intake.check(message)
        began = clock_skew.window_start(message, self.now, self.ctx.settings.fleet.clock_skew_s)
        self._keep(
            window,
            message,
            site=self.devices[message.device].site,
            model=message.model,
            release=message.release,
            reference=message.reference,
            start_at=began.at,
            window_s=message.window_s,
            received_at=self.now,
            rows=message.rows,
            errors=message.errors,
            slow=message.slow,
            labelled=message.labelled,
            correct=message.correct,
            merged=message.merged,
            latency=message.latency,
            health=msgspec.to_builtins(message.health) | {"clock_synced": began.synced},
            inputs=message.inputs,
            outputs=message.outputs,
        )

    def _event(self, message: UpdateEvent | FaultEvent) -> None:
        facts = plain(message.facts)
        if isinstance(message, UpdateEvent):
            key = self._keep_event(
                message, kind="update", state=message.state, model=message.model,
                release=message.release, rollout=message.rollout, attempt=message.attempt,
                facts=facts, cause=message.cause, detail=message.detail[:2000],
            )  # fmt: skip
            self.updates.setdefault(key, message)
            return
        key = self._keep_event(
            message, kind="fault", state=message.severity, facts=facts | {"count": message.count},
            cause=message.cause, detail=message.detail[:2000],
        )  # fmt: skip
        if message.severity != "info":
            self.errors.setdefault(key, message.detail or message.cause)
        elif message.cause == update_events.BROUGHT:
            self.errors.setdefault(key, "")  # whatever a folder before it was refused for

    def _refuse(self, refused: Refused) -> None:
        _log.warning("message of %s refused: %s", refused.device, refused.error)
        self._error(refused.device, f"a message was refused: {refused.error}")
        if refused.seq:
            key = (refused.device, refused.boot, refused.seq)
            self.seqs[refused.device, refused.boot].add(refused.seq)
            self.rows[device_event].setdefault(
                key,
                _blank_event(key, self.now)
                | {
                    "kind": "fault",
                    "state": "warning",
                    "cause": refused.error.code,
                    "detail": str(refused.error)[:2000],
                },
            )

    # --- rows ---------------------------------------------------------------------------------

    def _keep_event(self, message: UpdateEvent | FaultEvent, **values: Any) -> tuple[str, str, int]:
        sane = abs(message.sent_s - self.now) < clock_skew.PLAUSIBLE_S
        at = message.sent_s if sane else self.now
        blank = _blank_event((message.device, message.boot, message.seq), self.now)
        return self._keep(device_event, message, **blank | {"at": at} | values)

    def _keep(self, table: Table, message: Any, **values: Any) -> tuple[str, str, int]:
        key = (message.device, message.boot, message.seq)
        kept = self.rows[table].setdefault(key, dict(zip(_KEY, key, strict=True)) | values)
        self._compare(table, key, kept, [values[name] for name in _TELLING[table]])
        self.seqs[message.device, message.boot].add(message.seq)
        self.changed[message.device]["seen_at"] = self.now
        return key

    def _insert(self, table: Table) -> list[tuple[str, str, int]]:
        """Insert what is not there yet; the keys of that, in order of arrival."""
        rows = self.rows[table]
        known: set[tuple[str, str, int]] = set()
        for keys in _chunks(list(rows)):
            columns, telling = ([table.c[n] for n in ns] for ns in (_KEY, _TELLING[table]))
            found = self.db.execute(select(*columns, *telling).where(tuple_(*columns).in_(keys)))
            for device_, boot, seq, *said in found:
                key = (device_, boot, seq)
                known.add(key)
                self._compare(table, key, rows[key], said)
        new = [key for key in rows if key not in known]
        if new:
            self.db.execute(table.insert(), [rows[key] for key in new])
        return new

    def _compare(
        self, table: Table, key: tuple[str, str, int], row: dict[str, Any], said: list[Any]
    ) -> None:
        """Two messages under one number are of two agents."""
        if [row[name] for name in _TELLING[table]] != said:
            name, _, seq = key
            self.twice[name] = f"Two messages came under one number, {seq}; the second is lost."

    def _write_devices(self, new: dict[Table, list[tuple[str, str, int]]]) -> None:
        looking_different = {n: v for n, v in self.changed.items() if set(v) - {"seen_at"}}
        for name, values in looking_different.items():
            self.db.execute(update(device).where(device.c.name == name).values(**values))
        only_seen = [n for n, v in self.changed.items() if v and n not in looking_different]
        for names in _chunks(only_seen):
            self.db.execute(update(device).where(device.c.name.in_(names)).values(seen_at=self.now))
        changes.note_all(self.db, self.ctx, "device", looking_different)
        for table, kind in ((window, "window"), (device_event, "event")):
            changed = dict.fromkeys(key[0] for key in new[table])
            changes.note_all(self.db, self.ctx, kind, changed)

    def _error(self, name: str, text: str) -> None:
        self.changed[name] |= {"error": text[:500], "error_at": self.now}

    def _current(self, name: str, column: str) -> Any:
        return self.changed[name].get(column, getattr(self.devices[name], column))


def _blank_event(key: tuple[str, str, int], now: float) -> dict[str, Any]:
    """Every column, so that one statement inserts all events of a batch."""
    texts = dict.fromkeys(("state", "cause", "detail", "model", "release", "rollout"), "")
    numbers = {"at": now, "received_at": now, "attempt": 0, "facts": {}}
    return dict(zip(_KEY, key, strict=True)) | texts | numbers


def _devices(db: Connection, names: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    columns = (device.c.name, device.c.site, device.c.state, device.c.session, device.c.ring)
    for some in _chunks(sorted(names)):
        found |= {
            row.name: row for row in db.execute(select(*columns).where(device.c.name.in_(some)))
        }
    return found


def _next_instant(db: Connection, ctx: Context) -> float:
    """Now, but after everything that arrived before: what monitoring reads on by."""
    newest = db.scalar(select(func.max(window.c.received_at))) or 0.0
    return max(ctx.clock(), newest + 1e-6)


def _chunks(keys: list[Any], size: int = 250) -> Iterable[list[Any]]:
    return (keys[i : i + size] for i in range(0, len(keys), size))


def _join(parts: Iterable[Answers]) -> Answers:
    whole: Answers = defaultdict(list)
    for part in parts:
        for name, acks in part.items():
            whole[name] += acks
    return dict(whole)
