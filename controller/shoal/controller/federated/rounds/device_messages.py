"""Messages from a round's devices: validated, kept in a file, then marked; or ignored.

A message changes something only if the round's state allows it and its content is valid. Its
content is in a file before the journal records it.
"""

import logging
import re
from collections.abc import Callable
from typing import Any

import msgspec

from shoal.controller.federated.aggregation import client_updates, gateways
from shoal.controller.federated.rounds.active_round import DEFAULT_ROW_LIMIT, ActiveRound
from shoal.controller.federated.rounds.machine import Received, State
from shoal.controller.federated.rounds.machine import receive as mark_received
from shoal.controller.federated.secagg.server import check_keys
from shoal.controller.federated.updates import MOST_LOSS
from shoal.errors import InputError, ShoalError, StorageError, WireError
from shoal.federated import messages
from shoal.federated.identity import check_signature

_log = logging.getLogger(__name__)
#: Reason of a well-formed message with invalid content.
UNSOUND = "unsound"
#: Reason of a message that made its parser fail.
BAD_ANSWER = "bad-answer"
#: Kind of file that completes a device's part of a state.
_FILE_OF_STATE = {State.TRAINING: "update", State.UNMASKING: "shares", State.EVALUATING: "measured"}
_SLUG = re.compile(r"[a-z0-9-]{1,64}")


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
