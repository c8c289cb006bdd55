"""How neighbours speak: TLS with the devices' own certificates, a line asked, a line answered.

    asked      shoal-peer/1 <sha256 of the file> <number of the piece>\\n
    answered   have <bytes>\\n and the bytes, or one of the other words of peers.Word\\n

Both ends are devices of one CA. A device's certificate is a client's, so who asks verifies the
other one's certificate itself: issued by the CA, valid, and of the device that was to be asked.
"""

import datetime
import re
import socket
import ssl
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from shoal.agent.io.folder import CA, CERTIFICATE, KEY
from shoal.agent.peers import Word
from shoal.errors import SettingError, UntrustedError

#: Longest piece that is shared; longest line; seconds to connect, and without a word.
LONGEST, LINE, CONNECT_S, SILENCE_S = 4 << 20, 128, 2.0, 5.0
_ASKED = re.compile(rb"shoal-peer/1 ([0-9a-f]{64}) ([0-9]{1,4})\n")
_HAVE = re.compile(rb"have ([0-9]{1,8})\n")
_PIECE = 1 << 16


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


def name_of(connection: ssl.SSLSocket) -> str:
    """The device at the other end, by the certificate that TLS has verified; "" for none."""
    found: Any = connection.getpeercert() or {}
    names = [value for kind, value in found.get("subjectAltName", ()) if kind == "DNS"]
    return str(names[0]) if len(names) == 1 else ""


def check(connection: ssl.SSLSocket, name: str, folder: Path, now_s: float) -> None:
    """Raise UntrustedError unless the other end is the device `name` of our CA."""
    der = connection.getpeercert(binary_form=True) or b""
    try:
        leaf = x509.load_der_x509_certificate(der)
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.DNSName)
        known = x509.load_pem_x509_certificates((folder / CA).read_bytes())
    except (ValueError, x509.ExtensionNotFound, OSError) as error:
        raise UntrustedError(f"what answers as {name} has no certificate of ours") from error
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    valid = leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc
    if names != [name] or not valid or not any(_issued(leaf, issuer) for issuer in known):
        raise UntrustedError(f"what answers as {name} is another")


class Line:
    """A connection to one neighbour."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection

    def ask(self, wish: Wish, size: int) -> tuple[Word, bytes]:
        """What it says of a piece of `size` bytes; OSError when it says nothing sensible."""
        self._connection.sendall(wish.line())
        line = read_line(self._connection)
        have = _HAVE.fullmatch(line)
        if have is None:
            return Word(line.decode("ascii", "replace").strip()), b""
        if int(have[1]) != size:
            raise ValueError(f"a piece of {int(have[1])} bytes, {size} are right")
        return Word.HAVE, self._exactly(size)

    def close(self) -> None:
        self._connection.close()

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            some = self._connection.recv(min(_PIECE, size - len(data)))
            if not some:
                raise ConnectionError("it hung up")
            data += some
        return bytes(data)


def call(address: tuple[str, int], name: str, folder: Path, now_s: float) -> Line:
    """Connect to the neighbour `name`; OSError out of reach, UntrustedError another one."""
    plain = socket.create_connection(address, CONNECT_S)
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = asking_context(folder).wrap_socket(plain)
        connection.settimeout(SILENCE_S)
        check(connection, name, folder, now_s)
    except BaseException:
        plain.close()
        raise
    return Line(connection)


def read_line(connection: ssl.SSLSocket) -> bytes:
    """Up to and with the next newline, LINE bytes at most; OSError when the other end is gone.

    One byte at a time: what follows the line is not ours to take, and TLS has it in memory.
    """
    line = b""
    while not line.endswith(b"\n") and len(line) < LINE:
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


def _issued(leaf: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
