"""From the files of a round to its checkpoint: one update in memory at a time.

Repeated after a restart it gives the same bytes: sums are exact in any order, and noise comes from
a seed that is written before it is drawn. So the same updates are never summed with other noise.
"""

import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np
from sqlalchemy import select, update

from shoal.controller.federated.aggregation import client_updates, gateways, outlier_scores
from shoal.controller.federated.aggregation.gathering import too_few
from shoal.controller.federated.planning import plans
from shoal.controller.federated.privacy.central import PrivateMean
from shoal.controller.federated.rounds.active_round import DEFAULT_ROW_LIMIT, ActiveRound
from shoal.controller.federated.rounds.machine import Mark
from shoal.controller.federated.secagg.session import unmask
from shoal.controller.federated.strategies.fedavg import WeightedSum
from shoal.controller.federated.strategy import Strategy
from shoal.controller.federated.updates import F64, MOST_LOSS, Aggregate, Server, Update
from shoal.controller.host.context import Context
from shoal.controller.store.tables import federated_round, federated_task
from shoal.federated.noise import Draws
from shoal.federated.plan import Privacy

SEED = 32
#: Newest rounds of a task whose strategy state is kept, to resume before a poisoned round.
KEPT_STATES = 20


class Result(NamedTuple):
    """Outcome of an aggregation.

    checkpoint, memory   blobs: theta, and the strategy's state
    loss                 None where it is hidden
    next_clip            of an adaptive clip, else 0
    facts                device -> fields of records.Participation
    """

    checkpoint: str
    memory: str
    loss: float | None
    bytes: int
    next_clip: float
    facts: dict[str, dict[str, Any]]


class _Gathered(NamedTuple):
    """faulty: devices that sent wrong shares; next_clip as in Result."""

    found: Aggregate
    faulty: frozenset[str] = frozenset()
    next_clip: float = 0.0


def aggregate(ctx: Context, active: ActiveRound) -> Result:
    """ConflictError for too few updates or shares, InputError for ones that cannot be used."""
    strategy = plans.strategy_for(active.task.plan)
    gathered = _gather(active, strategy)
    before = load_state(ctx, active.old_memory)
    theta = np.frombuffer(ctx.blobs.read(active.theta), "<f4")
    server = Server(theta=theta, rounds=before.rounds, memory=before.vectors)
    after = strategy.advance(server, _without_personal(active, gathered.found))
    facts = _facts(active, gathered.found)
    for device in gathered.faulty:
        facts[device] = facts.get(device, {}) | {"suspect": "wrong-shares"}
    return Result(
        checkpoint=ctx.blobs.put_bytes(after.theta.astype("<f4").tobytes()).sha256,
        memory=_save_state(ctx, after),
        loss=_loss(active, facts),
        bytes=sum(fact["bytes"] for fact in facts.values()),
        next_clip=gathered.next_clip,
        facts=facts,
    )


def _without_personal(active: ActiveRound, found: Aggregate) -> Aggregate:
    """Without the layers that stay on each device, whatever the devices sent of them."""
    if not active.prepared.personal:
        return found
    delta = found.delta.copy()
    for start, stop in active.prepared.personal:
        delta[start:stop] = 0
    return msgspec.structs.replace(found, delta=delta)


def _gather(active: ActiveRound, strategy: Strategy) -> _Gathered:
    if active.plan.secure is not None:
        return _secure_mean(active)
    if not active.record.with_mark(Mark.UPDATED):
        raise too_few(0, active.plan.least)
    privacy = active.plan.privacy
    if privacy is not None and privacy.where == "central":
        return _private_mean(active, privacy)
    with active.files.shelf(active.id, active.size) as shelf:
        gathering = strategy.gather(active.size, shelf)
        for one in _updates(active):
            gathering.add(one)
        for site in gateways.site_sums(active):
            assert isinstance(gathering, WeightedSum)  # as plans.check_task has it
            gathering.merge(*site)
        return _Gathered(gathering.result())


def _private_mean(active: ActiveRound, privacy: Privacy) -> _Gathered:
    """Mean of clipped updates with noise; with an adaptive clip, the next one too."""
    adaptive, draws = active.task.plan.adaptive, Draws(_noise_seed(active))
    if adaptive is not None:
        noise = adaptive.noise_on_updates(privacy.noise)
        privacy = msgspec.structs.replace(privacy, noise=noise)
    mean = PrivateMean(active.size, privacy, active.record.pace.goal, draws)
    for one in _updates(active):
        mean.add(one)
    found = mean.result()
    if adaptive is None:
        return _Gathered(found)
    share = adaptive.noisy_share(mean.within, len(found.devices), draws)
    return _Gathered(found, next_clip=adaptive.next_clip(privacy.clip, share))


def _noise_seed(active: ActiveRound) -> bytes:
    """Written before it is used, so that the same updates never get other noise."""
    seed = active.files.get(active.id, "noise")
    if seed is None:
        seed = secrets.token_bytes(SEED)
        active.files.put(active.id, "noise", "", seed)
    return seed


def _secure_mean(active: ActiveRound) -> _Gathered:
    """Mean from a secure sum, whose single updates stay hidden."""
    assert active.plan.secure is not None
    total, ending, faulty = unmask(active.id, active.terms, active.files, active.size)
    mean, _ = active.plan.secure.scale.decode(total, len(ending.alive))
    names = tuple(ending.alive)
    return _Gathered(Aggregate(delta=mean, devices=names, chosen=names), frozenset(faulty))


def _updates(active: ActiveRound) -> Iterator[Update]:
    """Updates by device name, one at a time, without those that a gateway has summed."""
    for device in gateways.direct_devices(active):
        yield client_updates.update_of(active, device, client_updates.load(active, device))


def _facts(active: ActiveRound, found: Aggregate) -> dict[str, dict[str, Any]]:
    """Device -> fields of records.Participation, without what noise or masks hide."""
    chosen = set(found.chosen)
    facts: dict[str, dict[str, Any]] = {}
    by_gateway = gateways.facts(active)
    for device in found.devices:
        if device in by_gateway:
            facts[device] = by_gateway[device]
            continue
        sent = client_updates.load(active, device)
        size = active.files.size(active.id, "update", device)
        facts[device] = {
            "examples": sent.examples, "seconds": sent.seconds, "bytes": size,
            "chosen": device in chosen,
        }  # fmt: skip
    if active.plan.secure is None and not _is_central(active):
        for one in outlier_scores.score(lambda: _updates(active), active.size):
            facts[one.device] |= {
                "loss": one.loss, "norm": one.norm, "cosine": one.cosine, "suspect": one.suspect
            }  # fmt: skip
    return facts


def _is_central(active: ActiveRound) -> bool:
    """Central privacy hides single updates from people as well as from devices."""
    return active.plan.privacy is not None and active.plan.privacy.where == "central"


def _loss(active: ActiveRound, facts: dict[str, dict[str, Any]]) -> float | None:
    """Mean over examples, each device's number of them limited."""
    seen = [
        (min(fact["loss"], MOST_LOSS), active.limit_rows(name, fact["examples"], DEFAULT_ROW_LIMIT))
        for name, fact in facts.items()
        if fact.get("loss") is not None
    ]
    rows = sum(examples for _, examples in seen)
    return sum(loss * examples for loss, examples in seen) / rows if rows else None


# --- state of the strategy between rounds -----------------------------------------------------


class StrategyState(msgspec.Struct, frozen=True, kw_only=True):
    """rounds: aggregated so far; vectors: the strategy's own, float64 (P,), by name."""

    rounds: int = 0
    vectors: dict[str, F64] = {}


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    rounds: int
    vectors: dict[str, bytes]


def load_state(ctx: Context, sha256: str) -> StrategyState:
    """Empty for "": before the first round. AbsentError when the blob is missing."""
    if not sha256:
        return StrategyState()
    stored = msgspec.msgpack.decode(ctx.blobs.read(sha256), type=_Stored)
    vectors = {name: np.frombuffer(data, "<f8") for name, data in stored.vectors.items()}
    return StrategyState(rounds=stored.rounds, vectors=vectors)


def _save_state(ctx: Context, server: Server) -> str:
    """SHA-256 of the blob: the same bytes for the same numbers."""
    vectors = {name: server.memory[name].astype("<f8").tobytes() for name in sorted(server.memory)}
    stored = _Stored(rounds=server.rounds, vectors=vectors)
    return ctx.blobs.put_bytes(msgspec.msgpack.encode(stored)).sha256


def forget_old_states(ctx: Context, task: str, number: int) -> None:
    """Delete strategy states of rounds KEPT_STATES and more before `number`.

    A state may be several times the model's size. A task that resumes from such a round starts
    with an empty one.
    """
    table = federated_round
    old = (table.c.task == task) & (table.c.number <= number - KEPT_STATES) & (table.c.memory != "")
    ended = (table.c.task == task) & (table.c.ended_at > 0)
    with ctx.store.write() as db:
        db.execute(update(table).where(ended, table.c.old_memory != "").values(old_memory=""))
        names = set(db.scalars(select(table.c.memory).where(old)))
        if not names:
            return
        db.execute(update(table).where(old).values(memory=""))
        for column in (table.c.memory, table.c.old_memory, federated_task.c.memory):
            names -= set(db.scalars(select(column).where(column.in_(names))))
    for name in names:
        ctx.blobs.remove(name)
