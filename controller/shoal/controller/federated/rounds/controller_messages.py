"""What the controller says in a round, to whom, and when again.

Whoever has not answered what the state asks for is told again after 2, 4, 8 ... 30 s. An update
whose pieces are on their way is not asked for: only when they stop coming.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from shoal.controller.federated.aggregation import gateways, strategy_state, update_chunks
from shoal.controller.federated.rounds.active_round import Live, Nudge
from shoal.controller.federated.rounds.machine import Mark, State
from shoal.controller.host.context import Context
from shoal.controller.releases import addresses
from shoal.federated import messages
from shoal.federated.config import Config, Content, secure_id

BACK_OFF_S = (2.0, 4.0, 8.0, 16.0, 30.0)
#: Addresses outlive the round by so much: a download that began may end.
_LATER_S = 3_600.0


class Due(NamedTuple):
    """Something to say to a device, and what is remembered once it was said."""

    device: str
    call: messages.ControllerMessage
    nudge: Nudge


def due(ctx: Context, live: Live) -> Iterator[Due]:
    """What is to be said now."""
    now_s = ctx.clock()
    for what, waiting, say in _asked(ctx, live):
        for device in waiting:
            before = live.nudges.get(device)
            same = before is not None and before.what == what
            if same and before is not None and before.next_s > now_s:
                continue
            times = before.times + 1 if same and before is not None else 1
            again_s = now_s + BACK_OFF_S[min(times, len(BACK_OFF_S)) - 1]
            yield Due(device, say(device), Nudge(what, times, again_s))


def answered(live: Live, device: str, now_s: float) -> None:
    """It is at it: not to be asked again soon."""
    nudge = live.nudges.get(device)
    if nudge is not None:
        live.nudges[device] = nudge._replace(next_s=now_s + BACK_OFF_S[1])


def config_of(ctx: Context, live: Live, purpose: str) -> Config:
    """What is signed. purpose: "train", or "evaluate": the new checkpoint is measured."""
    prepared, graph = live.prepared, live.task.plan.graph
    evaluating = purpose == "evaluate"
    return Config(
        plan=live.plan,
        model=live.task.model,
        purpose="evaluate" if evaluating else "train",
        graph=_content(ctx, prepared.loss_graph if evaluating else prepared.graph),
        theta=_content(ctx, (live.checkpoint or live.theta) if evaluating else live.theta),
        control=None if evaluating else _control(ctx, live),
        personal=tuple(prepared.personal),
        ditto=graph.ditto,
        labels=tuple(prepared.labels),
        features=tuple(prepared.features),
    )


def bound(ctx: Context, live: Live) -> bytes:
    """What the devices of a securely aggregated round know it by; b"" for other rounds."""
    if live.plan.secure is None or live.now.purpose != "train":
        return b""
    return secure_id(live.plan.attempt, config_of(ctx, live, "train").text())


_Asked = tuple[str, Sequence[str], Callable[[str], messages.ControllerMessage]]


def _asked(ctx: Context, live: Live) -> list[_Asked]:
    """What the state asks for, of whom it is missing, and how it is said."""
    now, circle = live.now, live.circle
    if now.state is State.RECRUITING:
        return [("invite", now.having(Mark.INVITED), lambda _: _signed(ctx, live, "train"))]
    if now.state is State.TRAINING and circle is None:
        return _asked_to_train(ctx, live)
    if now.state is State.TRAINING:
        return _asked_to_hide(live)
    if now.state is State.UNMASKING and circle is not None:
        return _asked_to_reveal(live)
    if now.state is State.EVALUATING:
        waiting = now.having(Mark.JOINED, Mark.UPDATED, Mark.REVEALED)
        return [("measure", waiting, lambda _: _signed(ctx, live, "evaluate"))]
    return []


def _asked_to_train(ctx: Context, live: Live) -> list[_Asked]:
    """Directly, or by way of a gateway: whoever's way has changed is told at once."""
    ways = gateways.ways(ctx, live)
    alone = [name for name in live.now.having(Mark.JOINED) if name not in ways]
    asked: list[_Asked] = [("start", alone, lambda d: _resend(live, d) or messages.Start())]
    for name, way in ways.items():
        anew = sum((way.generations or {}).values())
        what = f"start by {way.gateway} of {len(way.members)}, {anew} times enrolled anew"
        asked.append((what, [name], lambda d: _resend(live, d) or messages.Start(way=ways[d])))
    return asked


def _asked_to_hide(live: Live) -> list[_Asked]:
    circle, joined = live.circle, live.now.having(Mark.JOINED)
    assert circle is not None
    if circle.dealt is None:
        waiting = [name for name in joined if name not in circle.shared]
        return [("start", waiting, lambda d: messages.Start(roster=circle.roster_for(d)))]
    return [
        ("deal", joined, lambda d: _resend(live, d) or messages.Deal(boxes=circle.boxes_for(d)))
    ]


def _asked_to_reveal(live: Live) -> list[_Asked]:
    circle, waiting = live.circle, live.now.having(Mark.UPDATED)
    assert circle is not None
    if circle.passed is None:
        ending = circle.ending
        silent = [name for name in waiting if name not in circle.voted]
        return [("close", silent, lambda _: messages.Close(ending=ending))]
    voted = [name for name in waiting if name in circle.passed]
    return [("pass", voted, lambda d: messages.Pass(votes=circle.votes_for(d)))]


def _resend(live: Live, device: str) -> messages.Resend | None:
    """None unless a part of its update is here."""
    missing = update_chunks.missing(live, device)
    return messages.Resend(missing=missing) if missing else None


def _signed(ctx: Context, live: Live, purpose: str) -> messages.Invite | messages.Measure:
    if purpose not in live.signed:
        kind = messages.Measure if purpose == "evaluate" else messages.Invite
        config = config_of(ctx, live, purpose)
        wanted = {content.sha256 for content in config.contents().values()}
        live.signed[purpose] = kind(
            signed=ctx.signer.sign_round(config, ctx.clock()),
            urls=addresses.urls_of(ctx, wanted, live.plan.deadline_s + _LATER_S),
        )
    return live.signed[purpose]


def _content(ctx: Context, sha256: str) -> Content:
    return Content(sha256=sha256, length=ctx.blobs.path(sha256).stat().st_size)


def _control(ctx: Context, live: Live) -> Content | None:
    """SCAFFOLD's c, float32, as a blob."""
    if not live.plan.learning.terms.get("shift"):
        return None
    memory = strategy_state.load(ctx, live.old_memory)
    c = memory.vectors.get("c", np.zeros(live.size))
    blob = ctx.blobs.put_bytes(c.astype("<f4").tobytes())
    return Content(sha256=blob.sha256, length=blob.size)
