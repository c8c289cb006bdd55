"""Downloads from the site's other devices first: one of them fetches a file for all.

Each piece is verified against its hash in the signed manifest, so a malicious peer costs one piece;
a slow peer, or one that claims a piece and never has it, costs one MAX_WAIT_S. Whatever peers do,
the artifact server remains.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from shoal import bundle
from shoal.address import parse_host_port
from shoal.agent.host.faults import Fault
from shoal.agent.host.io.local_pieces import LocalPieces
from shoal.agent.host.ports import Downloads, Random, RangeRefusedError
from shoal.agent.peers.io.protocol import (
    LONGEST,
    READ_S,
    Deadline,
    PeerConnection,
    PieceRequest,
    SlowError,
    connect,
)
from shoal.agent.peers.io.server import DownloadState
from shoal.agent.peers.policy import ASKED, Decision, PieceStatus, decide, ranked
from shoal.durable import sync, translated
from shoal.errors import AbsentError, BundleError, LinkError, UntrustedError
from shoal.manifest import File

_log = logging.getLogger(__name__)

#: Seconds: between two queries; before a peer that failed is asked again, doubled each time; that a
#: piece is waited for; before a slow peer is asked again; before a malicious one is.
POLL_S, RETRY_S, MAX_WAIT_S, SLOW_S, BANNED_S = 0.2, 2.0, 120.0, 600.0, 3_600.0
#: Seconds that a device waits for each device before it in rank, and at most: they may not have
#: received the assignment yet.
HEAD_START_S, _LONGEST_START_S = 0.5, 3.0
#: Bytes of a file below which peers are not asked.
SMALL = 1 << 16


class ArtifactServer(Downloads, Protocol):
    """The artifact server, with range requests.

    span   bytes start..end of a file of `size` bytes; LinkError (RangeRefusedError), AbsentError,
           DeniedError
    """

    def span(
        self, url: str, start: int, end: int, size: int, stop: Callable[[], bool]
    ) -> bytes: ...


class PeerContext(NamedTuple):
    """This device and its peers.

    peers        device -> host:port, from the controller's latest message
    fault        reports a malicious peer
    generations  device -> least generation of its certificate
    """

    folder: Path
    me: str
    peers: Callable[[], Mapping[str, str]]
    fault: Callable[[Fault], None]
    wall: Callable[[], float]
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    random: Random
    generations: Callable[[], Mapping[str, int]] = dict


class PeerDownloads:
    """Downloads from peers, and from the artifact server. See host.ports.Downloads."""

    def __init__(
        self,
        server: ArtifactServer,
        context: PeerContext,
        state: DownloadState,
        stage: Callable[[str], Path],
    ) -> None:
        self._server, self._context, self._state, self._stage = server, context, state, stage
        self.avoided: dict[str, float] = {}  # peer -> until when it is not asked
        self.failures: dict[str, int] = {}  # peer -> failed requests in a row
        self.refused: set[str] = set()  # peers that closed the connection: they may not know us yet

    def metadata(self, name: str) -> bytes:
        return self._server.metadata(name)

    def small(self, url: str, size: int, sha256: str) -> bytes:
        return self._server.small(url, size, sha256)

    def delta(self, url: str, model: str, file: File, base: Path, stop: Callable[[], bool]) -> int:
        """AbsentError with peers: one whole file costs a site less than a delta a device."""
        if self._context.peers():
            raise AbsentError("need of a delta for", file.name, "peers share the whole file")
        return self._server.delta(url, model, file, base, stop)

    def file(
        self,
        url: str,
        model: str,
        file: File,
        stop: Callable[[], bool],
        bases: Sequence[Path] = (),
    ) -> int:
        """Download into the model's stage; bytes that came from the artifact server.

        After a power cut only the incomplete piece is downloaded again. Pieces that older versions
        at `bases` have are copied from there. Where a proxy refuses requests for pieces, the rest
        comes from the artifact server alone.
        """
        long = any(piece.stop - piece.start > LONGEST for piece in file.pieces())
        if long or file.size < SMALL or not self._context.peers():
            return self._server.file(url, model, file, stop, bases)
        stage = self._stage(model)
        part = stage / f"{file.sha256}.part"
        try:
            with translated(part.name), self._state.want(file.sha256):
                stage.mkdir(parents=True, exist_ok=True)
                fetched = self._download(url, part, file, stop, LocalPieces(file, bases))
                bundle.accept(part, stage / file.name, file)
        except RangeRefusedError:
            return self._server.file(url, model, file, stop)  # which gives ranges up in the end
        return fetched

    def _download(
        self, url: str, part: Path, file: File, stop: Callable[[], bool], local: LocalPieces
    ) -> int:
        pieces, fetched = file.pieces(), 0
        have = part.stat().st_size if part.exists() else 0
        whole = sum(piece.stop <= have for piece in pieces)
        with part.open("r+b" if have else "wb") as out, _PeerSession(self, file, stop) as peers:
            sync(part.parent)
            out.truncate(pieces[whole].start if whole < len(pieces) else file.size)
            out.seek(0, os.SEEK_END)

            def keep(data: bytes) -> None:
                out.write(data)
                out.flush()  # peers can read it from now on

            for number in range(whole, len(pieces)):
                if (data := local.read(pieces[number])) is not None:
                    keep(data)
                    continue
                fetched += self._piece(_FileDownload(url, file, peers, keep, stop), number)
            os.fsync(out.fileno())
        return fetched

    def _piece(self, job: "_FileDownload", number: int) -> int:
        """Download a piece; bytes that came from the artifact server."""
        piece, began, peers = (
            PieceRequest(job.file.sha256, number),
            self._context.monotonic(),
            job.peers,
        )
        peers.until = began + MAX_WAIT_S + READ_S  # so that the last query can end
        while True:
            if job.stop():
                raise LinkError("download was cancelled")
            statuses, data = peers.query(piece)
            if data is not None:
                job.keep(data)
                return 0
            if self._context.monotonic() - began > MAX_WAIT_S:
                peers.mark_slow(statuses)
                job.keep(self._fetch(job, piece))
                return _size(job.file, number)
            if not peers.early and peers.decide(statuses) is Decision.FETCH:
                size = self._claim(job, piece, began + MAX_WAIT_S)
                if size is not None:
                    return size
            self._context.sleep(POLL_S * (0.5 + self._context.random.random()))

    def _claim(self, job: "_FileDownload", piece: PieceRequest, until: float) -> int | None:
        """Claim a piece, query once more, and fetch it; None when another device is first.

        A device that claims it too sees this claim and gives way, or queried before it and fetches:
        then this one waits. Peers see the claim until the piece is on this device's disk.
        """
        with self._state.claim(piece):
            while True:
                statuses, data = job.peers.query(piece, refused=True)
                if data is not None:
                    job.keep(data)
                    return 0
                late = self._context.monotonic() > until or job.stop()
                if late or job.peers.decide(statuses) is Decision.WAIT:
                    return None
                if PieceStatus.CLAIMED not in statuses.values():
                    break
                self._context.sleep(POLL_S * self._context.random.random())
            self._state.fetching(piece)
            job.keep(self._fetch(job, piece))
            return _size(job.file, piece.number)

    def _fetch(self, job: "_FileDownload", piece: PieceRequest) -> bytes:
        part = job.file.pieces()[piece.number]
        data = self._server.span(job.url, part.start, part.stop, job.file.size, job.stop)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise BundleError(f"{job.file.name} as downloaded does not match its signed hash")
        return data


class _FileDownload(NamedTuple):
    """The download of one file. keep: writes the next piece, which peers can then read."""

    url: str
    file: File
    peers: "_PeerSession"
    keep: Callable[[bytes], None]
    stop: Callable[[], bool]


class _PeerSession:
    """Connections to the peers during the download of one file."""

    def __init__(self, owner: PeerDownloads, file: File, stop: Callable[[], bool]) -> None:
        self._context, self._owner, self._file, self._stop = owner._context, owner, file, stop
        self.until = 0.0  # end of the queries for the current piece
        peers = self._context.peers()
        names = ranked(file.sha256, {*peers, self._context.me})
        self._order = [name for name in names if name != self._context.me][:ASKED]
        self._addresses, self._connections = peers, dict[str, PeerConnection]()
        self._ranks = names
        place = names.index(self._context.me)
        head_start = min(_LONGEST_START_S, HEAD_START_S * place)
        self._begin_at = self._context.monotonic() + head_start

    def __enter__(self) -> "_PeerSession":
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections.values():
            connection.close()

    @property
    def early(self) -> bool:
        """Whether devices before this one in rank may not have started yet."""
        return self._context.monotonic() < self._begin_at

    def decide(self, statuses: Mapping[str, PieceStatus]) -> Decision:
        return decide(self._context.me, self._ranks, statuses)

    def query(
        self, piece: PieceRequest, *, refused: bool = False
    ) -> tuple[dict[str, PieceStatus], bytes | None]:
        """Ask the peers, in random order, until one sends the piece; else their statuses.

        refused   ask peers again that closed the connection: they may have started since
        """
        statuses: dict[str, PieceStatus] = {}
        now, avoided = self._context.monotonic(), self._owner.avoided
        again = self._owner.refused if refused else set[str]()
        due = [name for name in self._order if avoided.get(name, 0.0) <= now or name in again]
        for name in sorted(due, key=lambda _: self._context.random.random()):
            if self._context.monotonic() >= self.until:
                break
            status, data = self._request(name, piece)
            if data is not None:
                return statuses, data
            if status is not None and status is not PieceStatus.NONE:
                statuses[name] = status
        return statuses, None

    def mark_slow(self, names: Iterable[str]) -> None:
        """Avoid peers that never had the piece that they announced."""
        for name in names:
            self._avoid(name, SLOW_S)

    def _request(self, name: str, piece: PieceRequest) -> tuple[PieceStatus | None, bytes | None]:
        part = self._file.pieces()[piece.number]
        try:
            connection = self._connections.get(name) or self._connect(name)
            deadline = Deadline(self.until, self._stop, self._context.monotonic)
            status, data = connection.request(piece, part.stop - part.start, deadline)
        except UntrustedError as error:
            self._avoid(name, BANNED_S)
            self._context.fault(Fault("peer-untrusted", str(error)))
            return None, None
        except SlowError as error:
            _log.info("%s: %s", name, error)
            self._avoid(name, SLOW_S)
            return None, None
        except (OSError, ValueError) as error:
            _log.debug("%s: %s", name, error)
            failures = self._owner.failures.get(name, 0)
            self._owner.failures[name] = failures + 1
            self._avoid(name, min(SLOW_S, RETRY_S * 2**failures))
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                self._owner.refused.add(name)
            return None, None
        if status is not PieceStatus.HAVE:
            return status, None
        if hashlib.sha256(data).hexdigest() != part.sha256:
            self._avoid(name, BANNED_S)
            detail = f"{name} sent a piece of {self._file.name} that is not what was signed"
            self._context.fault(Fault("peer-lied", detail))
            return None, None
        self._owner.failures.pop(name, None)  # only a piece resets them
        return status, data

    def _connect(self, name: str) -> PeerConnection:
        address = parse_host_port(self._addresses[name])
        if address is None:
            raise ValueError(f"{self._addresses[name]!r:.80} is no address")
        context, generation = self._context, self._context.generations().get(name, 0)
        connection = connect(address, name, context.folder, context.wall(), generation)
        self._connections[name] = connection
        return connection

    def _avoid(self, name: str, seconds: float) -> None:
        self._owner.avoided[name] = self._context.monotonic() + seconds
        self._owner.refused.discard(name)
        connection = self._connections.pop(name, None)
        if connection is not None:
            connection.close()


def _size(file: File, number: int) -> int:
    piece = file.pieces()[number]
    return piece.stop - piece.start
