"""Hierarchical aggregation: a site's gateway sums the updates of its devices and sends one sum.

A gateway waits for its site for half of the training time; the controller waits for the gateway's
sum for half of the rest. After that, or when the gateway is offline, each device whose update is
missing is asked to send it directly; a device's update counts once, whichever way it comes.

A sum counts for every device in it or for none. The controller sees no single update of the site,
so these are not compared with one another.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import select

from shoal.controller.federated.planning import plans
from shoal.controller.federated.rounds.active_round import ActiveRound
from shoal.controller.federated.rounds.machine import Mark, receive
from shoal.controller.federated.strategies.fedavg import FedAvg
from shoal.controller.host.context import Context
from shoal.controller.store.tables import device
from shoal.errors import InputError
from shoal.federated.messages import Contribution, GatewayRoute
from shoal.federated.site_sum import SiteSum
from shoal.federated.site_sum import decode as decode_sum
from shoal.federated.sums import LARGEST, ExactSum

#: Shares of the training time: until a gateway closes; until its sum is no longer waited for.
CLOSES, GIVEN_UP = 0.5, 0.75
_MAX_ADDRESS = 300


class Site(NamedTuple):
    """Input of fedavg.WeightedSum.merge."""

    devices: list[str]
    deltas: ExactSum
    weights: ExactSum


# --- which devices send by way of a gateway ---------------------------------------------------


def ways(ctx: Context, active: ActiveRound) -> dict[str, GatewayRoute]:
    """Device -> its gateway, for training devices that shall not send directly now."""
    record, gateways = active.record, active.task.plan.gateways
    began_s = record.deadline_s - record.pace.train_s
    if not gateways or ctx.clock() > began_s + GIVEN_UP * record.pace.train_s:
        return {}
    joined = record.with_mark(Mark.JOINED)
    addresses = _addresses(ctx, set(gateways.values()).intersection(joined))
    generations = _generations(ctx, joined) if addresses else {}
    found: dict[str, GatewayRoute] = {}
    for site, gateway in gateways.items():
        members = [name for name in joined if active.sites.get(name) == site]
        if gateway in members and gateway in addresses and len(members) > 1:
            way = GatewayRoute(
                gateway=gateway, address=addresses[gateway],
                close_s=began_s + CLOSES * record.pace.train_s,
                most=_strategy(active).most_examples, generations=_of(generations, [gateway]),
            )  # fmt: skip
            found |= dict.fromkeys(members, way)
            found[gateway] = msgspec.structs.replace(
                way, members=members, generations=_of(generations, members)
            )
    return found


def _of(generations: Mapping[str, int], names: Iterable[str]) -> dict[str, int] | UnsetType:
    """Generations of `names`, as GatewayRoute has them."""
    return {name: generations[name] for name in names if name in generations} or UNSET


def _strategy(active: ActiveRound) -> FedAvg:
    strategy = plans.strategy_for(active.task.plan)
    assert isinstance(strategy, FedAvg)  # as plans.check_task has it
    return strategy


def _addresses(ctx: Context, names: Iterable[str]) -> dict[str, str]:
    """Addresses of the gateways that are online and listen to their site."""
    listens = device.c.facts["gateway"].as_string()
    query = select(device.c.name, listens).where(
        device.c.name.in_(names),
        device.c.state == "enrolled",
        device.c.online.is_(True),
        listens.is_not(None),
    )
    with ctx.store.read() as db:
        return {name: where for name, where in db.execute(query) if len(where) <= _MAX_ADDRESS}


def _generations(ctx: Context, names: Iterable[str]) -> dict[str, int]:
    """How often each of these names was enrolled again, where it was."""
    query = select(device.c.name, device.c.generation).where(
        device.c.name.in_(names), device.c.generation > 0
    )
    with ctx.store.read() as db:
        return {row.name: row.generation for row in db.execute(query)}


# --- the sums that gateways send --------------------------------------------------------------


def keep_sum(active: ActiveRound, gateway: str, payload: bytes, site: bytes, now_s: float) -> str:
    """Keep a site's sum; why it is ignored, or "". InputError when it is none of this round."""
    found = decode_sum(site)
    _check(active, gateway, found)
    after = active.record
    for name in sorted(found.members):
        after, ignored = receive(after, name, after.attempt_of(name), now_s)
        if ignored:
            return f"member-{ignored}"
    active.files.put(active.id, "update", gateway, payload)
    active.record = after
    return ""


def members(active: ActiveRound, gateway: str) -> list[str]:
    """Devices in a gateway's kept sum, sorted; empty without one."""
    if gateway not in active.task.plan.gateways.values():
        return []
    site = _kept(active, gateway)
    return sorted(decode_sum(site).members) if site else []


def direct_devices(active: ActiveRound) -> list[str]:
    """Devices whose updates arrived by themselves, sorted."""
    summed = {name for _, found in _sums(active) for name in found.members}
    return [name for name in active.record.with_mark(Mark.UPDATED) if name not in summed]


def site_sums(active: ActiveRound) -> Iterator[Site]:
    """Every kept sum, one at a time."""
    for _, found in _sums(active):
        yield _opened(active, found)


def facts(active: ActiveRound) -> dict[str, dict[str, Any]]:
    """Device -> fields of records.Participation, for devices in sums; bytes are the gateway's."""
    found: dict[str, dict[str, Any]] = {}
    for gateway, sum_ in _sums(active):
        for name, one in sum_.members.items():
            size = active.files.size(active.id, "update", gateway) if name == gateway else 0
            found[name] = {
                "examples": one.examples, "loss": one.loss, "seconds": one.seconds, "bytes": size,
                "chosen": True,
            }  # fmt: skip
    return found


def _check(active: ActiveRound, gateway: str, found: SiteSum) -> None:
    site = active.sites.get(gateway, "")
    if active.task.plan.gateways.get(site) != gateway:
        raise InputError(f"{gateway} is no gateway of this task", "name it in its gateways")
    if gateway not in found.members:
        raise InputError(f"{gateway} sums others and not itself", "let it take part too")
    strangers = [name for name in found.members if active.sites.get(name) != site]
    if strangers:
        raise InputError(f"{strangers[0]} is not at {site}", "a gateway sums its own site only")
    opened, most = _opened(active, found), _strategy(active).most_examples
    weight = sum(min(one.examples, most) for one in found.members.values())
    if opened.deltas.reach > len(found.members) * LARGEST / len(active.record.marks):
        raise InputError("a site's sum that leaves no range for the others", "clip the updates")
    counts = {opened.deltas.count, opened.weights.count, len(found.members)}
    if len(counts) > 1 or opened.weights.value()[0] != weight:
        raise InputError("a site's sum that does not match its list of devices", "send it again")


def _opened(active: ActiveRound, found: SiteSum) -> Site:
    deltas = ExactSum.from_bytes(found.deltas, active.size)
    return Site(sorted(found.members), deltas, ExactSum.from_bytes(found.weights, 1))


def _sums(active: ActiveRound) -> Iterator[tuple[str, SiteSum]]:
    """(gateway, its kept sum)."""
    for gateway in sorted(set(active.task.plan.gateways.values())):
        if active.record.marks.get(gateway) is not Mark.UPDATED:
            continue
        site = _kept(active, gateway)
        if site:
            yield gateway, decode_sum(site)


def _kept(active: ActiveRound, gateway: str) -> bytes:
    """The sum that a gateway has sent; b"" when it sent its own update, or nothing."""
    data = active.files.get(active.id, "update", gateway)
    return b"" if data is None else msgspec.msgpack.decode(data, type=Contribution).site
