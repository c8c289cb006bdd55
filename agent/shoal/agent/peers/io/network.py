"""The devices of this site as far as they share downloads: none unless [peers] is enabled."""

import random
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from shoal.agent.host.faults import Fault
from shoal.agent.host.io.config import Settings
from shoal.agent.host.io.folder import MODELS
from shoal.agent.peers.io.downloader import Neighbourly, Site, Wan
from shoal.agent.peers.io.server import Board, Sharing, Shelf
from shoal.errors import SettingError

_DISCARD = 9


class Neighbourhood:
    """Both halves, asking and answering.

    named   device -> host:port of who else shares here, as the controller says now
    generations   device -> how often its name was given away before, as far as it is known
    fault   told of a neighbour that lies
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder, self._settings, self._board = folder, settings, Board()
        self.named: Callable[[], Mapping[str, str]] = dict
        self.generations: Callable[[], Mapping[str, int]] = dict
        self.fault: Callable[[Fault], None] = lambda fault: None
        self._sharing: Sharing | None = None
        self._unshared = ""

    @property
    def line(self) -> str:
        """How it stands, for a person; "" where sharing is not enabled."""
        if self._unshared:
            return f"downloads are not shared: {self._unshared}"
        return f"downloads are shared at {self.facts['peer']}" if self.facts else ""

    @property
    def facts(self) -> dict[str, str]:
        """What the inventory tells, for the controller to tell the neighbours."""
        peers = self._settings.peers
        if not peers.enabled or self._unshared:
            return {}
        address = peers.address or own_address(self._settings.controller.url)
        return {
            "peer": f"[{address}]:{peers.port}" if ":" in address else f"{address}:{peers.port}"
        }

    def downloads(self, wan: Wan, stage: Callable[[str], Path]) -> Wan | Neighbourly:
        """`wan`, by way of the neighbours where that is enabled."""
        if not self._settings.peers.enabled:
            return wan
        site = Site(
            folder=self._folder,
            me=self._settings.device.name,
            named=lambda: self.named(),
            fault=lambda fault: self.fault(fault),
            wall=time.time,
            monotonic=time.monotonic,
            sleep=time.sleep,
            random=random.SystemRandom(),
            generations=lambda: self.generations(),
        )
        return Neighbourly(wan, site, self._board, stage)

    def start(self) -> None:
        """Listen to the neighbours; what is in the way of it is no reason not to serve."""
        if not self._settings.peers.enabled:
            return
        try:
            self._sharing = self._listen()
        except SettingError as error:
            self._unshared = str(error)
            return
        self._sharing.start()

    def report(self) -> None:
        """Tell, as a fault, why nothing is shared."""
        if self._unshared:
            self.fault(Fault("peers-off", f"downloads are not shared: {self._unshared}"))

    def _listen(self) -> Sharing:
        peers = self._settings.peers
        return Sharing(
            self._folder,
            (peers.host, peers.port),
            shelf=Shelf(self._folder / MODELS, time.monotonic),
            board=self._board,
            allowed=lambda: self.named().keys(),
            max_kbps=peers.max_kbps,
            sleep=time.sleep,
            generations=lambda: self.generations(),
        )

    def finish(self) -> None:
        if self._sharing is not None:
            self._sharing.finish()


def own_address(controller: str) -> str:
    """The address of this machine on the way to the controller; nothing is sent for that."""
    host = urlsplit(controller).hostname or "localhost"
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, _DISCARD, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()
