"""Messages of assignments: orders signed by the director, with the URLs and peers of a device.

Written for many devices at once: what they have in common is read, parsed and signed once.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from shoal import wire
from shoal.controller.host.context import Context
from shoal.controller.releases import download_urls, revocation
from shoal.controller.rollouts.release_files import ReleaseFiles
from shoal.controller.store.chunks import chunks
from shoal.controller.store.tables import device
from shoal.orders import Order

#: Lifetime of an assignment: the director's signature, and the URLs in it.
LIFETIME_S = 7 * 86_400
#: Devices of a site listed in an assignment as peers.
PEERS, _LONGEST_ADDRESS = 256, 64


class MessageWriter:
    """Writes messages of the devices `names`, at one time and in one transaction of reading."""

    def __init__(self, db: Connection, ctx: Context, names: Sequence[str]) -> None:
        self._db, self._ctx = db, ctx
        self._files = ReleaseFiles(db)
        self.now = ctx.clock()
        self.expires_at = self.now + LIFETIME_S
        self._targets = _targets(db, names)
        self._epochs = revocation.epochs(db)
        self._peers = cache(self._peers_of_site)
        self._url = cache(self._signed_url)

    def allowed(self, orders: Mapping[str, Order]) -> dict[str, Order]:
        """Without those of quarantined releases."""
        why = self._files.why_quarantined
        return {model: one for model, one in orders.items() if one.removes or not why(one.release)}

    def write(self, name: str, version: int, orders: Sequence[Order]) -> bytes:
        """The message, encoded, of one device."""
        target = self._targets.get(name, _Target("", "", {}, ""))
        message = wire.Assignment(
            signed=self._ctx.signer.sign_orders(name, version, orders, self.now, self._epochs),
            urls=self._urls(target, orders),
            **self._peers_for(name, target),
        )
        return wire.encode(message)

    def _urls(self, target: "_Target", orders: Sequence[Order]) -> dict[str, str]:
        """sha256 -> URL, of every file that the orders need on this device's profile.

        And "OLD>NEW" -> URL of the delta, for the models that the device has.
        """
        urls: dict[str, str] = {}
        for order in orders:
            if order.removes:
                continue
            for sha256 in self._files.artifacts(order, target.profile):
                urls[sha256] = self._url(sha256)
            has = target.releases.get(order.model, "")
            for old, new in self._files.deltas(order.release, has, target.profile):
                urls[f"{old}>{new}"] = self._url(f"{old}-{new}")
        return urls

    def _signed_url(self, artifact: str) -> str:
        folder, network = self._ctx.folder, self._ctx.settings.network
        return download_urls.urls_of(folder, network, [artifact], self.expires_at)[artifact]

    def _peers_for(self, name: str, target: "_Target") -> dict[str, dict[str, Any]]:
        """Fields of wire.Assignment: addresses at which the other devices of its site share files,
        and their generations. Empty for a device that does not share."""
        if not target.shares:
            return {}
        others = [peer for peer in self._peers(target.site) if peer.name != name]
        found = {"peers": {peer.name: peer.address for peer in others}}
        generations = {peer.name: peer.generation for peer in others if peer.generation}
        return found | ({"generations": generations} if generations else {})

    def _peers_of_site(self, site: str) -> "list[_Peer]":
        shares = device.c.facts["peer"].as_string()
        query = (
            select(device.c.name, shares, device.c.generation)
            .where(device.c.site == site, device.c.state == "enrolled", shares.is_not(None))
            .order_by(device.c.name)
            .limit(PEERS)
        )
        peers = [_Peer(*row) for row in self._db.execute(query)]
        return [peer for peer in peers if len(peer.address) <= _LONGEST_ADDRESS]


class _Peer(NamedTuple):
    name: str
    address: str
    generation: int


class _Target(NamedTuple):
    """A device as its message needs it. shares: the address at which it shares files, if it does"""

    profile: str
    site: str
    releases: dict[str, str]
    shares: str


def _targets(db: Connection, names: Sequence[str]) -> dict[str, _Target]:
    columns = (device.c.name, device.c.profile, device.c.site, device.c.releases)
    shares = device.c.facts["peer"].as_string()
    found = {}
    for some in chunks(names):
        query = select(*columns, shares).where(device.c.name.in_(some))
        for name, profile, site, releases, peer in db.execute(query):
            found[name] = _Target(profile or "", site, releases or {}, peer or "")
    return found
