"""What a device says in a round: looked at, kept in a file, and then marked; or ignored, and why.

A device may say anything at any time: only what its state allows, and what is sound, changes
anything. An answer is in its file before the journal says that it is there.
"""

import logging
import re
from collections.abc import Callable
from typing import Any

import msgspec

from shoal.controller.federated.aggregation import row_claims, site_sums, update_chunks
from shoal.controller.federated.aggregation.row_claims import capped
from shoal.controller.federated.planning import plans
from shoal.controller.federated.rounds.active_round import Live
from shoal.controller.federated.rounds.machine import Heard, State, heard
from shoal.controller.federated.secagg.server import check_keys
from shoal.controller.federated.updates import MOST_LOSS, Update, check
from shoal.errors import InputError, ShoalError, StorageError, WireError
from shoal.federated import messages
from shoal.federated.compression import decompress
from shoal.federated.identity import check_signature
from shoal.federated.sums import LARGEST

_log = logging.getLogger(__name__)
#: An answer that is sound in form and wrong in content.
UNSOUND = "unsound"
#: One that could not even be looked at.
BAD_ANSWER = "bad-answer"
#: What a device has answered in a state, once a file of this kind is there.
_IN_FILES = {State.TRAINING: "update", State.UNMASKING: "shares", State.EVALUATING: "measured"}
_SLUG = re.compile(r"[a-z0-9-]{1,64}")


def take(
    live: Live, device: str, attempt: bytes, said: messages.DeviceMessage, now_s: float
) -> str:
    """Why it was ignored, or "" when it is in. StorageError when the disk refuses to keep it."""
    able = heard(live.now, device, attempt, now_s)
    if able.ignored:
        return able.ignored
    try:
        return _TAKERS[type(said)](live, device, said, able, now_s)
    except StorageError:
        raise
    except (ShoalError, msgspec.MsgspecError) as error:
        _log.warning("round %s: %s of %s: %s", live.id, type(said).__name__, device, error)
        return UNSOUND


def recall(live: Live) -> None:
    """Mark whose answers are on the disk, where the journal had not come to say so yet: they came
    in time."""
    kind = _IN_FILES.get(live.now.state)
    for name in live.files.devices(live.id, kind) if kind else ():
        said_for = site_sums.members(live, name) if kind == "update" else []
        for device in said_for or [name]:
            attempt = live.attempt_of(device)
            live.now = heard(live.now, device, attempt, live.now.deadline_s).round


def put_out(live: Live, device: str, attempt: bytes, now_s: float) -> str:
    """A device whose answer broke what read it is out of the round; why it was ignored."""
    live.now = heard(live.now, device, attempt, now_s, refused=BAD_ANSWER).round
    return BAD_ANSWER


def contribution_of(live: Live, device: str, data: bytes) -> messages.Contribution:
    """Decoded and checked against the model's size and the range of a sum; InputError or WireError
    when it is unsound."""
    try:
        found = msgspec.msgpack.decode(data, type=messages.Contribution)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise WireError(f"an update that is none: {error}") from error
    if found.site:
        return found  # looked at in site_sums
    if live.plan.secure is None:
        update = update_of(live, device, found)
        check(update, live.size)
        _check_reach(live, update)
    elif len(found.update) != 4 * (live.size + 1):
        raise InputError(f"a masked update of {len(found.update)} bytes", "another model's?")
    return found


def _check_reach(live: Live, update: Update) -> None:
    """InputError when it would take more than its part of the range in which sums are exact."""
    reach = plans.strategy_for(live.task.plan).reach(update)
    if not reach <= LARGEST / len(live.now.marks) - 1:
        raise InputError(f"an update that reaches {reach:g}", "its training diverged")


def update_of(live: Live, device: str, found: messages.Contribution) -> Update:
    """What a strategy takes. WireError when it cannot be unpacked."""
    wants_control = bool(live.plan.learning.terms.get("shift"))
    return Update(
        device=device,
        delta=decompress(found.update, live.size),
        examples=live.counted(device, found.examples),
        loss=found.loss,
        control=decompress(found.control, live.size) if wants_control else None,
        behind=live.now.behind(device),
    )


def _join(live: Live, device: str, said: messages.Join, able: Heard, now_s: float) -> str:
    if live.now.state is not State.RECRUITING:
        return "out-of-order"
    if live.plan.secure is not None:
        advert = said.advert
        if advert is None or advert.device != device:
            return UNSOUND
        check_keys(advert)
        message = advert.signed(live.bound)
        _verify(live, advert.certificate, device, advert.signature, message, now_s)
        live.files.put(live.id, "advert", device, msgspec.msgpack.encode(advert))
    live.now = able.round
    return ""


def _refuse(live: Live, device: str, said: messages.Refuse, able: Heard, now_s: float) -> str:
    reason = said.reason if _SLUG.fullmatch(said.reason) else "refused"
    live.now = heard(live.now, device, live.attempt_of(device), now_s, refused=reason).round
    return ""


def _boxes(live: Live, device: str, said: messages.Boxes, able: Heard, now_s: float) -> str:
    if live.now.state is not State.TRAINING or live.circle is None:
        return "out-of-order"
    if device in live.circle.shared:
        return "said-before"
    if live.circle.dealt is not None:
        return "late"
    live.circle.take_boxes(device, said.boxes)
    return ""


def _piece(live: Live, device: str, said: messages.Piece, able: Heard, now_s: float) -> str:
    circle = live.circle
    if live.now.state is not State.TRAINING:
        return "out-of-order"
    if circle is not None and device not in (circle.dealt or ()):
        return "out-of-order"
    kept = update_chunks.keep(live, device, said.chunk)
    if kept.payload is None:
        return kept.ignored
    try:
        found = contribution_of(live, device, kept.payload)
    except (InputError, WireError) as error:
        _log.warning("round %s: update of %s left out: %s", live.id, device, error)
        update_chunks.drop(live, device)
        attempt = live.attempt_of(device)
        live.now = heard(live.now, device, attempt, now_s, refused="bad-update").round
        return UNSOUND
    if found.site:
        update_chunks.drop(live, device)
        return site_sums.take(live, device, kept.payload, found.site, now_s)
    live.files.put(live.id, "update", device, kept.payload)
    update_chunks.drop(live, device)
    live.now = able.round
    return ""


def _vote(live: Live, device: str, said: messages.Vote, able: Heard, now_s: float) -> str:
    circle = live.circle
    if live.now.state is not State.UNMASKING or circle is None:
        return "out-of-order"
    if device in circle.voted:
        return "said-before"
    if circle.passed is not None:
        return "late"
    message = circle.ending.signed(live.bound)
    certificate = circle.adverts[device].certificate
    _verify(live, certificate, device, said.signature, message, now_s)
    circle.take_vote(device, said.signature)
    return ""


def _shares(live: Live, device: str, said: messages.Shares, able: Heard, now_s: float) -> str:
    circle = live.circle
    if live.now.state is not State.UNMASKING or circle is None:
        return "out-of-order"
    if device not in (circle.passed or ()) or not set(said.shares) <= circle.near(device):
        return UNSOUND
    live.files.put(live.id, "shares", device, msgspec.msgpack.encode(said.shares))
    live.now = able.round
    return ""


def _measured(live: Live, device: str, said: messages.Measured, able: Heard, now_s: float) -> str:
    if live.now.state is not State.EVALUATING:
        return "out-of-order"
    slices = [said.whole, *said.classes.values(), *([said.personal] if said.personal else [])]
    if set(said.classes) - {label[:64] for label in live.prepared.labels}:
        return UNSOUND
    if not all(0 <= one.loss <= MOST_LOSS * one.rows for one in slices):
        return UNSOUND
    if any(one.correct > one.rows for one in slices):
        return UNSOUND
    most = live.counted(device, 2**53, row_claims.UNTOLD)
    kept = messages.Measured(
        whole=capped(said.whole, most),
        classes={name: capped(one, most) for name, one in said.classes.items()},
        personal=capped(said.personal, most) if said.personal else None,
    )
    live.files.put(live.id, "measured", device, msgspec.msgpack.encode(kept))
    live.now = able.round
    return ""


def _verify(
    live: Live, certificate: bytes, device: str, signature: bytes, message: bytes, now_s: float
) -> None:
    check_signature(certificate, live.authorities, device, signature, message, now_s)


_Taker = Callable[[Live, str, Any, Heard, float], str]
_TAKERS: dict[type, _Taker] = {
    messages.Join: _join,
    messages.Refuse: _refuse,
    messages.Boxes: _boxes,
    messages.Piece: _piece,
    messages.Vote: _vote,
    messages.Shares: _shares,
    messages.Measured: _measured,
}
