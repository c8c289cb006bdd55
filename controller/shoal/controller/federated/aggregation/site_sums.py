"""What a site's gateway has summed: taken for every device in it, or for none.

A gateway speaks for devices that have joined the round and are at its site, and for itself. What
single devices sent, nobody sees here: they are not compared with one another.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from shoal.controller.federated.planning import plans
from shoal.controller.federated.rounds.active_round import Live
from shoal.controller.federated.rounds.machine import Mark, heard
from shoal.controller.federated.strategies.fedavg import FedAvg
from shoal.errors import InputError
from shoal.federated.messages import Contribution
from shoal.federated.site_sum import SiteSum, decode
from shoal.federated.sums import LARGEST, ExactSum


class Site(NamedTuple):
    """As Weighed.merge takes it."""

    devices: list[str]
    deltas: ExactSum
    weights: ExactSum


def take(live: Live, gateway: str, payload: bytes, said: bytes, now_s: float) -> str:
    """Why it was ignored, or "" when it is in. InputError when it cannot be a sum of this round."""
    found = decode(said)
    _check(live, gateway, found)
    after = live.now
    for device in sorted(found.members):
        after, ignored = heard(after, device, after.attempt_of(device), now_s)
        if ignored:
            return f"member-{ignored}"
    live.files.put(live.id, "update", gateway, payload)
    live.now = after
    return ""


def members(live: Live, gateway: str) -> list[str]:
    """Whom it speaks for, where a sum of it is in; sorted."""
    if gateway not in live.task.plan.gateways.values():
        return []
    site = _site_in(live, gateway)
    return sorted(decode(site).members) if site else []


def alone(live: Live) -> list[str]:
    """Devices whose updates are in, each by itself; sorted."""
    summed = {device for _, found in _sums(live) for device in found.members}
    return [device for device in live.now.having(Mark.UPDATED) if device not in summed]


def of(live: Live) -> Iterator[Site]:
    """Every site's sum, one after the other."""
    for _, found in _sums(live):
        yield _opened(live, found)


def facts(live: Live) -> dict[str, dict[str, Any]]:
    """device -> fields of records.Participation, of devices in sums; bytes are the gateway's."""
    told: dict[str, dict[str, Any]] = {}
    for gateway, found in _sums(live):
        for device, one in found.members.items():
            size = live.files.size(live.id, "update", gateway) if device == gateway else 0
            told[device] = {
                "examples": one.examples, "loss": one.loss, "seconds": one.seconds, "bytes": size,
                "chosen": True,
            }  # fmt: skip
    return told


def _check(live: Live, gateway: str, found: SiteSum) -> None:
    site = live.sites.get(gateway, "")
    if live.task.plan.gateways.get(site) != gateway:
        raise InputError(f"{gateway} is no gateway of this task", "name it in its gateways")
    if gateway not in found.members:
        raise InputError(f"{gateway} speaks for others and not for itself", "let it learn too")
    strangers = [name for name in found.members if live.sites.get(name) != site]
    if strangers:
        raise InputError(f"{strangers[0]} is not at {site}", "a gateway speaks for its site")
    opened, strategy = _opened(live, found), plans.strategy_for(live.task.plan)
    assert isinstance(strategy, FedAvg)  # as plans.check_task has it
    weight = sum(min(one.examples, strategy.most_examples) for one in found.members.values())
    if opened.deltas.reach > len(found.members) * LARGEST / len(live.now.marks):
        raise InputError("a site's sum that leaves no room for the others", "clip the updates")
    counts = {opened.deltas.count, opened.weights.count, len(found.members)}
    if len(counts) > 1 or opened.weights.value()[0] != weight:
        raise InputError("a site's sum of other devices than it says", "send it again")


def _opened(live: Live, found: SiteSum) -> Site:
    deltas = ExactSum.from_bytes(found.deltas, live.size)
    return Site(sorted(found.members), deltas, ExactSum.from_bytes(found.weights, 1))


def _sums(live: Live) -> Iterator[tuple[str, SiteSum]]:
    """(gateway, what it sent) of those whose sums are in."""
    for gateway in sorted(set(live.task.plan.gateways.values())):
        if live.now.marks.get(gateway) is not Mark.UPDATED:
            continue
        site = _site_in(live, gateway)
        if site:
            yield gateway, decode(site)


def _site_in(live: Live, gateway: str) -> bytes:
    """What a gateway has sent for its site; b"" when it sent its own update, or nothing."""
    data = live.files.get(live.id, "update", gateway)
    return b"" if data is None else msgspec.msgpack.decode(data, type=Contribution).site
