"""What this device shares with its neighbours: pieces of files that a signed manifest names.

A request names a hash and a number, never a path. Each piece is held against its hash before it
leaves, so that a damaged disk spoils nobody else's download.
"""

import contextlib
import hashlib
import ssl
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from shoal import bundle
from shoal.agent.peers.io.listener import Listening
from shoal.agent.peers.io.protocol import LONGEST, Wish, read_wish
from shoal.agent.peers.policy import Word
from shoal.errors import BundleError
from shoal.manifest import File, Piece

#: Pieces that are on their way at once; seconds that a look at the disk holds.
SENDING, LOOK_S = 4, 1.0


class Board:
    """What this device is after: asked by the server's threads, written by its downloads."""

    def __init__(self) -> None:
        self._wanted: set[str] = set()
        self._at: dict[Wish, Word] = {}

    @contextlib.contextmanager
    def wanting(self, sha256: str) -> Iterator[None]:
        self._wanted.add(sha256)
        try:
            yield
        finally:
            self._wanted.discard(sha256)

    @contextlib.contextmanager
    def claiming(self, wish: Wish) -> Iterator[None]:
        """CLAIMED, or FETCHING from `fetching` on, until the end."""
        self._at[wish] = Word.CLAIMED
        try:
            yield
        finally:
            self._at.pop(wish, None)

    def fetching(self, wish: Wish) -> None:
        self._at[wish] = Word.FETCHING

    def word(self, wish: Wish) -> Word:
        """Of a piece that is not here."""
        return self._at.get(wish) or (Word.WANTED if wish.sha256 in self._wanted else Word.NONE)


class Shelf:
    """Files below `models` by their hash: of both slots and of the stage, whole or growing."""

    def __init__(self, models: Path, monotonic: Callable[[], float]) -> None:
        self._models, self._monotonic = models, monotonic
        self._known: dict[str, tuple[File, list[Path]]] = {}
        self._looked = float("-inf")

    def piece(self, wish: Wish) -> bytes | None:
        """The bytes of a piece, true to their hash; None when they are not here."""
        if wish.sha256 not in self._known or self._monotonic() > self._looked + LOOK_S:
            self._look()
        data = self._read(wish)
        if data is None and self._moved(wish):  # from its stage into a slot, a moment ago
            self._look()
            data = self._read(wish)
        return data

    def _read(self, wish: Wish) -> bytes | None:
        file, paths = self._known.get(wish.sha256, (None, []))
        pieces = file.pieces() if file else []
        if wish.number >= len(pieces):
            return None
        found = (_read(path, pieces[wish.number]) for path in paths)
        return next((data for data in found if data is not None), None)

    def _moved(self, wish: Wish) -> bool:
        _, paths = self._known.get(wish.sha256, (None, []))
        return bool(paths) and not any(path.exists() for path in paths)

    def _look(self) -> None:
        known: dict[str, tuple[File, list[Path]]] = {}
        for folder in self._models.glob("*/*/"):
            with contextlib.suppress(BundleError, OSError):
                for file in bundle.read_manifest(folder).files():
                    # the part first: once it is not there any more the whole file is
                    paths = [folder / f"{file.sha256}.part", folder / file.name]
                    known.setdefault(file.sha256, (file, []))[1].extend(paths)
        self._known, self._looked = known, self._monotonic()


class Sharing(Listening):
    """Answers neighbours until it is told to finish. See Listening.

    max_kbps  kilobit a second for all of them together, 0 for no limit
    shared    bytes that it gave away
    """

    def __init__(
        self,
        folder: Path,
        address: tuple[str, int],
        *,
        shelf: Shelf,
        board: Board,
        allowed: Callable[[], Collection[str]],
        max_kbps: float,
        sleep: Callable[[float], None],
        generations: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        super().__init__("peers", folder, address, allowed, generations)
        self._shelf, self._board = shelf, board
        self._rate, self._sleep = max_kbps * 125, sleep
        self._sending = threading.BoundedSemaphore(SENDING)
        self.shared = 0

    def attend(self, connection: ssl.SSLSocket, name: str, line: bytes) -> bool:
        wish = read_wish(line)
        if wish is None:
            return False
        self._answer(connection, wish)
        return True

    def _answer(self, connection: ssl.SSLSocket, wish: Wish) -> None:
        if not self._sending.acquire(blocking=False):
            connection.sendall(f"{Word.BUSY}\n".encode())
            return
        try:
            word = self._board.word(wish)  # before the look: what comes in between is found
            data = self._shelf.piece(wish)
            if data is None:
                connection.sendall(f"{word}\n".encode())
                return
            if self._rate:
                self._sleep(len(data) * SENDING / self._rate)
            connection.sendall(f"{Word.HAVE} {len(data)}\n".encode() + data)
            self.shared += len(data)
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
