"""Protocol between the devices of a site: TLS with their own certificates, one line a request.

    request    shoal-peer/1 <sha256 of the file> <number of the piece>\\n
    response   have <bytes>\\n and the bytes, or another status of policy.PieceStatus\\n

Both ends have a certificate of one CA. They are client certificates, so the client verifies the
server's itself: issued by the CA, valid, and of the device that it meant to connect to.
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
from shoal.agent.peers.policy import PieceStatus
from shoal.errors import LinkError, SettingError, UntrustedError
from shoal.issuer import is_issued_by

#: Longest piece that is sent; longest line; seconds to connect, and for a line.
LONGEST, LINE, CONNECT_S, READ_S = 4 << 20, 128, 2.0, 5.0
#: Bytes a second that a piece must come at, after READ_S.
SLOWEST_BPS = 128 << 10
_REQUEST = re.compile(rb"shoal-peer/1 ([0-9a-f]{64}) ([0-9]{1,4})\n")
_HAVE = re.compile(rb"have ([0-9]{1,8})\n")
_GENERATION = re.compile(r"[1-9][0-9]{0,5}")
_PIECE = 1 << 16


class SlowError(TimeoutError):
    """The peer has the piece, but does not send it in time."""


class PieceRequest(NamedTuple):
    """One piece of one file."""

    sha256: str
    number: int

    def encode(self) -> bytes:
        return f"shoal-peer/1 {self.sha256} {self.number}\n".encode()


def parse_request(line: bytes) -> PieceRequest | None:
    """Parse a request line; None when it is invalid."""
    found = _REQUEST.fullmatch(line)
    return PieceRequest(found[1].decode(), int(found[2])) if found else None


def server_context(folder: Path) -> ssl.SSLContext:
    """TLS of a server: only devices of this CA may connect."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, folder)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(folder: Path) -> ssl.SSLContext:
    """TLS of a client; `check` verifies the certificate after the handshake."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, folder)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class PeerIdentity(NamedTuple):
    """Identity in a certificate: the device, and how often its name was enrolled before."""

    name: str
    generation: int


def identity_of(connection: ssl.SSLSocket) -> PeerIdentity | None:
    """Identity of the other end, from the certificate that TLS has verified."""
    found: Any = connection.getpeercert() or {}
    names = [value for kind, value in found.get("subjectAltName", ()) if kind == "DNS"]
    subject = [value for pairs in found.get("subject", ()) for kind, value in pairs
               if kind == "commonName"]  # fmt: skip
    return _peer(names, subject)


def check(
    connection: ssl.SSLSocket, name: str, folder: Path, now_s: float, generation: int = 0
) -> None:
    """Raise UntrustedError unless the other end is the device `name` of our CA.

    generation   least one of its certificate: an older one may be stolen
    """
    der = connection.getpeercert(binary_form=True) or b""
    try:
        peer = _read(der, (folder / CA).read_bytes(), now_s)
    except Exception as error:
        raise UntrustedError(
            f"the peer at the address of {name} has no certificate of this CA"
        ) from error
    if peer is None or peer.name != name or peer.generation < generation:
        raise UntrustedError(f"the peer at the address of {name} is another device")


class Deadline(NamedTuple):
    """A limit of time for a whole response; received bytes do not extend it.

    end_s   on `monotonic`
    stop    whether the download was cancelled
    """

    end_s: float = math.inf
    stop: Callable[[], bool] = lambda: False
    monotonic: Callable[[], float] = time.monotonic

    def within(self, seconds: float) -> "Deadline":
        return self._replace(end_s=min(self.end_s, self.monotonic() + seconds))

    def apply(self, connection: ssl.SSLSocket) -> None:
        """Limit the next read to the time left; TimeoutError for none, LinkError to stop."""
        if self.stop():
            raise LinkError("download was cancelled")
        left = self.end_s - self.monotonic()
        if left <= 0:
            raise TimeoutError("its response takes too long")
        connection.settimeout(min(left, READ_S))


#: Only the limits of a line and a piece.
_DEFAULT = Deadline()


class PeerConnection:
    """A connection to one peer."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection

    def request(
        self, piece: PieceRequest, size: int, deadline: Deadline = _DEFAULT
    ) -> tuple[PieceStatus, bytes]:
        """Request a piece of `size` bytes; OSError, ValueError for an invalid response.

        TimeoutError without a response in time, SlowError when it has the piece but sends it too
        slowly, LinkError when the deadline's `stop` says so.
        """
        for_line = deadline.within(READ_S)
        for_line.apply(self._connection)
        self._connection.sendall(piece.encode())
        line = read_line(self._connection, for_line)
        have = _HAVE.fullmatch(line)
        if have is None:
            return PieceStatus(line.decode("ascii", "replace").strip()), b""
        if int(have[1]) != size:
            raise ValueError(f"a piece of {int(have[1])} bytes, {size} are right")
        try:
            end = deadline.within(READ_S + size / SLOWEST_BPS)
            return PieceStatus.HAVE, read_exactly(self._connection, size, end)
        except TimeoutError as error:
            raise SlowError(f"a piece of {size} bytes takes too long") from error

    def close(self) -> None:
        self._connection.close()


def connect(
    address: tuple[str, int], name: str, folder: Path, now_s: float, generation: int = 0
) -> PeerConnection:
    """Connect to the peer `name`; OSError when unreachable, UntrustedError for another device.

    The handshake has CONNECT_S as a whole: Python's ssl holds all of it against one timeout.
    """
    plain = socket.create_connection(address, CONNECT_S)
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = client_context(folder).wrap_socket(plain)
        connection.settimeout(READ_S)
        check(connection, name, folder, now_s, generation)
    except BaseException:
        plain.close()
        raise
    return PeerConnection(connection)


def read_line(connection: ssl.SSLSocket, deadline: Deadline | None = None) -> bytes:
    """Read up to the next newline, LINE bytes at most; OSError when the connection is closed.

    deadline   for the whole line; without it each byte has the connection's own timeout
    One byte at a time, which TLS has in memory: the bytes after the line must stay unread.
    """
    line = b""
    while not line.endswith(b"\n") and len(line) < LINE:
        if deadline is not None:
            deadline.apply(connection)
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("connection closed")
        line += byte
    return line


def read_exactly(connection: ssl.SSLSocket, size: int, deadline: Deadline | None = None) -> bytes:
    """Read `size` bytes; OSError when the connection is closed. deadline: as in `read_line`."""
    data = bytearray()
    while len(data) < size:
        if deadline is not None:
            deadline.apply(connection)
        some = connection.recv(min(_PIECE, size - len(data)))
        if not some:
            raise ConnectionError("connection closed")
        data += some
    return bytes(data)


def _context(kind: int, folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(folder / CA)
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    except (OSError, ssl.SSLError) as error:
        raise SettingError(f"{folder / CERTIFICATE}: {error}", "enrol this device again") from error
    return context


def _read(der: bytes, authorities: bytes, now_s: float) -> PeerIdentity | None:
    """Identity in a certificate; None unless it is valid and issued by one of `authorities`.

    Raises what `cryptography` raises for an unreadable certificate.
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


def _peer(names: list[str], subject: list[str]) -> PeerIdentity | None:
    """The device from its only DNS name, the generation from its CN: "cam-a.2" is its third.

    >>> _peer(["cam-a"], ["cam-a.2"]), _peer(["cam-a"], ["cam-a"]), _peer(["cam-a"], ["cam-b"])
    (PeerIdentity(name='cam-a', generation=2), PeerIdentity(name='cam-a', generation=0), None)
    """
    if len(names) != 1 or len(subject) != 1:
        return None
    name, dot, number = subject[0].partition(".")
    if name != names[0] or (dot and not _GENERATION.fullmatch(number)):
        return None
    return PeerIdentity(name, int(number or 0))
