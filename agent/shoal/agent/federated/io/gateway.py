"""Hand-over of updates to the site's gateway: TLS with the devices' own certificates.

    request    shoal-gateway/1 <attempt> <bytes>\\n
    response   send\\n, and then kept\\n once the bytes are on the disk; kept\\n when they are there
               already; later\\n before the round has started at the gateway; no\\n

The gateway saves the updates in the round's folder and sums them when all are there: memory O(P),
whatever the number of devices.
"""

import hashlib
import logging
import math
import re
import shutil
import socket
import ssl
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from shoal.address import parse_host_port
from shoal.agent.federated.io.sandbox import make_folder, rounds_folder
from shoal.agent.federated.ports import CONTRIBUTION, SITE_SUM, SiteSumFile
from shoal.agent.host.io.config import GatewaySettings, Settings
from shoal.agent.host.ports import RESERVE
from shoal.agent.installed.record import SavedUpdate
from shoal.agent.peers.io.listener import TlsListener
from shoal.agent.peers.io.network import announced
from shoal.agent.peers.io.protocol import (
    CONNECT_S,
    READ_S,
    check,
    client_context,
    read_exactly,
    read_line,
)
from shoal.durable import translated, write_durable
from shoal.errors import InputError, LinkError, ShoalError
from shoal.federated.compression import decompress
from shoal.federated.messages import Contribution, GatewayRoute
from shoal.federated.site_sum import Gateway

_log = logging.getLogger(__name__)

#: Seconds to wait for the gateway; updates that it receives at once.
TIMEOUT_S, RECEIVING = 60.0, 2
_REQUEST = re.compile(rb"shoal-gateway/1 ([0-9a-f]{32}) ([0-9]{1,10})\n")
_SEND, _KEPT, _LATER, _NO = b"send\n", b"kept\n", b"later\n", b"no\n"
_FOLDER = "site"


def facts_of(settings: Settings) -> dict[str, str]:
    """Facts for the inventory, which the controller sends to the site."""
    own = settings.gateway
    return {"gateway": announced(own, settings.controller.url)} if own.enabled else {}


def hand_over(folder: Path, route: GatewayRoute, attempt: bytes, data: bytes, now_s: float) -> bool:
    """Send this device's update to the gateway; False when it has to be tried again later.

    LinkError when it is unreachable, UntrustedError for another device at its address.
    """
    address = parse_host_port(route.address)
    if address is None:
        raise LinkError(f"{route.address!r:.80} is no address of {route.gateway}")
    try:
        with (
            socket.create_connection(address, CONNECT_S) as plain,
            client_context(folder).wrap_socket(plain) as connection,
        ):
            check(connection, route.gateway, folder, now_s, route.generation_of(route.gateway))
            return _send(connection, attempt, data, route.gateway)
    except OSError as error:
        raise LinkError(f"gateway {route.gateway} at {route.address}: {error}") from error


def _send(connection: ssl.SSLSocket, attempt: bytes, data: bytes, gateway: str) -> bool:
    connection.settimeout(TIMEOUT_S)
    connection.sendall(f"shoal-gateway/1 {attempt.hex()} {len(data)}\n".encode())
    response = read_line(connection)
    if response == _SEND:
        connection.sendall(data)
        response = read_line(connection)
    if response not in (_KEPT, _LATER):
        raise LinkError(f"gateway {gateway} accepts no update")
    return response == _KEPT


class SiteUpdateServer:
    """See ports.SiteCollector. It listens only while a round names this device as its gateway.

    folder   the agent's, with its certificate; here: the learning folder
    """

    def __init__(self, folder: Path, here: Path, settings: GatewaySettings) -> None:
        self._folder, self._here, self._settings = folder, here, settings
        self._listener: _UpdateListener | None = None

    def open(self, attempt: bytes, members: Mapping[str, int], limit: int) -> None:
        listener = self._listener
        if listener is not None and listener.attempt == attempt:
            listener.members = members
            return
        self.close()
        here = rounds_folder(self._here, attempt.hex()) / _FOLDER
        with translated(here):
            make_folder(here)
        address = (self._settings.host, self._settings.port)
        listener = _UpdateListener(self._folder, address, attempt, here, limit)
        self._listener, listener.members = listener, members
        listener.start()

    @property
    def port(self) -> int:
        """Port that it listens on; 0 while it does not."""
        return self._listener.port if self._listener else 0

    def received(self) -> frozenset[str]:
        return self._listener.received() if self._listener else frozenset()

    def sum(self, attempt: bytes, members: Collection[str], size: int, most: int) -> SiteSumFile:
        if self._listener is not None:
            self._listener.close()
        round_ = rounds_folder(self._here, attempt.hex())
        gateway, summed = Gateway(size, most), set()
        for name in sorted(members):
            path = round_ / _FOLDER / name
            if _add(gateway, name, path if path.exists() else round_ / CONTRIBUTION, size):
                summed.add(name)
        whole = Contribution(update=b"", site=gateway.to_bytes())
        data = msgspec.msgpack.encode(whole)
        with translated(round_):
            write_durable(round_ / SITE_SUM, data, 0o600)
        saved = SavedUpdate(digest=hashlib.sha256(data).digest(), length=len(data))
        return SiteSumFile(frozenset(summed), saved)

    def close(self) -> None:
        if self._listener is not None:
            self._listener.finish()
            self._listener.join()
            self._listener = None


class _UpdateListener(TlsListener):
    """Accepts the updates of one attempt. members: as passed to `open`, none at first."""

    def __init__(
        self, folder: Path, address: tuple[str, int], attempt: bytes, here: Path, most: int
    ) -> None:
        self.members: Mapping[str, int] = {}
        super().__init__("gateway", folder, address, lambda: self.members, lambda: self.members)
        self.attempt, self.closed = attempt, False
        self._here, self._most, self._writing = here, most, threading.Lock()
        self._receiving = threading.BoundedSemaphore(RECEIVING)

    def close(self) -> None:
        """Accept no more updates."""
        with self._writing:
            self.closed = True

    def received(self) -> frozenset[str]:
        found = (path.name for path in self._here.glob("*"))
        return frozenset(found) & self.members.keys()

    def on_request(self, connection: ssl.SSLSocket, name: str, line: bytes) -> bool:
        request = _REQUEST.fullmatch(line)
        if request is None:
            return False
        length = int(request[2])
        if request[1].decode() != self.attempt.hex():
            connection.sendall(_LATER)
        elif name in self.received():
            connection.sendall(_KEPT)
        elif self.closed or length > self._most or not self._fits(length):
            connection.sendall(_NO)
        else:
            self._receive(connection, name, length)
        return True

    def _receive(self, connection: ssl.SSLSocket, name: str, length: int) -> None:
        """Receive an update; while RECEIVING others are, the device has to try again."""
        if not self._receiving.acquire(blocking=False):
            connection.sendall(_LATER)
            return
        try:
            connection.settimeout(READ_S)
            connection.sendall(_SEND)
            self._save(name, read_exactly(connection, length))
            connection.sendall(_KEPT)
        finally:
            self._receiving.release()

    def _fits(self, length: int) -> bool:
        return shutil.disk_usage(self._here).free > length + RESERVE

    def _save(self, name: str, data: bytes) -> None:
        """Save an update; StorageError when the disk refuses, LinkError once the sum is made."""
        with self._writing, translated(self._here):
            if self.closed:
                raise LinkError("the sum is being made")
            write_durable(self._here / name, data, 0o600)


def _add(gateway: Gateway, name: str, path: Path, size: int) -> bool:
    """Add an update to the sum; False for an invalid one, which its device uploads itself."""
    try:
        with translated(path):
            found = msgspec.msgpack.decode(path.read_bytes(), type=Contribution)
        if found.site or not (0 <= found.loss < math.inf and 0 <= found.seconds < math.inf):
            raise InputError("loss or seconds out of range")
        delta = decompress(found.update, size)
        gateway.add(name, delta, found.examples, found.loss, found.seconds)
    except (ShoalError, msgspec.MsgspecError) as error:
        _log.warning("update of %s left out of the sum: %s", name, error)
        return False
    return True
