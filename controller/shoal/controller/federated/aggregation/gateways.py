"""Which of a round's devices send their updates by way of their site's gateway, and until when.

A gateway waits for its site for half of the time of training. For half of what is left its sum is
waited for; then, or as soon as it is away, everybody whose update is not in is asked to send it
directly. Whoever is in twice is taken once: site_sums.
"""

from collections.abc import Iterable, Mapping

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import select

from shoal.controller.federated.planning import plans
from shoal.controller.federated.rounds.active_round import Live
from shoal.controller.federated.rounds.machine import Mark
from shoal.controller.federated.strategies.fedavg import FedAvg
from shoal.controller.host.context import Context
from shoal.controller.store.tables import device
from shoal.federated.messages import GatewayRoute

#: Shares of the time of training: until a gateway closes; until its sum is not waited for any more.
CLOSES, GIVEN_UP = 0.5, 0.75
_LONGEST_ADDRESS = 300


def ways(ctx: Context, live: Live) -> dict[str, GatewayRoute]:
    """Device -> its way, of those that train and are not to send directly."""
    now, named = live.now, live.task.plan.gateways
    began_s = now.deadline_s - now.pace.train_s
    if not named or ctx.clock() > began_s + GIVEN_UP * now.pace.train_s:
        return {}
    joined = now.having(Mark.JOINED)
    addresses = _addresses(ctx, set(named.values()).intersection(joined))
    generations = _generations(ctx, joined) if addresses else {}
    found: dict[str, GatewayRoute] = {}
    for site, gateway in named.items():
        members = [name for name in joined if live.sites.get(name) == site]
        if gateway in members and gateway in addresses and len(members) > 1:
            way = GatewayRoute(
                gateway=gateway, address=addresses[gateway],
                close_s=began_s + CLOSES * now.pace.train_s, most=_most(live),
                generations=_of(generations, [gateway]),
            )  # fmt: skip
            found |= dict.fromkeys(members, way)
            found[gateway] = msgspec.structs.replace(
                way, members=members, generations=_of(generations, members)
            )
    return found


def _of(generations: Mapping[str, int], names: Iterable[str]) -> dict[str, int] | UnsetType:
    """Those of `names`, as GatewayRoute has it."""
    return {name: generations[name] for name in names if name in generations} or UNSET


def _most(live: Live) -> int:
    strategy = plans.strategy_for(live.task.plan)
    assert isinstance(strategy, FedAvg)  # as plans.check_task has it
    return strategy.most_examples


def _addresses(ctx: Context, names: Iterable[str]) -> dict[str, str]:
    """Of those that are here and listen to their site."""
    listens = device.c.facts["gateway"].as_string()
    query = select(device.c.name, listens).where(
        device.c.name.in_(names),
        device.c.state == "enrolled",
        device.c.online.is_(True),
        listens.is_not(None),
    )
    with ctx.store.read() as db:
        return {name: where for name, where in db.execute(query) if len(where) <= _LONGEST_ADDRESS}


def _generations(ctx: Context, names: Iterable[str]) -> dict[str, int]:
    """Of those whose name was given away before: how often."""
    query = select(device.c.name, device.c.generation).where(
        device.c.name.in_(names), device.c.generation > 0
    )
    with ctx.store.read() as db:
        return {row.name: row.generation for row in db.execute(query)}
