"""The way from a device to its site's gateway: TLS with the devices' own certificates.

    asked      shoal-gateway/1 <attempt> <bytes>\\n
    answered   send\\n, and then kept\\n once the bytes are on the disk; kept\\n when it has them;
               later\\n when it does not know of the round yet; no\\n

The gateway keeps what it is given on its disk, in the round's folder, and sums it when everybody's
is there: memory O(P), however many they are.
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

from shoal.agent.federated.io.sandbox import RESERVE, make_folder, rounds_folder
from shoal.agent.federated.ports import CONTRIBUTION, SITE_SUM, SiteSumFile
from shoal.agent.host.io.config import GatewaySettings, Settings
from shoal.agent.installed.round_record import SavedUpdate
from shoal.agent.peers.io.listener import Listening
from shoal.agent.peers.io.network import own_address
from shoal.agent.peers.io.protocol import CONNECT_S, SILENCE_S, asking_context, check, read_line
from shoal.agent.peers.policy import parse_address
from shoal.durable import translated, write_durable
from shoal.errors import InputError, LinkError, ShoalError
from shoal.federated.compression import decompress
from shoal.federated.messages import Contribution, GatewayRoute
from shoal.federated.site_sum import Gateway

_log = logging.getLogger(__name__)

#: Seconds that the gateway may take for a device's bytes; devices whose bytes it takes at once.
PATIENCE_S, TAKING = 60.0, 2
_ASKED = re.compile(rb"shoal-gateway/1 ([0-9a-f]{32}) ([0-9]{1,10})\n")
_SEND, _KEPT, _LATER, _NO = b"send\n", b"kept\n", b"later\n", b"no\n"
_FOLDER, _PIECE = "site", 1 << 16


def facts_of(settings: Settings) -> dict[str, str]:
    """What the inventory tells, for the controller to tell the site."""
    own = settings.gateway
    if not own.enabled:
        return {}
    address = own.address or own_address(settings.controller.url)
    return {"gateway": f"[{address}]:{own.port}" if ":" in address else f"{address}:{own.port}"}


def hand_over(folder: Path, way: GatewayRoute, attempt: bytes, data: bytes, now_s: float) -> bool:
    """Give the gateway this device's update; whether it has it now, or is to be asked again.

    LinkError when it cannot be had, UntrustedError when something else answers.
    """
    address = parse_address(way.address)
    if address is None:
        raise LinkError(f"{way.address!r:.80} is no address of {way.gateway}")
    try:
        with (
            socket.create_connection(address, CONNECT_S) as plain,
            asking_context(folder).wrap_socket(plain) as connection,
        ):
            check(connection, way.gateway, folder, now_s, way.generation_of(way.gateway))
            return _gives(connection, attempt, data, way.gateway)
    except OSError as error:
        raise LinkError(f"gateway {way.gateway} at {way.address}: {error}") from error


def _gives(connection: ssl.SSLSocket, attempt: bytes, data: bytes, gateway: str) -> bool:
    connection.settimeout(PATIENCE_S)
    connection.sendall(f"shoal-gateway/1 {attempt.hex()} {len(data)}\n".encode())
    said = read_line(connection)
    if said == _SEND:
        connection.sendall(data)
        said = read_line(connection)
    if said not in (_KEPT, _LATER):
        raise LinkError(f"gateway {gateway} takes nothing")
    return said == _KEPT


class SiteUpdateServer:
    """See ports.SiteCollector. It listens only while a round has named this device.

    folder   the agent's, with its certificate; here: that of learning
    """

    def __init__(self, folder: Path, here: Path, settings: GatewaySettings) -> None:
        self._folder, self._here, self._settings = folder, here, settings
        self._listening: _Ears | None = None

    def open(self, attempt: bytes, members: Mapping[str, int], limit: int) -> None:
        ears = self._listening
        if ears is not None and ears.attempt == attempt:
            ears.members = members
            return
        self.close()
        here = rounds_folder(self._here, attempt.hex()) / _FOLDER
        with translated(here):
            make_folder(here)
        address = (self._settings.host, self._settings.port)
        ears = self._listening = _Ears(self._folder, address, attempt, here, limit)
        ears.members = members
        ears.start()

    @property
    def port(self) -> int:
        """That it listens on; 0 while it does not."""
        return self._listening.port if self._listening else 0

    def received(self) -> frozenset[str]:
        return self._listening.came() if self._listening else frozenset()

    def sum(self, attempt: bytes, members: Collection[str], size: int, most: int) -> SiteSumFile:
        if self._listening is not None:
            self._listening.close()
        round_ = rounds_folder(self._here, attempt.hex())
        gateway, summed = Gateway(size, most), set()
        for name in sorted(members):
            path = round_ / _FOLDER / name
            if _added(gateway, name, path if path.exists() else round_ / CONTRIBUTION, size):
                summed.add(name)
        whole = Contribution(update=b"", site=gateway.to_bytes())
        data = msgspec.msgpack.encode(whole)
        with translated(round_):
            write_durable(round_ / SITE_SUM, data, 0o600)
        saved = SavedUpdate(digest=hashlib.sha256(data).digest(), length=len(data))
        return SiteSumFile(frozenset(summed), saved)

    def close(self) -> None:
        if self._listening is not None:
            self._listening.finish()
            self._listening.join()
            self._listening = None


class _Ears(Listening):
    """Accepts the updates of one attempt. members: as passed to `open`, none at first."""

    def __init__(
        self, folder: Path, address: tuple[str, int], attempt: bytes, here: Path, most: int
    ) -> None:
        self.members: Mapping[str, int] = {}
        super().__init__("gateway", folder, address, lambda: self.members, lambda: self.members)
        self.attempt, self.closed = attempt, False
        self._here, self._most, self._writing = here, most, threading.Lock()
        self._taking = threading.BoundedSemaphore(TAKING)

    def close(self) -> None:
        """Nobody is let in any more; who is in is on the disk."""
        with self._writing:
            self.closed = True

    def came(self) -> frozenset[str]:
        found = (path.name for path in self._here.glob("*"))
        return frozenset(found) & self.members.keys()

    def attend(self, connection: ssl.SSLSocket, name: str, line: bytes) -> bool:
        asked = _ASKED.fullmatch(line)
        if asked is None:
            return False
        length = int(asked[2])
        if asked[1].decode() != self.attempt.hex():
            connection.sendall(_LATER)
        elif name in self.came():
            connection.sendall(_KEPT)
        elif self.closed or length > self._most or not self._has_room(length):
            connection.sendall(_NO)
        else:
            self._take(connection, name, length)
        return True

    def _take(self, connection: ssl.SSLSocket, name: str, length: int) -> None:
        """Memory for few at a time; the others come again."""
        if not self._taking.acquire(blocking=False):
            connection.sendall(_LATER)
            return
        try:
            connection.settimeout(SILENCE_S)
            connection.sendall(_SEND)
            self._keep(name, _exactly(connection, length))
            connection.sendall(_KEPT)
        finally:
            self._taking.release()

    def _has_room(self, length: int) -> bool:
        return shutil.disk_usage(self._here).free > length + RESERVE

    def _keep(self, name: str, data: bytes) -> None:
        """StorageError, and nothing is kept, when the disk refuses or the sum is being made."""
        with self._writing, translated(self._here):
            if self.closed:
                raise LinkError("it came too late")
            write_durable(self._here / name, data, 0o600)


def _exactly(connection: ssl.SSLSocket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        some = connection.recv(min(_PIECE, size - len(data)))
        if not some:
            raise ConnectionError("it hung up")
        data += some
    return bytes(data)


def _added(gateway: Gateway, name: str, path: Path, size: int) -> bool:
    """Whether this one is sound; one that is not is left to the controller's judgement."""
    try:
        with translated(path):
            found = msgspec.msgpack.decode(path.read_bytes(), type=Contribution)
        if found.site or not (0 <= found.loss < math.inf and 0 <= found.seconds < math.inf):
            raise InputError("numbers that no update has")
        delta = decompress(found.update, size)
        gateway.add(name, delta, found.examples, found.loss, found.seconds)
    except (ShoalError, msgspec.MsgspecError) as error:
        _log.warning("update of %s is left out: %s", name, error)
        return False
    return True
