"""Downloads that ask the site's other devices first: one of them fetches a file for all.

Each piece is verified against the hash that the signed manifest has of it, so a neighbour that
lies costs one piece; one that is slow, or only says that it is about to, costs its patience once.
Whatever neighbours do, the artifact server is the way that is left.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from shoal import bundle
from shoal.agent.host.faults import Fault
from shoal.agent.host.network import Network
from shoal.agent.host.randomness import Random
from shoal.agent.peers.io.protocol import LONGEST, SILENCE_S, Line, Patience, SlowError, Wish, call
from shoal.agent.peers.io.server import Board
from shoal.agent.peers.policy import ASKED, Move, Word, decide, parse_address, ranked
from shoal.durable import sync, translated
from shoal.errors import AbsentError, BundleError, LinkError, UntrustedError
from shoal.manifest import File

_log = logging.getLogger(__name__)

#: Seconds: between two looks; that who does not answer is not asked, twice as long each time; that
#: a piece may take others; that who is too slow is not asked; that a liar is not asked.
LOOK_S, SILENT_S, PATIENCE_S, SLOW_S, BANNED_S = 0.2, 2.0, 120.0, 600.0, 3_600.0
#: Seconds that each place in rank gives those before it to begin, and the most of it: they may not
#: have heard of the release yet.
HEAD_START_S, _LONGEST_START_S = 0.5, 3.0
#: Bytes of a file that is not worth asking for.
SMALL = 1 << 16


class Wan(Network, Protocol):
    """The artifact server, of which a part of a file may be had.

    span   bytes start..end of a file of `size` bytes; LinkError, AbsentError, DeniedError
    """

    def span(
        self, url: str, start: int, end: int, size: int, stop: Callable[[], bool]
    ) -> bytes: ...


class Site(NamedTuple):
    """The neighbourhood. named: device -> host:port, as the controller says now.

    fault   told of a neighbour that lies
    generations   device -> how often its name was given away before, as far as it is known
    """

    folder: Path
    me: str
    named: Callable[[], Mapping[str, str]]
    fault: Callable[[Fault], None]
    wall: Callable[[], float]
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    random: Random
    generations: Callable[[], Mapping[str, int]] = dict


class Neighbourly:
    """Downloads by way of the neighbours. See ports.Downloads, and io.download for the rest."""

    def __init__(self, wan: Wan, site: Site, board: Board, stage: Callable[[str], Path]) -> None:
        self._wan, self._site, self._board, self._stage = wan, site, board, stage
        self.quiet: dict[str, float] = {}  # neighbour -> until when it is not asked
        self.silences: dict[str, int] = {}  # how often in a row it did not answer
        self.hung_up: set[str] = set()  # of those: who is there, and does not know us yet

    def metadata(self, name: str) -> bytes:
        return self._wan.metadata(name)

    def small(self, url: str, size: int, sha256: str) -> bytes:
        return self._wan.small(url, size, sha256)

    def delta(self, url: str, model: str, file: File, base: Path, stop: Callable[[], bool]) -> int:
        """Not where neighbours are: the whole file once costs a site less than a delta each."""
        if self._site.named():
            raise AbsentError("need of a delta for", file.name, "neighbours share the whole file")
        return self._wan.delta(url, model, file, base, stop)

    def file(self, url: str, model: str, file: File, stop: Callable[[], bool]) -> int:
        """Into the model's stage; bytes that came from the artifact server.

        A piece that was begun when the power failed is fetched again, whole ones are not.
        """
        long = any(piece.stop - piece.start > LONGEST for piece in file.pieces())
        if long or file.size < SMALL or not self._site.named():
            return self._wan.file(url, model, file, stop)
        stage = self._stage(model)
        part = stage / f"{file.sha256}.part"
        with translated(part.name), self._board.wanting(file.sha256):
            stage.mkdir(parents=True, exist_ok=True)
            got = self._gather(url, part, file, stop)
            try:
                bundle.verify_file(part, file)
            except BundleError:
                part.unlink()
                raise
            part.replace(stage / file.name)
        return got

    def _gather(self, url: str, part: Path, file: File, stop: Callable[[], bool]) -> int:
        pieces, got = file.pieces(), 0
        have = part.stat().st_size if part.exists() else 0
        whole = sum(piece.stop <= have for piece in pieces)
        with part.open("r+b" if have else "wb") as out, _Round(self, file, stop) as asking:
            sync(part.parent)
            out.truncate(pieces[whole].start if whole < len(pieces) else file.size)
            out.seek(0, os.SEEK_END)

            def keep(data: bytes) -> None:
                out.write(data)
                out.flush()  # the neighbours read it from here on

            for number in range(whole, len(pieces)):
                got += self._piece(_Job(url, file, asking, keep, stop), number)
            os.fsync(out.fileno())
        return got

    def _piece(self, job: "_Job", number: int) -> int:
        """Keep a piece; how many bytes of it came from the artifact server."""
        wish, began, asking = Wish(job.file.sha256, number), self._site.monotonic(), job.asking
        asking.until = began + PATIENCE_S + SILENCE_S  # the last look may end, and blame
        while True:
            if job.stop():
                raise LinkError("download was taken back")
            words, data = asking.ask_all(wish)
            if data is not None:
                job.keep(data)
                return 0
            if self._site.monotonic() - began > PATIENCE_S:
                asking.blame(words)
                job.keep(self._fetch(job, wish))
                return _size(job.file, number)
            if not asking.early and asking.decide(words) is Move.FETCH:
                came = self._claim(job, wish, began + PATIENCE_S)
                if came is not None:
                    return came
            self._site.sleep(LOOK_S * (0.5 + self._site.random.random()))

    def _claim(self, job: "_Job", wish: Wish, until: float) -> int | None:
        """Say so, look once more, and fetch; None when another one was first.

        Who claims as well sees this claim and gives way, or began to look before it and fetches:
        what it does is waited for. Others hear of the claim until the piece can be had here.
        """
        with self._board.claiming(wish):
            while True:
                words, data = job.asking.ask_all(wish, surely=True)
                if data is not None:
                    job.keep(data)
                    return 0
                late = self._site.monotonic() > until or job.stop()
                if late or job.asking.decide(words) is Move.WAIT:
                    return None
                if Word.CLAIMED not in words.values():
                    break
                self._site.sleep(LOOK_S * self._site.random.random())
            self._board.fetching(wish)
            job.keep(self._fetch(job, wish))
            return _size(job.file, wish.number)

    def _fetch(self, job: "_Job", wish: Wish) -> bytes:
        piece = job.file.pieces()[wish.number]
        data = self._wan.span(job.url, piece.start, piece.stop, job.file.size, job.stop)
        if hashlib.sha256(data).hexdigest() != piece.sha256:
            raise BundleError(f"{job.file.name} as downloaded does not match its signed hash")
        return data


class _Job(NamedTuple):
    """The download of one file. keep: writes the next piece, for the neighbours to have, too."""

    url: str
    file: File
    asking: "_Round"
    keep: Callable[[bytes], None]
    stop: Callable[[], bool]


class _Round:
    """Connections to the neighbours for the time of one file."""

    def __init__(self, owner: Neighbourly, file: File, stop: Callable[[], bool]) -> None:
        self._site, self._owner, self._file, self._stop = owner._site, owner, file, stop
        self.until = 0.0  # when the piece in hand is not asked for any more
        named = self._site.named()
        names = ranked(file.sha256, {*named, self._site.me})
        self._order = [name for name in names if name != self._site.me][:ASKED]
        self._named, self._lines = named, dict[str, Line]()
        self._ranks = names
        place = names.index(self._site.me)
        head_start = min(_LONGEST_START_S, HEAD_START_S * place)
        self._begin_at = self._site.monotonic() + head_start

    def __enter__(self) -> "_Round":
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._lines.values():
            line.close()

    @property
    def early(self) -> bool:
        """Whether those before this device in rank may still be about to begin."""
        return self._site.monotonic() < self._begin_at

    def decide(self, words: Mapping[str, Word]) -> Move:
        return decide(self._site.me, self._ranks, words)

    def ask_all(self, wish: Wish, *, surely: bool = False) -> tuple[dict[str, Word], bytes | None]:
        """What everybody says, until one gives the piece, in an order of its own each time.

        surely   also those that hung up a moment ago: they may have begun since
        """
        words: dict[str, Word] = {}
        now, quiet = self._site.monotonic(), self._owner.quiet
        again = self._owner.hung_up if surely else set[str]()
        due = [name for name in self._order if quiet.get(name, 0.0) <= now or name in again]
        for name in sorted(due, key=lambda _: self._site.random.random()):
            if self._site.monotonic() >= self.until:
                break
            word, data = self._ask(name, wish)
            if data is not None:
                return words, data
            if word is not None and word is not Word.NONE:
                words[name] = word
        return words, None

    def blame(self, words: Mapping[str, Word]) -> None:
        """Those that were waited for in vain are not waited for again."""
        for name in words:
            self._ignore(name, SLOW_S)

    def _ask(self, name: str, wish: Wish) -> tuple[Word | None, bytes | None]:
        piece = self._file.pieces()[wish.number]
        try:
            line = self._lines.get(name) or self._call(name)
            patience = Patience(self.until, self._stop, self._site.monotonic)
            word, data = line.ask(wish, piece.stop - piece.start, patience)
        except UntrustedError as error:
            self._ignore(name, BANNED_S)
            self._site.fault(Fault("peer-untrusted", str(error)))
            return None, None
        except SlowError as error:
            _log.info("%s: %s", name, error)
            self._ignore(name, SLOW_S)
            return None, None
        except (OSError, ValueError) as error:
            _log.debug("%s: %s", name, error)
            silences = self._owner.silences.get(name, 0)
            self._owner.silences[name] = silences + 1
            self._ignore(name, min(SLOW_S, SILENT_S * 2**silences))
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                self._owner.hung_up.add(name)
            return None, None
        if word is not Word.HAVE:
            return word, None
        if hashlib.sha256(data).hexdigest() != piece.sha256:
            self._ignore(name, BANNED_S)
            detail = f"{name} gave a piece of {self._file.name} that is not what was signed"
            self._site.fault(Fault("peer-lied", detail))
            return None, None
        self._owner.silences.pop(name, None)  # words alone make nobody's silences good
        return word, data

    def _call(self, name: str) -> Line:
        address = parse_address(self._named[name])
        if address is None:
            raise ValueError(f"{self._named[name]!r:.80} is no address")
        generation = self._site.generations().get(name, 0)
        line = call(address, name, self._site.folder, self._site.wall(), generation)
        self._lines[name] = line
        return line

    def _ignore(self, name: str, seconds: float) -> None:
        self._owner.quiet[name] = self._site.monotonic() + seconds
        self._owner.hung_up.discard(name)
        line = self._lines.pop(name, None)
        if line is not None:
            line.close()


def _size(file: File, number: int) -> int:
    piece = file.pieces()[number]
    return piece.stop - piece.start
