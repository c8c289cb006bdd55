"""What each effect of an update does, through the ports. Every one may be done again.

An effect runs off the control loop and answers with an Outcome; it changes no record itself.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from shoal.agent.host.disk import RESERVE
from shoal.agent.host.faults import Fault
from shoal.agent.installed.floors import Floors
from shoal.agent.installed.record import Record, Slot
from shoal.agent.serving.served_model import Serving
from shoal.agent.update.acceptance import judge_probe
from shoal.agent.update.machine import MAX_REDONE, Effect, Event, Note
from shoal.agent.update.orders import cause_of, check_fits, same_files
from shoal.agent.update.ports import UpdatePorts
from shoal.errors import (
    AbsentError,
    BundleError,
    DeniedError,
    LinkError,
    ShoalError,
    StorageError,
    TrustError,
)
from shoal.manifest import File, Manifest
from shoal.manifest import parse as parse_manifest
from shoal.profile import Profile
from shoal.trust import Order, check_ring
from shoal.wire import Health, WindowReport

#: Bytes to fetch with which the probe's process starts beside them: it holds memory while it waits.
SOON = 16 << 20
#: How often an answer that looks final is asked for again.
FEW = 5

_log = logging.getLogger(__name__)


class Desk(NamedTuple):
    """What an effect may use.

    health          of the machine, now
    ring, profile   of this device
    floors          as they are now
    url             sha256 -> where to fetch it; AbsentError when nobody said
    stop            whether the order was taken back meanwhile
    now_s           Unix seconds when the effect began
    tries           how often it was tried before
    """

    ports: UpdatePorts
    health: Callable[[], Health]
    ring: str
    profile: Profile
    floors: Floors
    url: Callable[[str], str]
    serving: Serving
    stop: Callable[[], bool]
    now_s: float
    tries: int = 0


class Outcome(NamedTuple):
    """What an effect came to.

    event   None: nothing happened that the record must know
    again   try once more, later; `tries` times at most, 0 for as long as the order stands
    floors  what was learnt on the way and is to be kept
    """

    event: Event | None
    note: Note = Note()
    again: bool = False
    tries: int = 0
    faults: tuple[Fault, ...] = ()
    floors: Floors | None = None
    closed: WindowReport | None = None


def perform(effect: Effect, record: Record, desk: Desk) -> Outcome:
    """Do `effect` for `record`; never raises."""
    try:
        return _EFFECTS[effect](record, desk)
    except StorageError as error:
        return _broke(effect, "disk-full", str(error))
    except ShoalError as error:
        return _broke(effect, cause_of(error), str(error))
    except Exception as error:  # noqa: BLE001 a bug must fail the attempt, not the device
        _log.exception("%s of %s", effect.name, record.model)
        return _broke(effect, "agent-bug", f"{effect.name}: {type(error).__name__}: {error}")


def _check(record: Record, desk: Desk) -> Outcome:
    order = _order(record)
    serving = record.serving
    if serving and (serving.path, serving.sha256) == (order.path, order.sha256):
        return Outcome(Event.SAME)
    floors = desk.floors
    try:
        check_ring(order, desk.ring)
        floors = floors.raised(metadata=desk.ports.images.refresh(desk.now_s, floors.metadata))
        desk.ports.images.check(order)
        manifest = _fetch_manifest(record, desk)
        files = check_fits(
            manifest,
            order,
            profile=desk.profile,
            runtime=desk.ports.loader.runtime,
            floors=floors,
        )
    except LinkError as error:
        return _again(error)
    except (DeniedError, AbsentError) as error:
        return _again(error, FEW)
    except ShoalError as error:
        return _refused(error)
    if serving and _serves_already(manifest, serving, desk):
        adopted = msgspec.structs.replace(serving, path=order.path, sha256=order.sha256)
        return Outcome(Event.SAME, Note(serving=adopted), floors=floors)
    slots = desk.ports.slots
    need, free = slots.missing(record.model, files) + RESERVE, slots.free_bytes()
    spare = slots.size(record.model, record.inactive)
    if need > free + spare:
        detail = (
            f"{need / 2**20:.0f} MB needed, {RESERVE >> 20} of them to be left free; "
            f"{free / 2**20:.0f} MB are free, and {spare / 2**20:.0f} MB of an older release; "
            "make room"
        )
        note = Note(cause="disk-full", detail=detail, facts={"need": need, "free": free})
        return Outcome(Event.REFUSED, note, floors=floors)
    return Outcome(Event.CHECKED, floors=floors)


def _download(record: Record, desk: Desk) -> Outcome:
    outcome = _fetch(record, desk)
    if outcome.event is None:
        desk.ports.prober.dismiss()
    return outcome


def _fetch(record: Record, desk: Desk) -> Outcome:
    """Every file into the stage. The probe gets ready beside it, where that will not be long."""
    ports, got, saved = desk.ports, 0, 0
    try:
        files = _staged_manifest(record, desk).files_for(desk.profile.name)
        missing = ports.slots.missing(record.model, files)
        _make_room(record, missing, desk)
        if missing <= SOON and not desk.tries:
            ports.prober.prepare(desk.profile)
        for file in files:
            if desk.stop():
                raise LinkError("downloads stop for now")
            if not ports.slots.reuse(record.model, file):
                came, short = _fetch_file(record.model, file, desk)
                got, saved = got + came, saved + (file.size - came if short else 0)
        ports.prober.prepare(desk.profile)
        ports.slots.keep(record.model)
    except LinkError as error:
        return _again(error)
    except (DeniedError, BundleError) as error:
        return _again(error, FEW)
    except AbsentError as error:
        return _broke(Effect.DOWNLOAD, "download", str(error))
    except StorageError as error:
        ports.slots.clean(record.model)  # first: the journal needs room to say it
        return Outcome(Event.REFUSED, Note(cause="disk-full", detail=str(error)))
    return Outcome(Event.FETCHED, Note(facts={"bytes": got, "saved_by_delta": saved}))


def _make_room(record: Record, missing: int, desk: Desk) -> None:
    """The slot that will be overwritten goes first where there is not room for three releases."""
    slots = desk.ports.slots
    if missing + RESERVE > slots.free_bytes():
        slots.drop(record.model, record.inactive)


def _fetch_file(model: str, file: File, desk: Desk) -> tuple[int, bool]:
    """Into the stage; bytes that came, and whether a delta of what is here spared the rest."""
    for sha256, base in desk.ports.slots.held(model).items():
        with contextlib.suppress(BundleError, AbsentError, DeniedError):
            url = desk.url(f"{sha256}>{file.sha256}")
            return desk.ports.downloads.delta(url, model, file, base, desk.stop), True
    return desk.ports.downloads.file(desk.url(file.sha256), model, file, desk.stop), False


def _verify(record: Record, desk: Desk) -> Outcome:
    try:
        sha256 = _order(record).sha256
        desk.ports.slots.verify_stage(record.model, sha256, desk.profile.name)
    except BundleError as error:
        return _damaged(record, error)
    return Outcome(Event.VERIFIED)


def _install(record: Record, desk: Desk) -> Outcome:
    try:
        sha256 = _order(record).sha256
        desk.ports.slots.install(record.model, record.inactive, sha256, desk.profile.name)
    except BundleError as error:
        return _damaged(record, error)
    return Outcome(Event.INSTALLED)


def _probe(record: Record, desk: Desk) -> Outcome:
    order, ports, slot = _order(record), desk.ports, record.inactive
    measured = ports.prober.probe(
        record.model, slot, desk.profile, desk.serving.recent(), record.serving, desk.stop
    )
    verdict = judge_probe(measured, desk.profile)
    if not verdict.passed:
        note = Note(cause=verdict.cause, detail=verdict.detail, facts=verdict.facts)
        return Outcome(Event.BROKE, note)
    manifest = ports.slots.read_manifest(record.model, slot)
    trial = Slot(
        slot=slot,
        model=record.model,
        release=manifest.release,
        path=order.path,
        sha256=order.sha256,
        variant=verdict.variant,
        model_sha256=manifest.variant(verdict.variant).file.sha256,
        counter=manifest.release_counter,
        since_s=desk.now_s,
        timings_us={m.variant: round(m.p50_ms * 1e3, 1) for m in measured},
    )
    return Outcome(Event.PASSED, Note(trial=trial, facts=verdict.facts))


def _activate(record: Record, desk: Desk) -> Outcome:
    closed = _serve(record.trial, desk)
    desk.ports.slots.point(record.model, record.trial)
    return Outcome(Event.ACTIVATED, closed=closed)


def _watch(record: Record, desk: Desk) -> Outcome:
    """After a start the trial has to be loaded again; otherwise it serves already."""
    return Outcome(None, closed=_serve(record.trial, desk))


def _commit(record: Record, desk: Desk) -> Outcome:
    trial = record.trial
    if trial is None:
        return Outcome(Event.COMMITTED)
    desk.serving.retire()
    return Outcome(
        Event.COMMITTED, floors=desk.floors.raised(counters={trial.model: trial.counter})
    )


def _revert(record: Record, desk: Desk) -> Outcome:
    back = Event.WITHDRAWN if record.cause == "canceled" else Event.REVERTED
    try:
        closed = _serve(record.serving, desk)
    except ShoalError as error:
        detail = f"{record.detail}; and the old release cannot serve again: {error}"
        return Outcome(Event.INCONSISTENT, Note(detail=detail, facts={"outcome": "inconsistent"}))
    desk.ports.slots.point(record.model, record.serving)
    desk.serving.retire()
    return Outcome(back, Note(facts={**record.facts, "outcome": "rolled_back"}), closed=closed)


def _clean(record: Record, desk: Desk) -> Outcome:
    """What nobody waits for: the attempt has ended, and that is said."""
    desk.ports.prober.dismiss()
    desk.ports.slots.clean(record.model)
    if record.serving is not None:
        desk.ports.loader.settle(record.serving, desk.profile)
    return Outcome(None)


_EFFECTS: dict[Effect, Callable[[Record, Desk], Outcome]] = {
    Effect.CHECK: _check,
    Effect.DOWNLOAD: _download,
    Effect.VERIFY: _verify,
    Effect.INSTALL: _install,
    Effect.PROBE: _probe,
    Effect.ACTIVATE: _activate,
    Effect.WATCH: _watch,
    Effect.COMMIT: _commit,
    Effect.REVERT: _revert,
    Effect.CLEAN: _clean,
}


def _serve(slot: Slot | None, desk: Desk) -> WindowReport | None:
    """Make `slot` serve, unless it does; the window that this closed."""
    serving = desk.serving
    if (serving.engine.slot if serving.engine else None) == slot:
        return None
    if slot is None:
        return serving.swap(None, desk.health())
    warm = serving.warm
    if warm is None or warm.slot != slot:
        desk.ports.slots.verify(slot, desk.profile.name)
        warm = desk.ports.loader.load(slot, desk.profile)
    return serving.swap(warm, desk.health())


def _fetch_manifest(record: Record, desk: Desk) -> Manifest:
    order = _order(record)
    data = desk.ports.downloads.small(desk.url(order.sha256), order.length, order.sha256)
    manifest = parse_manifest(data)
    desk.ports.slots.put_manifest(record.model, data)
    return manifest


def _staged_manifest(record: Record, desk: Desk) -> Manifest:
    """The stage's manifest; fetched once more when the power failed before it was durable."""
    try:
        return desk.ports.slots.staged(record.model, _order(record).sha256)
    except BundleError:
        return _fetch_manifest(record, desk)


def _serves_already(manifest: Manifest, serving: Slot, desk: Desk) -> bool:
    try:
        old = desk.ports.slots.read_manifest(serving.model, serving.slot)
        return same_files(manifest, old, desk.profile.name)
    except BundleError:
        return False


def _damaged(record: Record, error: BundleError) -> Outcome:
    if record.redone >= MAX_REDONE:
        return _broke(Effect.DOWNLOAD, "download", str(error))
    return Outcome(Event.DAMAGED)


def _refused(error: ShoalError) -> Outcome:
    cause = cause_of(error)
    faults = (Fault(cause, str(error), "critical"),) if isinstance(error, TrustError) else ()
    return Outcome(Event.REFUSED, Note(cause=cause, detail=str(error)), faults=faults)


def _again(error: ShoalError, tries: int = 0) -> Outcome:
    note = Note(cause=cause_of(error), detail=str(error))
    if isinstance(error, (DeniedError, AbsentError)):
        note = Note(cause="download", detail=str(error))
    return Outcome(None, note, again=True, tries=tries)


def _broke(effect: Effect, cause: str, detail: str) -> Outcome:
    """What failing for good means in the state that `effect` belongs to."""
    note = Note(cause=cause, detail=detail)
    if effect is Effect.WATCH:
        return Outcome(Event.UNHEALTHY, note)
    if effect is Effect.REVERT:
        return Outcome(Event.INCONSISTENT, note)
    if effect in (Effect.COMMIT, Effect.CLEAN):
        return Outcome(None, note, again=effect is Effect.COMMIT)
    return Outcome(Event.BROKE, note)


def _order(record: Record) -> Order:
    if record.order is None:
        raise StorageError(f"the journal's record of {record.model} has no order")
    return record.order
