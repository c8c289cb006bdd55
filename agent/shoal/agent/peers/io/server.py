"""Server of pieces to the site's devices: of files that a signed manifest names.

A request names a hash and a number, never a path. Each piece is verified against its hash before it
is sent, so that a damaged disk does not damage another device's download.
"""

import contextlib
import hashlib
import ssl
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from shoal import bundle
from shoal.agent.peers.io.listener import TlsListener
from shoal.agent.peers.io.protocol import LONGEST, PieceRequest, parse_request
from shoal.agent.peers.policy import PieceStatus
from shoal.errors import BundleError
from shoal.manifest import File, Piece

#: Pieces sent at once; seconds that the list of files on the disk is cached.
SENDING, SCAN_S = 4, 1.0


class DownloadState:
    """Status of the pieces that this device downloads: set by downloads, read by the server."""

    def __init__(self) -> None:
        self._wanted: set[str] = set()
        self._statuses: dict[PieceRequest, PieceStatus] = {}

    @contextlib.contextmanager
    def want(self, sha256: str) -> Iterator[None]:
        self._wanted.add(sha256)
        try:
            yield
        finally:
            self._wanted.discard(sha256)

    @contextlib.contextmanager
    def claim(self, piece: PieceRequest) -> Iterator[None]:
        """CLAIMED, and FETCHING after `fetching`, until the context ends."""
        self._statuses[piece] = PieceStatus.CLAIMED
        try:
            yield
        finally:
            self._statuses.pop(piece, None)

    def fetching(self, piece: PieceRequest) -> None:
        self._statuses[piece] = PieceStatus.FETCHING

    def status(self, piece: PieceRequest) -> PieceStatus:
        """Status of a piece that is not on the disk."""
        wanted = PieceStatus.WANTED if piece.sha256 in self._wanted else PieceStatus.NONE
        return self._statuses.get(piece, wanted)


class PieceStore:
    """Files below `models` by their hash: in both slots and the stage, complete or partial."""

    def __init__(self, models: Path, monotonic: Callable[[], float]) -> None:
        self._models, self._monotonic = models, monotonic
        self._known: dict[str, tuple[File, list[Path]]] = {}
        self._scanned_s = float("-inf")

    def read(self, piece: PieceRequest) -> bytes | None:
        """The verified bytes of a piece; None when they are not on the disk."""
        if piece.sha256 not in self._known or self._monotonic() > self._scanned_s + SCAN_S:
            self._scan()
        data = self._read(piece)
        if data is None and self._moved(piece):  # from its stage into a slot, a moment ago
            self._scan()
            data = self._read(piece)
        return data

    def _read(self, piece: PieceRequest) -> bytes | None:
        file, paths = self._known.get(piece.sha256, (None, []))
        pieces = file.pieces() if file else []
        if piece.number >= len(pieces):
            return None
        found = (_read(path, pieces[piece.number]) for path in paths)
        return next((data for data in found if data is not None), None)

    def _moved(self, piece: PieceRequest) -> bool:
        _, paths = self._known.get(piece.sha256, (None, []))
        return bool(paths) and not any(path.exists() for path in paths)

    def _scan(self) -> None:
        known: dict[str, tuple[File, list[Path]]] = {}
        for folder in self._models.glob("*/*/"):
            with contextlib.suppress(BundleError, OSError):
                for file in bundle.read_manifest(folder).files():
                    # the part first: once it is gone, the complete file exists
                    paths = [folder / f"{file.sha256}.part", folder / file.name]
                    known.setdefault(file.sha256, (file, []))[1].extend(paths)
        self._known, self._scanned_s = known, self._monotonic()


class PeerServer(TlsListener):
    """Sends pieces to peers until `finish`. See TlsListener.

    max_kbps  kilobit a second for all of them together, 0 for no limit
    sent      bytes of pieces
    """

    def __init__(
        self,
        folder: Path,
        address: tuple[str, int],
        *,
        store: PieceStore,
        state: DownloadState,
        allowed: Callable[[], Collection[str]],
        max_kbps: float,
        sleep: Callable[[float], None],
        generations: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        super().__init__("peers", folder, address, allowed, generations)
        self._store, self._state = store, state
        self._rate, self._sleep = max_kbps * 125, sleep
        self._sending = threading.BoundedSemaphore(SENDING)
        self.sent = 0

    def on_request(self, connection: ssl.SSLSocket, name: str, line: bytes) -> bool:
        piece = parse_request(line)
        if piece is None:
            return False
        self._answer(connection, piece)
        return True

    def _answer(self, connection: ssl.SSLSocket, piece: PieceRequest) -> None:
        if not self._sending.acquire(blocking=False):
            connection.sendall(f"{PieceStatus.BUSY}\n".encode())
            return
        try:
            status = self._state.status(piece)  # before the read: it may be completed in between
            data = self._store.read(piece)
            if data is None:
                connection.sendall(f"{status}\n".encode())
                return
            if self._rate:
                self._sleep(len(data) * SENDING / self._rate)
            connection.sendall(f"{PieceStatus.HAVE} {len(data)}\n".encode() + data)
            self.sent += len(data)
        finally:
            self._sending.release()


def _read(path: Path, piece: Piece) -> bytes | None:
    size = piece.stop - piece.start
    if size > LONGEST:
        return None
    try:
        with path.open("rb") as file:
            file.seek(piece.start)
            data = file.read(size)
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == piece.sha256 else None
