"""From the files of a round to its checkpoint: one update in memory at a time.

Done again after a kill it gives the same bytes: sums are exact in any order, and noise comes from
a seed that is written down before it is drawn. So there is never a second, differently noised sum
of the same updates.
"""

import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np

from shoal.controller.federated import plans, suspicion
from shoal.controller.federated.gathering import too_few
from shoal.controller.federated.private import PrivateMean
from shoal.controller.federated.rounds import Mark
from shoal.controller.federated.strategy import Strategy
from shoal.controller.federated.updates import Aggregate, Server, Update
from shoal.controller.service.context import Context
from shoal.controller.service.federated import memories
from shoal.controller.service.federated.answers import update_of
from shoal.controller.service.federated.circle import summed
from shoal.controller.service.federated.live import Live
from shoal.federated.noise import Draws
from shoal.federated.speech import Contribution

SEED = 32


class Made(NamedTuple):
    """checkpoint, memory: blobs; loss: None where it is hidden; facts: device -> of its update."""

    checkpoint: str
    memory: str
    loss: float | None
    bytes: int
    facts: dict[str, dict[str, Any]]


def aggregate(ctx: Context, live: Live) -> Made:
    """ConflictError when updates or shares are too few, InputError when they cannot be used."""
    strategy = plans.strategy_for(live.task.plan)
    found, liars = _hidden(live) if live.plan.secure else (_seen(live, strategy), set[str]())
    before = memories.load(ctx, live.old_memory)
    theta = np.frombuffer(ctx.blobs.read(live.theta), "<f4")
    server = Server(theta=theta, rounds=before.rounds, memory=before.vectors)
    after = strategy.advance(server, found)
    facts = _facts(live, found)
    for device in liars:
        facts[device] = facts.get(device, {}) | {"suspect": "wrong-shares"}
    return Made(
        checkpoint=ctx.blobs.put_bytes(after.theta.astype("<f4").tobytes()).sha256,
        memory=memories.store(ctx, after),
        loss=_loss(facts),
        bytes=sum(fact["bytes"] for fact in facts.values()),
        facts=facts,
    )


def _seen(live: Live, strategy: Strategy) -> Aggregate:
    """Of updates as they are; with central privacy a noised mean of clipped ones."""
    if not live.now.having(Mark.UPDATED):
        raise too_few(0, live.plan.least)
    with live.files.shelf(live.id, live.size) as shelf:
        gathering = _private(live) or strategy.gather(live.size, shelf)
        for update in _updates(live):
            gathering.add(update)
        return gathering.result()


def _private(live: Live) -> PrivateMean | None:
    privacy = live.plan.privacy
    if privacy is None or privacy.where != "central":
        return None
    seed = live.files.get(live.id, "noise")
    if seed is None:
        seed = secrets.token_bytes(SEED)
        live.files.put(live.id, "noise", "", seed)
    return PrivateMean(live.size, privacy, live.now.pace.goal, Draws(seed))


def _hidden(live: Live) -> tuple[Aggregate, set[str]]:
    """Of a sum that nobody sees the parts of; and whose shares were wrong."""
    assert live.plan.secure is not None
    total, ending, liars = summed(live.id, live.terms, live.files, live.size)
    mean, _ = live.plan.secure.scale.decode(total, len(ending.alive))
    names = tuple(ending.alive)
    return Aggregate(delta=mean, devices=names, chosen=names), liars


def _updates(live: Live) -> Iterator[Update]:
    """One after the other, in the order of names."""
    for device in live.now.having(Mark.UPDATED):
        yield update_of(live, device, _contribution(live, device))


def _contribution(live: Live, device: str) -> Contribution:
    return msgspec.msgpack.decode(
        live.files.get(live.id, "update", device) or b"", type=Contribution
    )


def _facts(live: Live, found: Aggregate) -> dict[str, dict[str, Any]]:
    """device -> fields of records.Participation. What noise or masks hide is not looked at."""
    chosen = set(found.chosen)
    facts: dict[str, dict[str, Any]] = {}
    for device in found.devices:
        said = _contribution(live, device)
        size = live.files.size(live.id, "update", device)
        facts[device] = {
            "examples": said.examples, "seconds": said.seconds, "bytes": size,
            "chosen": device in chosen,
        }  # fmt: skip
    if live.plan.secure is None and not _is_central(live):
        for one in suspicion.compare(lambda: _updates(live), live.size):
            facts[one.device] |= {
                "loss": one.loss, "norm": one.norm, "cosine": one.cosine, "suspect": one.suspect
            }  # fmt: skip
    return facts


def _is_central(live: Live) -> bool:
    """What people are shown is as private as what devices are."""
    return live.plan.privacy is not None and live.plan.privacy.where == "central"


def _loss(facts: dict[str, dict[str, Any]]) -> float | None:
    """Mean over examples."""
    seen = [fact for fact in facts.values() if fact.get("loss") is not None]
    rows = sum(fact["examples"] for fact in seen)
    return sum(fact["loss"] * fact["examples"] for fact in seen) / rows if rows else None
