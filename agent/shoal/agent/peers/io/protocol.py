"""How neighbours speak: TLS with the devices' own certificates, a line asked, a line answered.

    asked      shoal-peer/1 <sha256 of the file> <number of the piece>\\n
    answered   have <bytes>\\n and the bytes, or one of the other words of peers.Word\\n

Both ends are devices of one CA. A device's certificate is a client's, so who asks verifies the
other one's certificate itself: issued by the CA, valid, and of the device that was to be asked.
"""

import datetime
import math
import re
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.x509.oid import NameOID

from shoal.agent.host.io.folder import CA, CERTIFICATE, KEY
from shoal.agent.peers.policy import Word
from shoal.errors import LinkError, SettingError, UntrustedError
from shoal.issuer import is_issued_by

#: Longest piece that is shared; longest line; seconds to connect, and for a line.
LONGEST, LINE, CONNECT_S, SILENCE_S = 4 << 20, 128, 2.0, 5.0
#: Bytes a second that a piece must come at, after SILENCE_S.
SLOWEST_BPS = 128 << 10
_ASKED = re.compile(rb"shoal-peer/1 ([0-9a-f]{64}) ([0-9]{1,4})\n")
_HAVE = re.compile(rb"have ([0-9]{1,8})\n")
_GENERATION = re.compile(r"[1-9][0-9]{0,5}")
_PIECE = 1 << 16


class SlowError(TimeoutError):
    """It has the piece, and does not give it in the time that there is."""


class Wish(NamedTuple):
    """One piece of one file."""

    sha256: str
    number: int

    def line(self) -> bytes:
        return f"shoal-peer/1 {self.sha256} {self.number}\n".encode()


def read_wish(line: bytes) -> Wish | None:
    """What a line asks for; None when it is no such line."""
    found = _ASKED.fullmatch(line)
    return Wish(found[1].decode(), int(found[2])) if found else None


def serving_context(folder: Path) -> ssl.SSLContext:
    """For who is asked: only devices of this CA are listened to."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, folder)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def asking_context(folder: Path) -> ssl.SSLContext:
    """For who asks; `check` looks at the certificate after the handshake."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, folder)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class Peer(NamedTuple):
    """Who a certificate is of: the device, and how often its name was given away before."""

    name: str
    generation: int


def peer_of(connection: ssl.SSLSocket) -> Peer | None:
    """The device at the other end, by the certificate that TLS has verified."""
    found: Any = connection.getpeercert() or {}
    names = [value for kind, value in found.get("subjectAltName", ()) if kind == "DNS"]
    subject = [value for pairs in found.get("subject", ()) for kind, value in pairs
               if kind == "commonName"]  # fmt: skip
    return _peer(names, subject)


def check(
    connection: ssl.SSLSocket, name: str, folder: Path, now_s: float, generation: int = 0
) -> None:
    """Raise UntrustedError unless the other end is the device `name` of our CA.

    generation   of its certificate, at least: that of before is another's, or a thief's
    """
    der = connection.getpeercert(binary_form=True) or b""
    try:
        peer = _read(der, (folder / CA).read_bytes(), now_s)
    except Exception as error:
        raise UntrustedError(f"what answers as {name} has no certificate of ours") from error
    if peer is None or peer.name != name or peer.generation < generation:
        raise UntrustedError(f"what answers as {name} is another")


class Patience(NamedTuple):
    """How long is waited, whatever comes meanwhile: no byte makes it longer.

    end_s   on `monotonic`
    stop    whether nobody wants it any more
    """

    end_s: float = math.inf
    stop: Callable[[], bool] = lambda: False
    monotonic: Callable[[], float] = time.monotonic

    def within(self, seconds: float) -> "Patience":
        return self._replace(end_s=min(self.end_s, self.monotonic() + seconds))

    def take(self, connection: ssl.SSLSocket) -> None:
        """Let what is read next take what is left; TimeoutError for nothing, LinkError to stop."""
        if self.stop():
            raise LinkError("download was taken back")
        left = self.end_s - self.monotonic()
        if left <= 0:
            raise TimeoutError("its answer takes too long")
        connection.settimeout(min(left, SILENCE_S))


#: As long as a line and a piece may take by themselves.
_BOUNDED = Patience()


class Line:
    """A connection to one neighbour."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection

    def ask(self, wish: Wish, size: int, patience: Patience = _BOUNDED) -> tuple[Word, bytes]:
        """What it says of a piece of `size` bytes; OSError when it says nothing sensible.

        TimeoutError when it does not in time, SlowError when it has said that it has it, LinkError
        when `patience` says to stop.
        """
        for_line = patience.within(SILENCE_S)
        for_line.take(self._connection)
        self._connection.sendall(wish.line())
        line = read_line(self._connection, for_line)
        have = _HAVE.fullmatch(line)
        if have is None:
            return Word(line.decode("ascii", "replace").strip()), b""
        if int(have[1]) != size:
            raise ValueError(f"a piece of {int(have[1])} bytes, {size} are right")
        try:
            return Word.HAVE, self._exactly(size, patience.within(SILENCE_S + size / SLOWEST_BPS))
        except TimeoutError as error:
            raise SlowError(f"a piece of {size} bytes takes too long") from error

    def close(self) -> None:
        self._connection.close()

    def _exactly(self, size: int, patience: Patience) -> bytes:
        data = bytearray()
        while len(data) < size:
            patience.take(self._connection)
            some = self._connection.recv(min(_PIECE, size - len(data)))
            if not some:
                raise ConnectionError("it hung up")
            data += some
        return bytes(data)


def call(
    address: tuple[str, int], name: str, folder: Path, now_s: float, generation: int = 0
) -> Line:
    """Connect to the neighbour `name`; OSError out of reach, UntrustedError another one.

    The handshake has CONNECT_S as a whole: Python's ssl holds all of it against one timeout.
    """
    plain = socket.create_connection(address, CONNECT_S)
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = asking_context(folder).wrap_socket(plain)
        connection.settimeout(SILENCE_S)
        check(connection, name, folder, now_s, generation)
    except BaseException:
        plain.close()
        raise
    return Line(connection)


def read_line(connection: ssl.SSLSocket, patience: Patience | None = None) -> bytes:
    """Up to and with the next newline, LINE bytes at most; OSError when the other end is gone.

    patience   for all of the line; without it each byte has the connection's own timeout
    One byte at a time: what follows the line is not ours to take, and TLS has it in memory.
    """
    line = b""
    while not line.endswith(b"\n") and len(line) < LINE:
        if patience is not None:
            patience.take(connection)
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("it hung up")
        line += byte
    return line


def _context(kind: int, folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(folder / CA)
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    except (OSError, ssl.SSLError) as error:
        raise SettingError(f"{folder / CERTIFICATE}: {error}", "enrol this device again") from error
    return context


def _read(der: bytes, authorities: bytes, now_s: float) -> Peer | None:
    """Whom a certificate is of; None unless it is valid and issued by one of `authorities`.

    Raises whatever cryptography does for what is no certificate, or of an unknown kind.
    """
    leaf = x509.load_der_x509_certificate(der)
    known = x509.load_pem_x509_certificates(authorities)
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    valid = leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc
    if not valid or not is_issued_by(leaf, known):
        return None
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    subject = [str(one.value) for one in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return _peer(found.get_values_for_type(x509.DNSName), subject)


def _peer(names: list[str], subject: list[str]) -> Peer | None:
    """The device by its only DNS name, the generation by its CN: "cam-a.2" is cam-a's third.

    >>> _peer(["cam-a"], ["cam-a.2"]), _peer(["cam-a"], ["cam-a"]), _peer(["cam-a"], ["cam-b"])
    (Peer(name='cam-a', generation=2), Peer(name='cam-a', generation=0), None)
    """
    if len(names) != 1 or len(subject) != 1:
        return None
    name, dot, number = subject[0].partition(".")
    if name != names[0] or (dot and not _GENERATION.fullmatch(number)):
        return None
    return Peer(name, int(number or 0))
