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

from shoal.controller.federated.aggregation import outlier_scores, site_sums, strategy_state
from shoal.controller.federated.aggregation.row_claims import UNTOLD
from shoal.controller.federated.gathering import Weighed, too_few
from shoal.controller.federated.planning import plans
from shoal.controller.federated.privacy.central import PrivateMean
from shoal.controller.federated.rounds.active_round import Live
from shoal.controller.federated.rounds.device_messages import update_of
from shoal.controller.federated.rounds.machine import Mark
from shoal.controller.federated.secagg.session import summed
from shoal.controller.federated.strategy import Strategy
from shoal.controller.federated.updates import MOST_LOSS, Aggregate, Server, Update
from shoal.controller.host.context import Context
from shoal.errors import AbsentError
from shoal.federated.messages import Contribution
from shoal.federated.noise import Draws
from shoal.federated.plan import Privacy

SEED = 32


class Made(NamedTuple):
    """checkpoint, memory: blobs; loss: None where it is hidden; next_clip: of an adaptive clip,
    else 0; facts: device -> of its update."""

    checkpoint: str
    memory: str
    loss: float | None
    bytes: int
    next_clip: float
    facts: dict[str, dict[str, Any]]


class _Gathered(NamedTuple):
    """liars: whose shares were wrong; next_clip as in Made."""

    found: Aggregate
    liars: frozenset[str] = frozenset()
    next_clip: float = 0.0


def aggregate(ctx: Context, live: Live) -> Made:
    """ConflictError when updates or shares are too few, InputError when they cannot be used."""
    strategy = plans.strategy_for(live.task.plan)
    gathered = _gathered(live, strategy)
    before = strategy_state.load(ctx, live.old_memory)
    theta = np.frombuffer(ctx.blobs.read(live.theta), "<f4")
    server = Server(theta=theta, rounds=before.rounds, memory=before.vectors)
    after = strategy.advance(server, _shared(live, gathered.found))
    facts = _facts(live, gathered.found)
    for device in gathered.liars:
        facts[device] = facts.get(device, {}) | {"suspect": "wrong-shares"}
    return Made(
        checkpoint=ctx.blobs.put_bytes(after.theta.astype("<f4").tobytes()).sha256,
        memory=strategy_state.store(ctx, after),
        loss=_loss(live, facts),
        bytes=sum(fact["bytes"] for fact in facts.values()),
        next_clip=gathered.next_clip,
        facts=facts,
    )


def _shared(live: Live, found: Aggregate) -> Aggregate:
    """Without what stays on the devices, whatever they sent of it."""
    if not live.prepared.personal:
        return found
    delta = found.delta.copy()
    for start, stop in live.prepared.personal:
        delta[start:stop] = 0
    return msgspec.structs.replace(found, delta=delta)


def _gathered(live: Live, strategy: Strategy) -> _Gathered:
    if live.plan.secure is not None:
        return _hidden(live)
    if not live.now.having(Mark.UPDATED):
        raise too_few(0, live.plan.least)
    privacy = live.plan.privacy
    if privacy is not None and privacy.where == "central":
        return _noised(live, privacy)
    with live.files.shelf(live.id, live.size) as shelf:
        gathering = strategy.gather(live.size, shelf)
        for update in _updates(live):
            gathering.add(update)
        for site in site_sums.of(live):
            assert isinstance(gathering, Weighed)  # as plans.check_task has it
            gathering.merge(*site)
        return _Gathered(gathering.result())


def _noised(live: Live, privacy: Privacy) -> _Gathered:
    """A mean of clipped updates with noise; and, if the clip adapts, the next one."""
    adaptive, draws = live.task.plan.adaptive, Draws(_seed(live))
    if adaptive is not None:
        noise = adaptive.noise_on_updates(privacy.noise)
        privacy = msgspec.structs.replace(privacy, noise=noise)
    mean = PrivateMean(live.size, privacy, live.now.pace.goal, draws)
    for update in _updates(live):
        mean.add(update)
    found = mean.result()
    if adaptive is None:
        return _Gathered(found)
    share = adaptive.counted(mean.within, len(found.devices), draws)
    return _Gathered(found, next_clip=adaptive.following(privacy.clip, share))


def _seed(live: Live) -> bytes:
    """Written down before it is used: the same updates are never noised anew."""
    seed = live.files.get(live.id, "noise")
    if seed is None:
        seed = secrets.token_bytes(SEED)
        live.files.put(live.id, "noise", "", seed)
    return seed


def _hidden(live: Live) -> _Gathered:
    """Of a sum that nobody sees the parts of."""
    assert live.plan.secure is not None
    total, ending, liars = summed(live.id, live.terms, live.files, live.size)
    mean, _ = live.plan.secure.scale.decode(total, len(ending.alive))
    names = tuple(ending.alive)
    return _Gathered(Aggregate(delta=mean, devices=names, chosen=names), frozenset(liars))


def _updates(live: Live) -> Iterator[Update]:
    """One after the other, in the order of names; not those that a gateway has summed."""
    for device in site_sums.alone(live):
        yield update_of(live, device, _contribution(live, device))


def _contribution(live: Live, device: str) -> Contribution:
    data = live.files.get(live.id, "update", device)
    if data is None:
        hint = "was the database restored without it? The next try asks the devices anew"
        raise AbsentError("update", f"{device} in round {live.id}", hint)
    return msgspec.msgpack.decode(data, type=Contribution)


def _facts(live: Live, found: Aggregate) -> dict[str, dict[str, Any]]:
    """device -> fields of records.Participation. What noise or masks hide is not looked at."""
    chosen = set(found.chosen)
    facts: dict[str, dict[str, Any]] = {}
    summed_up = site_sums.facts(live)
    for device in found.devices:
        if device in summed_up:
            facts[device] = summed_up[device]
            continue
        said = _contribution(live, device)
        size = live.files.size(live.id, "update", device)
        facts[device] = {
            "examples": said.examples, "seconds": said.seconds, "bytes": size,
            "chosen": device in chosen,
        }  # fmt: skip
    if live.plan.secure is None and not _is_central(live):
        for one in outlier_scores.compare(lambda: _updates(live), live.size):
            facts[one.device] |= {
                "loss": one.loss, "norm": one.norm, "cosine": one.cosine, "suspect": one.suspect
            }  # fmt: skip
    return facts


def _is_central(live: Live) -> bool:
    """What people are shown is as private as what devices are."""
    return live.plan.privacy is not None and live.plan.privacy.where == "central"


def _loss(live: Live, facts: dict[str, dict[str, Any]]) -> float | None:
    """Mean over examples, as far as a device's claim of them counts."""
    seen = [
        (min(fact["loss"], MOST_LOSS), live.counted(name, fact["examples"], UNTOLD))
        for name, fact in facts.items()
        if fact.get("loss") is not None
    ]
    rows = sum(examples for _, examples in seen)
    return sum(loss * examples for loss, examples in seen) / rows if rows else None
