"""The devices of this site as far as they share downloads: none unless [peers] is enabled."""

import functools
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from shoal.agent.host.faults import Fault
from shoal.agent.host.io.config import Settings
from shoal.agent.host.io.folder import MODELS
from shoal.agent.peers.io.downloader import Neighbourly, Site, Wan
from shoal.agent.peers.io.server import Board, Sharing, Shelf
from shoal.agent.peers.policy import PeerDirectory
from shoal.errors import SettingError

_DISCARD = 9


class Neighbourhood:
    """Both halves, asking and answering.

    directory   peers that the newest assignment lists
    fault       reports a peer that sent wrong data, or why nothing is shared
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        directory: PeerDirectory,
        fault: Callable[[Fault], None],
    ) -> None:
        self._folder, self._settings, self._board = folder, settings, Board()
        self.directory, self._fault = directory, fault
        self._sharing: Sharing | None = None
        self._unshared = ""

    @property
    def line(self) -> str:
        """How it stands, for a person; "" where sharing is not enabled."""
        if self._unshared:
            return f"downloads are not shared: {self._unshared}"
        return f"downloads are shared at {self.facts['peer']}" if self.facts else ""

    @functools.cached_property
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
            named=lambda: self.directory.addresses,
            fault=self._fault,
            wall=time.time,
            monotonic=time.monotonic,
            sleep=time.sleep,
            random=random.SystemRandom(),
            generations=lambda: self.directory.generations,
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
            self._fault(Fault("peers-off", f"downloads are not shared: {self._unshared}"))
            return
        self._sharing.start()

    def _listen(self) -> Sharing:
        peers = self._settings.peers
        return Sharing(
            self._folder,
            (peers.host, peers.port),
            shelf=Shelf(self._folder / MODELS, time.monotonic),
            board=self._board,
            allowed=lambda: self.directory.addresses.keys(),
            max_kbps=peers.max_kbps,
            sleep=time.sleep,
            generations=lambda: self.directory.generations,
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
