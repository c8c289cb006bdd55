"""The effects of an update: check, download, verify, install, probe, activate, commit, revert,
remove.

Each may be repeated. It runs off the control loop and returns an EffectResult, or raises ShoalError
(`failed`); the runner changes the record.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from shoal.agent.host.faults import Fault
from shoal.agent.host.ports import RESERVE
from shoal.agent.installed.floors import Floors
from shoal.agent.installed.record import Record, Slot
from shoal.agent.serving.served_model import ServedModel
from shoal.agent.update.acceptance import judge_probe
from shoal.agent.update.machine import MAX_REDONE, Effect, Event, Note
from shoal.agent.update.orders import ShortError, cause_of, check_fits, check_memory
from shoal.agent.update.ports import UpdatePorts
from shoal.errors import (
    AbsentError,
    BundleError,
    DeniedError,
    ExpiredError,
    LinkError,
    ProvenanceError,
    ShoalError,
    StorageError,
    TrustError,
)
from shoal.manifest import File, Manifest
from shoal.manifest import parse as parse_manifest
from shoal.orders import Order
from shoal.profile import Profile
from shoal.trust import RELEASE, check_ring
from shoal.wire import Health, WindowReport

#: Bytes left to download below which the probe's process is started already: it holds memory.
PREPARE_BELOW = 16 << 20
#: Tries after a response that looks final: forbidden, not found, damaged.
FINAL_TRIES = 5


class EffectContext(NamedTuple):
    """Inputs of an effect.

    health          of the machine, now
    ring, profile   of this device
    floors          when the effect began
    url             sha256 -> URL; AbsentError where the assignment has none
    stop            whether the effect was cancelled
    now_s           Unix seconds when the effect began
    tries           earlier tries of the effect
    clock_fault     how far this device's clock is known to be wrong, "" while it is not
    """

    ports: UpdatePorts
    health: Callable[[], Health]
    ring: str
    profile: Profile
    floors: Floors
    url: Callable[[str], str]
    serving: ServedModel
    stop: Callable[[], bool]
    now_s: float
    tries: int = 0
    clock_fault: str = ""


class EffectResult(NamedTuple):
    """Result of an effect.

    event   of the state machine; None: the state stays
    retry   try again later, `tries` times at most; 0: until the order changes
    floors  to raise to these
    window  report of the window that a swap of models ended
    """

    event: Event | None
    note: Note = Note()
    retry: bool = False
    tries: int = 0
    faults: tuple[Fault, ...] = ()
    floors: Floors | None = None
    window: WindowReport | None = None


def _check(record: Record, context: EffectContext) -> EffectResult:
    order = _order(record)
    if order.removes:
        return EffectResult(Event.REMOVAL)
    serving = record.serving
    if serving and (serving.path, serving.sha256) == (order.path, order.sha256):
        return EffectResult(Event.SAME)
    floors = context.floors
    try:
        check_ring(order, context.ring)
        images = context.ports.images
        floors = floors.after(images.refresh(context.now_s, floors.seen))
        floors = floors.of_epoch(order.model, images.epoch(order.model))
        epoch = images.check(order)
        manifest = _fetch_manifest(record, context)
        files = check_fits(
            manifest,
            order,
            epoch=epoch,
            profile=context.profile,
            runtime=context.ports.loader.runtime,
            floors=floors,
        )
    except LinkError as error:
        return _retry(error)
    except (DeniedError, AbsentError) as error:
        return _retry(error, FINAL_TRIES)
    except ExpiredError as error:
        return _expired(error, context.clock_fault)
    except ShoalError as error:
        return _refused(error)._replace(floors=floors)
    if serving and serving.sha256 == order.sha256:  # the same manifest, signed by another role
        if proof := context.ports.images.proof(order):
            context.ports.slots.put_proof(record.model, serving.slot, proof)
        adopted = msgspec.structs.replace(serving, path=order.path)
        return EffectResult(Event.SAME, Note(serving=adopted), floors=floors)
    try:
        check_memory(manifest, context.profile, context.ports.headroom())
    except ShortError as error:
        return _refused(error)
    slots = context.ports.slots
    need, free = slots.missing(record.model, files) + RESERVE, slots.free_bytes()
    spare = slots.size(record.model, record.inactive)
    if need > free + spare:
        detail = (
            f"{need / 2**20:.0f} MB needed, {RESERVE >> 20} of them to be left free; "
            f"{free / 2**20:.0f} MB are free, and {spare / 2**20:.0f} MB of an older release; "
            "make room"
        )
        note = Note(cause="disk-full", detail=detail, facts={"need": need, "free": free})
        return EffectResult(Event.REFUSED, note, floors=floors)
    return EffectResult(Event.CHECKED, floors=floors)


def _download(record: Record, context: EffectContext) -> EffectResult:
    result = _fetch(record, context)
    if result.event is None:
        context.ports.prober.dismiss()
    return result


def _fetch(record: Record, context: EffectContext) -> EffectResult:
    """Download every file into the stage; start the probe's process when little is left."""
    ports, got, saved = context.ports, 0, 0
    try:
        files = _staged_manifest(record, context).files_for(context.profile.name)
        missing = ports.slots.missing(record.model, files)
        _free_inactive_slot(record, missing, context)
        if missing <= PREPARE_BELOW and not context.tries:
            ports.prober.prepare(context.profile)
        for file in files:
            if context.stop():
                raise LinkError("the download was interrupted")
            if not ports.slots.reuse(record.model, file):
                received, by_delta = _fetch_file(record.model, file, context)
                got += received
                saved += file.size - received if by_delta else 0
        ports.prober.prepare(context.profile)
        ports.slots.keep(record.model)
    except LinkError as error:
        return _retry(error)
    except (DeniedError, BundleError) as error:
        return _retry(error, FINAL_TRIES)
    except AbsentError as error:
        return failed(Effect.DOWNLOAD, error, "download")
    except StorageError as error:
        ports.slots.clean(record.model)  # first: the journal needs the space
        return EffectResult(Event.REFUSED, Note(cause="disk-full", detail=str(error)))
    return EffectResult(Event.FETCHED, Note(facts={"bytes": got, "saved_by_delta": saved}))


def _free_inactive_slot(record: Record, missing: int, context: EffectContext) -> None:
    """Delete the slot to be overwritten where the disk has no space for three releases."""
    slots = context.ports.slots
    if missing + RESERVE > slots.free_bytes():
        slots.drop(record.model, record.inactive)


def _fetch_file(model: str, file: File, context: EffectContext) -> tuple[int, bool]:
    """Download into the stage; bytes received, and whether some came of a local file instead."""
    held = context.ports.slots.held(model)
    for sha256, base in held.items():
        with contextlib.suppress(BundleError, AbsentError, DeniedError):
            url = context.url(f"{sha256}>{file.sha256}")
            return context.ports.downloads.delta(url, model, file, base, context.stop), True
    older = [path for path in held.values() if path.name == file.name] if file.chunks else []
    url = context.url(file.sha256)
    got = context.ports.downloads.file(url, model, file, context.stop, older)
    return got, bool(older)


def _verify(record: Record, context: EffectContext) -> EffectResult:
    try:
        sha256 = _order(record).sha256
        context.ports.slots.verify_stage(record.model, sha256, context.profile.name)
    except BundleError as error:
        return _damaged(record, error)
    except ProvenanceError as error:
        return _contradicted(Effect.VERIFY, error)
    return EffectResult(Event.VERIFIED)


def _install(record: Record, context: EffectContext) -> EffectResult:
    try:
        sha256 = _order(record).sha256
        context.ports.slots.install(record.model, record.inactive, sha256, context.profile.name)
    except BundleError as error:
        return _damaged(record, error)
    except ProvenanceError as error:
        return _contradicted(Effect.INSTALL, error)
    return EffectResult(Event.INSTALLED)


def _probe(record: Record, context: EffectContext) -> EffectResult:
    order, ports, slot = _order(record), context.ports, record.inactive
    measured = ports.prober.probe(
        record.model, slot, context.profile, context.serving.recent(), record.serving, context.stop
    )
    verdict = judge_probe(measured, context.profile)
    if not verdict.passed:
        return EffectResult(Event.BROKE, verdict.note())
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
        since_s=context.now_s,
        timings_us={m.variant: round(m.p50_ms * 1e3, 1) for m in measured},
    )
    return EffectResult(Event.PASSED, Note(trial=trial, facts=verdict.facts))


def _activate(record: Record, context: EffectContext) -> EffectResult:
    window = _serve(record.trial, context)
    context.ports.slots.point(record.model, record.trial)
    return EffectResult(Event.ACTIVATED, window=window)


def _watch(record: Record, context: EffectContext) -> EffectResult:
    """Load the trial again after a start of the agent; otherwise it serves already."""
    return EffectResult(None, window=_serve(record.trial, context))


def _commit(record: Record, context: EffectContext) -> EffectResult:
    trial = record.trial
    if trial is None:
        return EffectResult(Event.COMMITTED)
    context.serving.retire()
    if trial.role != RELEASE:  # the automation key must not shut out what its owner signs
        return EffectResult(Event.COMMITTED)
    return EffectResult(
        Event.COMMITTED, floors=context.floors.raised(counters={trial.model: trial.counter})
    )


def _revert(record: Record, context: EffectContext) -> EffectResult:
    back = Event.WITHDRAWN if record.cause == "canceled" else Event.REVERTED
    try:
        window = _serve(record.serving, context)
    except ShoalError as error:
        detail = f"{record.detail}; and the old release cannot serve again: {error}"
        return EffectResult(
            Event.INCONSISTENT, Note(detail=detail, facts={"outcome": "inconsistent"})
        )
    context.ports.slots.point(record.model, record.serving)
    context.serving.retire()
    return EffectResult(back, Note(facts={**record.facts, "outcome": "rolled_back"}), window=window)


def _remove(record: Record, context: EffectContext) -> EffectResult:
    """Serve nothing, then delete link and slots; requests in flight keep their session."""
    window = _serve(None, context)
    context.serving.retire()
    context.ports.slots.remove(record.model)
    context.ports.loader.trim()
    facts = {"removed": record.serving.release if record.serving else ""}
    return EffectResult(Event.REMOVED, Note(facts=facts), window=window)


def _clean(record: Record, context: EffectContext) -> EffectResult:
    """Delete the stage and free the probe, after the end of the attempt was reported."""
    context.ports.prober.dismiss()
    context.ports.slots.clean(record.model)
    if record.serving is not None:
        context.ports.loader.settle(record.serving, context.profile)
    return EffectResult(None)


EFFECTS: dict[Effect, Callable[[Record, EffectContext], EffectResult]] = {
    Effect.CHECK: _check,
    Effect.DOWNLOAD: _download,
    Effect.VERIFY: _verify,
    Effect.INSTALL: _install,
    Effect.PROBE: _probe,
    Effect.ACTIVATE: _activate,
    Effect.WATCH: _watch,
    Effect.COMMIT: _commit,
    Effect.REVERT: _revert,
    Effect.REMOVE: _remove,
    Effect.CLEAN: _clean,
}


def _serve(slot: Slot | None, context: EffectContext) -> WindowReport | None:
    """Serve `slot`, unless it serves already; the report of the window that this ended."""
    serving = context.serving
    if (serving.engine.slot if serving.engine else None) == slot:
        return None
    if slot is None:
        return serving.swap(None, context.health())
    warm = serving.warm
    if warm is None or warm.slot != slot:
        context.ports.slots.verify(slot, context.profile.name)
        warm = context.ports.loader.load(slot, context.profile)
    return serving.swap(warm, context.health())


def _fetch_manifest(record: Record, context: EffectContext) -> Manifest:
    order = _order(record)
    data = context.ports.downloads.small(context.url(order.sha256), order.length, order.sha256)
    manifest = parse_manifest(data)
    context.ports.slots.put_manifest(record.model, data, context.ports.images.proof(order))
    return manifest


def _staged_manifest(record: Record, context: EffectContext) -> Manifest:
    """The stage's manifest; downloaded again if the power failed before it was durable."""
    try:
        return context.ports.slots.staged(record.model, _order(record).sha256)
    except BundleError:
        return _fetch_manifest(record, context)


def _damaged(record: Record, error: BundleError) -> EffectResult:
    if record.redone >= MAX_REDONE:
        return failed(Effect.DOWNLOAD, error, "download")
    return EffectResult(Event.DAMAGED)


def _contradicted(effect: Effect, error: ProvenanceError) -> EffectResult:
    """Fail the update with a fault: to fetch the files again would not change what was signed."""
    fault = Fault(cause_of(error), str(error), "critical")
    return failed(effect, error)._replace(faults=(fault,))


def _refused(error: ShoalError) -> EffectResult:
    cause = cause_of(error)
    faults = (Fault(cause, str(error), "critical"),) if isinstance(error, TrustError) else ()
    return EffectResult(Event.REFUSED, Note(cause=cause, detail=str(error)), faults=faults)


def _expired(error: ExpiredError, clock_fault: str) -> EffectResult:
    """Refuse what has expired; with a clock that is known to be wrong, wait until it is set."""
    if not clock_fault:
        return _refused(error)
    detail = f"{error.message}, by a clock that is wrong: {clock_fault}; set it (timedatectl)"
    return EffectResult(None, Note(cause="clock", detail=detail), retry=True)


def _retry(error: ShoalError, tries: int = 0) -> EffectResult:
    note = Note(cause=cause_of(error), detail=str(error))
    if isinstance(error, (DeniedError, AbsentError)):
        note = Note(cause="download", detail=str(error))
    return EffectResult(None, note, retry=True, tries=tries)


def failed(effect: Effect, error: ShoalError, cause: str = "") -> EffectResult:
    """Map a permanent failure to the event of the state that `effect` belongs to."""
    note = Note(cause=cause or cause_of(error), detail=str(error))
    if effect is Effect.WATCH:
        return EffectResult(Event.UNHEALTHY, note)
    if effect is Effect.REVERT:
        return EffectResult(Event.INCONSISTENT, note)
    if effect in (Effect.COMMIT, Effect.REMOVE, Effect.CLEAN):
        return EffectResult(None, note, retry=effect is not Effect.CLEAN)
    return EffectResult(Event.BROKE, note)


def _order(record: Record) -> Order:
    if record.order is None:
        raise StorageError(f"the journal's record of {record.model} has no order")
    return record.order
