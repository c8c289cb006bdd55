"""Shared downloads of a site: none unless [peers] is enabled."""

import functools
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from shoal.address import host_port
from shoal.agent.host.faults import Fault
from shoal.agent.host.io.config import GatewaySettings, Peers, Settings
from shoal.agent.host.io.folder import MODELS
from shoal.agent.peers.io.downloader import ArtifactServer, PeerContext, PeerDownloads
from shoal.agent.peers.io.server import DownloadState, PeerServer, PieceStore
from shoal.agent.peers.policy import PeerDirectory
from shoal.errors import SettingError

_DISCARD = 9


class PeerNetwork:
    """Downloads from the site's devices, and the server for them.

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
        self._folder, self._settings, self._state = folder, settings, DownloadState()
        self.directory, self._fault = directory, fault
        self._server: PeerServer | None = None
        self._unshared = ""

    @property
    def status_line(self) -> str:
        """Status for a person; "" where sharing is not enabled."""
        if self._unshared:
            return f"downloads are not shared: {self._unshared}"
        return f"downloads are shared at {self.facts['peer']}" if self.facts else ""

    @functools.cached_property
    def facts(self) -> dict[str, str]:
        """Facts for the inventory, which the controller sends to the peers."""
        peers = self._settings.peers
        if not peers.enabled or self._unshared:
            return {}
        return {"peer": announced(peers, self._settings.controller.url)}

    def downloads(
        self, server: ArtifactServer, stage: Callable[[str], Path]
    ) -> ArtifactServer | PeerDownloads:
        """Downloads from peers where that is enabled, else from `server` alone."""
        if not self._settings.peers.enabled:
            return server
        context = PeerContext(
            folder=self._folder,
            me=self._settings.device.name,
            peers=lambda: self.directory.addresses,
            fault=self._fault,
            wall=time.time,
            monotonic=time.monotonic,
            sleep=time.sleep,
            random=random.SystemRandom(),
            generations=lambda: self.directory.generations,
        )
        return PeerDownloads(server, context, self._state, stage)

    def start(self) -> None:
        """Start the server; when it cannot listen, the agent runs without it."""
        if not self._settings.peers.enabled:
            return
        try:
            self._server = self._listen()
        except SettingError as error:
            self._unshared = str(error)
            self._fault(Fault("peers-off", f"downloads are not shared: {self._unshared}"))
            return
        self._server.start()

    def _listen(self) -> PeerServer:
        peers = self._settings.peers
        return PeerServer(
            self._folder,
            (peers.host, peers.port),
            store=PieceStore(self._folder / MODELS, time.monotonic),
            state=self._state,
            allowed=lambda: self.directory.addresses.keys(),
            max_kbps=peers.max_kbps,
            sleep=time.sleep,
            generations=lambda: self.directory.generations,
        )

    def finish(self) -> None:
        if self._server is not None:
            self._server.finish()


def announced(section: Peers | GatewaySettings, controller: str) -> str:
    """host:port by which the other devices reach this one."""
    address = section.address or own_address(controller)
    return host_port(address, section.port)


def own_address(controller: str) -> str:
    """Address of this machine on its route to the controller; nothing is sent."""
    host = urlsplit(controller).hostname or "localhost"
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, _DISCARD, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()
