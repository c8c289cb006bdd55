"""Messages of a round: to its devices, and when they are repeated; from them, and what they change.

A device that has not answered is asked again after 2, 4, 8 ... 30 s. While an update's chunks keep
arriving it is not requested again; when they stop, only the missing ones are.

A device's message changes something only if the round's state allows it and its content is valid.
Its content is in a file before the journal records it.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any, NamedTuple

import msgspec
import numpy as np
from sqlalchemy import Connection, Row, select

from shoal import wire
from shoal.controller.federated.aggregation import checkpoint_files, client_updates, gateways
from shoal.controller.federated.rounds import rows
from shoal.controller.federated.rounds.active_round import DEFAULT_ROW_LIMIT, ActiveRound, Request
from shoal.controller.federated.rounds.machine import (
    STILL_TRAINING,
    Mark,
    Received,
    RoundRecord,
    State,
)
from shoal.controller.federated.rounds.machine import receive as mark_received
from shoal.controller.federated.secagg.server import check_keys
from shoal.controller.federated.updates import MOST_LOSS
from shoal.controller.host.context import Context
from shoal.controller.releases import download_urls
from shoal.controller.store.tables import participation
from shoal.errors import InputError, ShoalError, StorageError, WireError
from shoal.federated import messages
from shoal.federated.config import Config, Content, secure_id
from shoal.federated.identity import check_signature

_log = logging.getLogger(__name__)
#: Reason of a well-formed message with invalid content.
UNSOUND = "unsound"
#: Reason of a message that made its parser fail.
BAD_ANSWER = "bad-answer"
#: Kind of file that completes a device's part of a state.
_FILE_OF_STATE = {State.TRAINING: "update", State.UNMASKING: "shares", State.EVALUATING: "measured"}
_SLUG = re.compile(r"[a-z0-9-]{1,64}")
BACK_OFF_S = (2.0, 4.0, 8.0, 16.0, 30.0)
#: Addresses outlive the round by so much: a download in progress may end.
_GRACE_S = 3_600.0
_HAVE_SENT = (Mark.UPDATED, Mark.REVEALED, Mark.MEASURED)


# --- to the devices ----------------------------------------------------------------------------


class Due(NamedTuple):
    """A message to send to a device now, and what to remember once it is sent."""

    device: str
    call: messages.ControllerMessage
    request: Request


def due(ctx: Context, active: ActiveRound) -> Iterator[Due]:
    """Messages that the round's state requires now."""
    now_s = ctx.clock()
    for kind, waiting, message_for in _pending(ctx, active):
        for device in waiting:
            last = active.requests.get(device)
            repeated = last is not None and last.kind == kind
            if repeated and last is not None and last.repeat_at_s > now_s:
                continue
            times = last.times + 1 if repeated and last is not None else 1
            repeat_at_s = now_s + BACK_OFF_S[min(times, len(BACK_OFF_S)) - 1]
            yield Due(device, message_for(device), Request(kind, times, repeat_at_s))


def postpone(active: ActiveRound, device: str, now_s: float) -> None:
    """A device has just sent a message: do not repeat its request yet."""
    request = active.requests.get(device)
    if request is not None:
        active.requests[device] = request._replace(repeat_at_s=now_s + BACK_OFF_S[1])


def config_of(ctx: Context, active: ActiveRound, purpose: str) -> Config:
    """Config to sign. purpose: "train", or "evaluate" to measure the newest checkpoint."""
    prepared, graph = active.prepared, active.task.plan.graph
    evaluating = purpose == "evaluate"
    return Config(
        plan=active.plan,
        model=active.task.model,
        purpose="evaluate" if evaluating else "train",
        graph=_content(ctx, prepared.loss_graph if evaluating else prepared.graph),
        theta=_content(ctx, (active.checkpoint or active.theta) if evaluating else active.theta),
        control=None if evaluating else _control(ctx, active),
        personal=tuple(prepared.personal),
        ditto=graph.ditto,
        labels=tuple(prepared.labels),
        features=tuple(prepared.features),
    )


def secagg_id(ctx: Context, active: ActiveRound) -> bytes:
    """Identity of a securely aggregated round in its devices' signatures; b"" for other rounds."""
    if active.plan.secure is None or active.record.purpose != "train":
        return b""
    return secure_id(active.plan.attempt, config_of(ctx, active, "train").text())


#: (kind, devices whose answer is missing, message for each)
_Pending = tuple[str, Sequence[str], Callable[[str], messages.ControllerMessage]]


def _pending(ctx: Context, active: ActiveRound) -> list[_Pending]:
    record, secagg = active.record, active.secagg
    if record.state is State.RECRUITING:
        return [("invite", record.with_mark(Mark.INVITED), lambda _: _signed(ctx, active, "train"))]
    if record.state is State.TRAINING and secagg is None:
        return _to_train(ctx, active)
    if record.state is State.TRAINING:
        return _to_train_masked(active)
    if record.state is State.UNMASKING and secagg is not None:
        return _to_unmask(active)
    if record.state is State.EVALUATING:
        waiting = record.with_mark(Mark.JOINED, Mark.UPDATED, Mark.REVEALED)
        return [("measure", waiting, lambda _: _signed(ctx, active, "evaluate"))]
    return []


def _to_train(ctx: Context, active: ActiveRound) -> list[_Pending]:
    """Send directly, or by way of a gateway; a device whose way has changed is told at once."""
    ways = gateways.ways(ctx, active)
    direct = [name for name in active.record.with_mark(Mark.JOINED) if name not in ways]
    pending: list[_Pending] = [("start", direct, lambda d: _resend(active, d) or messages.Start())]
    for name, way in ways.items():
        generations = sum((way.generations or {}).values())
        kind = f"start by {way.gateway} of {len(way.members)}, generations {generations}"
        pending.append((kind, [name], lambda d: _resend(active, d) or messages.Start(way=ways[d])))
    return pending


def _to_train_masked(active: ActiveRound) -> list[_Pending]:
    """Key sharing first, then masked updates."""
    secagg, joined = active.secagg, active.record.with_mark(Mark.JOINED)
    assert secagg is not None
    if secagg.sharers is None:
        waiting = [name for name in joined if name not in secagg.shared]
        return [("start", waiting, lambda d: messages.Start(roster=secagg.roster_for(d)))]
    return [
        (
            "deal",
            joined,
            lambda d: _resend(active, d) or messages.Deal(boxes=secagg.boxes_for(d)),
        )
    ]


def _to_unmask(active: ActiveRound) -> list[_Pending]:
    """Votes first, then shares."""
    secagg, waiting = active.secagg, active.record.with_mark(Mark.UPDATED)
    assert secagg is not None
    if secagg.voters is None:
        ending = secagg.ending
        silent = [name for name in waiting if name not in secagg.voted]
        return [("close", silent, lambda _: messages.Close(ending=ending))]
    voters = [name for name in waiting if name in secagg.voters]
    return [("pass", voters, lambda d: messages.Pass(votes=secagg.votes_for(d)))]


def _resend(active: ActiveRound, device: str) -> messages.Resend | None:
    """None unless some chunks of its update have arrived."""
    missing = client_updates.missing_chunks(active, device)
    return messages.Resend(missing=missing) if missing else None


def _signed(ctx: Context, active: ActiveRound, purpose: str) -> messages.Invite | messages.Measure:
    if purpose not in active.signed:
        kind = messages.Measure if purpose == "evaluate" else messages.Invite
        config = config_of(ctx, active, purpose)
        files = {content.sha256 for content in config.contents().values()}
        active.signed[purpose] = kind(
            signed=ctx.signer.sign_round(config, ctx.clock()),
            urls=download_urls.urls_of(
                ctx.folder, ctx.settings.network, files, active.plan.deadline_s + _GRACE_S
            ),
        )
    return active.signed[purpose]


def _content(ctx: Context, sha256: str) -> Content:
    return Content(sha256=sha256, length=ctx.blobs.path(sha256).stat().st_size)


def _control(ctx: Context, active: ActiveRound) -> Content | None:
    """SCAFFOLD's control variate c, float32, as a blob."""
    if not active.plan.learning.terms.get("shift"):
        return None
    state = checkpoint_files.load_state(ctx, active.old_memory)
    c = state.vectors.get("c", np.zeros(active.size))
    blob = ctx.blobs.put_bytes(c.astype("<f4").tobytes())
    return Content(sha256=blob.sha256, length=blob.size)


def dismissals(db: Connection, row: Row[Any]) -> Iterator[tuple[str, wire.RoundCall]]:
    """Dismiss an ended round's devices, except those that still train for a later round."""
    record = rows.record_of(row)
    query = select(participation.c.device).where(
        participation.c.round == row.id, participation.c.chosen
    )
    chosen = set(db.scalars(query))
    for device in sorted(record.marks):
        if record.reasons.get(device) == STILL_TRAINING:
            continue
        origin = record.carried.get(device)
        attempt = origin.attempt if origin else record.attempt
        call = messages.Dismiss(reason=_dismissal_reason(record, device, chosen))
        yield device, wire.RoundCall(attempt=attempt, said=call)


def _dismissal_reason(record: RoundRecord, device: str, chosen: Set[str]) -> str:
    """ "" when the device's update is in the checkpoint: it keeps its state of this round."""
    if record.state is not State.DONE:
        return record.reason or "failed"
    if device in chosen:
        return ""
    has_sent = record.marks[device] in _HAVE_SENT
    return "not-chosen" if has_sent else record.reasons.get(device, "not-needed")


# --- from the devices --------------------------------------------------------------------------


def receive(
    active: ActiveRound, device: str, attempt: bytes, message: messages.DeviceMessage, now_s: float
) -> str:
    """Take a message; why it is ignored, or "". StorageError when the disk refuses to keep it."""
    able = mark_received(active.record, device, attempt, now_s)
    if able.ignored:
        return able.ignored
    state, take = _RECEIVERS[type(message)]
    if state not in (None, active.record.state):
        return "out-of-order"
    try:
        return take(active, device, message, able, now_s)
    except StorageError:
        raise
    except (ShoalError, msgspec.MsgspecError) as error:
        _log.warning("round %s: %s of %s: %s", active.id, type(message).__name__, device, error)
        return UNSOUND


def restore_marks(active: ActiveRound) -> None:
    """Mark the devices whose answers are on disk though the journal does not have them yet."""
    kind = _FILE_OF_STATE.get(active.record.state)
    for name in active.files.devices(active.id, kind) if kind else ():
        members = gateways.members(active, name) if kind == "update" else []
        for device in members or [name]:
            attempt, deadline_s = active.record.attempt_of(device), active.record.deadline_s
            active.record = mark_received(active.record, device, attempt, deadline_s).record


def refuse(active: ActiveRound, device: str, now_s: float, reason: str) -> None:
    """Take a device out of the round."""
    attempt = active.record.attempt_of(device)
    active.record = mark_received(active.record, device, attempt, now_s, refused=reason).record


def _join(
    active: ActiveRound, device: str, message: messages.Join, able: Received, now_s: float
) -> str:
    if active.plan.secure is not None:
        advert = message.advert
        if advert is None or advert.device != device:
            return UNSOUND
        check_keys(advert)
        signed = advert.signed(active.secagg_id)
        check_signature(
            advert.certificate, active.authorities, device, advert.signature, signed, now_s
        )
        active.files.put(active.id, "advert", device, msgspec.msgpack.encode(advert))
    active.record = able.record
    return ""


def _refuse(
    active: ActiveRound, device: str, message: messages.Refuse, able: Received, now_s: float
) -> str:
    reason = message.reason if _SLUG.fullmatch(message.reason) else "refused"
    refuse(active, device, now_s, reason)
    return ""


def _boxes(
    active: ActiveRound, device: str, message: messages.Boxes, able: Received, now_s: float
) -> str:
    if active.secagg is None:
        return "out-of-order"
    return active.secagg.add_boxes(device, message.boxes)


def _chunk(
    active: ActiveRound, device: str, message: messages.Piece, able: Received, now_s: float
) -> str:
    secagg = active.secagg
    if secagg is not None and device not in (secagg.sharers or ()):
        return "out-of-order"
    kept = client_updates.keep_chunk(active, device, message.chunk)
    if kept.payload is None:
        return kept.ignored
    try:
        found = client_updates.decode(active, device, kept.payload)
    except (InputError, WireError) as error:
        _log.warning("round %s: update of %s left out: %s", active.id, device, error)
        client_updates.drop_chunks(active, device)
        refuse(active, device, now_s, "bad-update")
        return UNSOUND
    if found.site:
        client_updates.drop_chunks(active, device)
        return gateways.keep_sum(active, device, kept.payload, found.site, now_s)
    active.files.put(active.id, "update", device, kept.payload)
    client_updates.drop_chunks(active, device)
    active.record = able.record
    return ""


def _vote(
    active: ActiveRound, device: str, message: messages.Vote, able: Received, now_s: float
) -> str:
    if active.secagg is None:
        return "out-of-order"
    return active.secagg.add_vote(device, message.signature, active.authorities, now_s)


def _shares(
    active: ActiveRound, device: str, message: messages.Shares, able: Received, now_s: float
) -> str:
    secagg = active.secagg
    if secagg is None:
        return "out-of-order"
    if device not in (secagg.voters or ()):
        return UNSOUND
    if not set(message.shares) <= secagg.neighbours(device):
        return UNSOUND
    active.files.put(active.id, "shares", device, msgspec.msgpack.encode(message.shares))
    active.record = able.record
    return ""


def _measured(
    active: ActiveRound, device: str, message: messages.Measured, able: Received, now_s: float
) -> str:
    personal = [message.personal] if message.personal else []
    slices = [message.whole, *message.classes.values(), *personal]
    if set(message.classes) - {label[:64] for label in active.prepared.labels}:
        return UNSOUND
    if not all(0 <= one.loss <= MOST_LOSS * one.rows for one in slices):
        return UNSOUND
    if any(one.correct > one.rows for one in slices):
        return UNSOUND
    most = active.limit_rows(device, 2**53, DEFAULT_ROW_LIMIT)
    kept = messages.Measured(
        whole=_limited(message.whole, most),
        classes={name: _limited(one, most) for name, one in message.classes.items()},
        personal=_limited(message.personal, most) if message.personal else None,
    )
    active.files.put(active.id, "measured", device, msgspec.msgpack.encode(kept))
    active.record = able.record
    return ""


def _limited(one: messages.Slice, most: int) -> messages.Slice:
    """Scale a slice of more than `most` rows down to `most`, with the same averages.

    >>> _limited(messages.Slice(rows=1000, loss=500.0, correct=800), 100)
    Slice(rows=100, loss=50.0, correct=80)
    """
    if one.rows <= most:
        return one
    share = most / one.rows
    correct = one.correct if one.correct < 0 else int(one.correct * share)
    return messages.Slice(rows=most, loss=one.loss * share, correct=correct)


_Receiver = Callable[[ActiveRound, str, Any, Received, float], str]
#: Message -> the state that it is an answer in, None for any, and what takes it.
_RECEIVERS: dict[type, tuple[State | None, _Receiver]] = {
    messages.Join: (State.RECRUITING, _join),
    messages.Refuse: (None, _refuse),
    messages.Boxes: (State.TRAINING, _boxes),
    messages.Piece: (State.TRAINING, _chunk),
    messages.Vote: (State.UNMASKING, _vote),
    messages.Shares: (State.UNMASKING, _shares),
    messages.Measured: (State.EVALUATING, _measured),
}
