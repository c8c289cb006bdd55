"""From the files of a round to its checkpoint: a slice of one update in memory at a time.

Repeated after a restart it gives the same bytes: sums are exact in any order, and noise comes from
a seed that is written before it is drawn. So the same updates are never summed with other noise.
"""

import secrets
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from shoal.controller.federated.aggregation import gateways, outlier_scores
from shoal.controller.federated.aggregation.checkpoint_files import CheckpointFiles
from shoal.controller.federated.aggregation.gathering import too_few
from shoal.controller.federated.aggregation.kept_updates import KeptUpdate, slices
from shoal.controller.federated.planning import plans
from shoal.controller.federated.privacy.central import PrivateMean
from shoal.controller.federated.rounds.active_round import DEFAULT_ROW_LIMIT, ActiveRound
from shoal.controller.federated.rounds.machine import Mark
from shoal.controller.federated.secagg.session import unmask
from shoal.controller.federated.strategies.fedavg import WeightedSum
from shoal.controller.federated.strategy import Strategy
from shoal.controller.federated.updates import MOST_LOSS, Aggregate
from shoal.controller.host.context import Context
from shoal.federated.noise import Draws
from shoal.federated.plan import Privacy

SEED = 32


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


#: Slices of the round's mean, one after the other.
_Means = Iterator[tuple[slice, Aggregate]]


def aggregate(ctx: Context, active: ActiveRound) -> Result:
    """ConflictError for too few updates or shares, InputError for ones that cannot be used."""
    strategy = plans.strategy_for(active.task.plan)
    secure = _secure_mean(active) if active.plan.secure is not None else None
    private = _Private.of(active)
    with CheckpointFiles(ctx, active) as files:
        for columns, mean in secure.means if secure else _means(active, strategy, private):
            shared = _without_personal(active, columns, mean)
            files.write(columns, strategy.advance(files.before(columns), shared))
        checkpoint, memory = files.finish()
    facts = _facts(active, mean)
    for device in secure.faulty if secure else ():
        facts[device] = facts.get(device, {}) | {"suspect": "wrong-shares"}
    return Result(
        checkpoint=checkpoint,
        memory=memory,
        loss=_loss(active, facts),
        bytes=sum(fact["bytes"] for fact in facts.values()),
        next_clip=private.next_clip(len(mean.devices)) if private else 0.0,
        facts=facts,
    )


def _without_personal(active: ActiveRound, columns: slice, found: Aggregate) -> Aggregate:
    """Without the layers that stay on each device, whatever the devices sent of them."""
    if not active.prepared.personal:
        return found
    delta = found.delta.copy()
    for start, stop in active.prepared.personal:
        first, last = (max(0, at - columns.start) for at in (start, stop))
        delta[first:last] = 0
    return msgspec.structs.replace(found, delta=delta)


def _means(active: ActiveRound, strategy: Strategy, private: "_Private | None") -> _Means:
    """The mean of the updates; of a large model in slices, where the strategy allows it."""
    if not active.record.with_mark(Mark.UPDATED):
        raise too_few(0, active.plan.least)
    kept = _kept(active)
    for columns in _parts(active, strategy):
        size = columns.stop - columns.start
        with active.files.shelf(active.id, size) as shelf:
            gathering = private.gather(size) if private else strategy.gather(size, shelf)
            for one in kept:
                gathering.add(one.part(columns))
            for site in gateways.site_sums(active):
                assert isinstance(gathering, WeightedSum)  # as plans.check_task has it
                gathering.merge(*site)
            yield columns, gathering.result()


def _parts(active: ActiveRound, strategy: Strategy) -> Iterable[slice]:
    sliced = strategy.elementwise and not active.task.plan.gateways
    return slices(active.size) if sliced else [slice(0, active.size)]


class _Private:
    """Central privacy of a round: means of clipped updates with noise, and the next clip."""

    def __init__(self, active: ActiveRound, privacy: Privacy) -> None:
        self._goal, self._draws = active.record.pace.goal, Draws(_noise_seed(active))
        self._adaptive = active.task.plan.adaptive
        self._first: PrivateMean | None = None
        if self._adaptive is not None:
            noise = self._adaptive.noise_on_updates(privacy.noise)
            privacy = msgspec.structs.replace(privacy, noise=noise)
        self._privacy = privacy

    @classmethod
    def of(cls, active: ActiveRound) -> "_Private | None":
        privacy = active.plan.privacy
        return cls(active, privacy) if privacy is not None and _is_central(active) else None

    def gather(self, size: int) -> PrivateMean:
        """Of `size` parameters; every slice takes its noise from the same stream, in order."""
        mean = PrivateMean(size, self._privacy, self._goal, self._draws)
        self._first = self._first or mean
        return mean

    def next_clip(self, devices: int) -> float:
        """Of an adaptive clip, else 0; to be called once, after the last slice."""
        if self._adaptive is None or self._first is None:
            return 0.0
        share = self._adaptive.noisy_share(self._first.within, devices, self._draws)
        return self._adaptive.next_clip(self._privacy.clip, share)


def _noise_seed(active: ActiveRound) -> bytes:
    """Written before it is used, so that the same updates never get other noise."""
    seed = active.files.get(active.id, "noise")
    if seed is None:
        seed = secrets.token_bytes(SEED)
        active.files.put(active.id, "noise", "", seed)
    return seed


class _Secure(NamedTuple):
    """faulty: devices that sent wrong shares."""

    means: _Means
    faulty: frozenset[str]


def _secure_mean(active: ActiveRound) -> _Secure:
    """Mean from a secure sum, whose single updates stay hidden."""
    assert active.plan.secure is not None
    total, ending, faulty = unmask(active.id, active.terms, active.files, active.size)
    mean, _ = active.plan.secure.scale.decode(total, len(ending.alive))
    names = tuple(ending.alive)
    found = Aggregate(delta=mean, devices=names, chosen=names)
    return _Secure(iter([(slice(0, active.size), found)]), frozenset(faulty))


def _kept(active: ActiveRound) -> list[KeptUpdate]:
    """Updates by device name, without those that a gateway has summed."""
    return [KeptUpdate(active, device) for device in gateways.direct_devices(active)]


def _facts(active: ActiveRound, found: Aggregate) -> dict[str, dict[str, Any]]:
    """Device -> fields of records.Participation, without what noise or masks hide."""
    chosen = set(found.chosen)
    facts: dict[str, dict[str, Any]] = {}
    by_gateway = gateways.facts(active)
    for device in found.devices:
        if device in by_gateway:
            facts[device] = by_gateway[device]
            continue
        sent = KeptUpdate(active, device)
        size = active.files.size(active.id, "update", device)
        facts[device] = {
            "examples": sent.sent_examples, "seconds": sent.seconds, "bytes": size,
            "chosen": device in chosen,
        }  # fmt: skip
    if active.plan.secure is None and not _is_central(active):
        kept = _kept(active)
        read = lambda columns: (one.part(columns) for one in kept)  # noqa: E731
        for one in outlier_scores.score(read, slices(active.size)):
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
