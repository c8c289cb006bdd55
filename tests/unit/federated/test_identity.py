"""A signature in a round is of a device of this fleet, or it is nobody's."""

import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from shoal.agent.identity.io.enrol import make_csr
from shoal.controller.fleet.io.ca import Authority
from shoal.errors import DeniedError, UntrustedError
from shoal.federated.identity import LONGEST, check_signature

NOW, DAY = 1_800_000_000.0, 86_400.0
MESSAGE = b"an advert"


class Device:
    """A device of a fleet, by its certificate and key."""

    def __init__(self, authority: Authority, name: str, generation: int = 0) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        issued = authority.issue_device(make_csr(self.key, name), name, NOW, generation)
        leaf = x509.load_pem_x509_certificates(issued.certificate.encode())[0]
        self.certificate = leaf.public_bytes(Encoding.DER)

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message, ec.ECDSA(hashes.SHA256()))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "pki", names=["localhost"], now=NOW)


def check(
    authority: Authority, device: Device, name: str = "cam-a", message: bytes = MESSAGE,
    now_s: float = NOW,
) -> None:  # fmt: skip
    known = x509.load_pem_x509_certificates(authority.bundle.encode())
    check_signature(device.certificate, known, name, device.sign(MESSAGE), message, now_s)


@pytest.mark.parametrize("generation", [0, 2])
def test_a_device_is_known_by_its_name_whatever_generation_it_has(
    authority: Authority, generation: int
) -> None:
    check(authority, Device(authority, "cam-a", generation))


def test_a_certificate_of_an_unknown_version_is_refused_by_name(authority: Authority) -> None:
    device, known = Device(authority, "cam-a"), bytes.fromhex("a003020102")
    device.certificate = device.certificate.replace(known, bytes.fromhex("a003020109"), 1)
    with pytest.raises(UntrustedError, match="certificate of cam-a cannot be read"):
        check(authority, device)
    pem = ssl.DER_cert_to_PEM_cert(device.certificate)
    with pytest.raises(DeniedError, match="not a certificate in PEM"):
        authority.prove(pem, device.sign(MESSAGE), MESSAGE, NOW)


def test_another_message_or_another_device_is_not_what_was_signed(authority: Authority) -> None:
    device = Device(authority, "cam-a")
    with pytest.raises(UntrustedError, match="not signed by cam-a"):
        check(authority, device, message=b"another")
    with pytest.raises(UntrustedError, match="another device's"):
        check(authority, device, "cam-b")


@pytest.mark.parametrize("now_s", [NOW - 2 * DAY, NOW + 91 * DAY])
def test_a_certificate_holds_only_while_it_is_valid(authority: Authority, now_s: float) -> None:
    with pytest.raises(UntrustedError, match="not valid now"):
        check(authority, Device(authority, "cam-a"), now_s=now_s)


def test_another_fleets_device_is_a_stranger(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", names=["localhost"], now=NOW)
    with pytest.raises(UntrustedError, match="not of this fleet"):
        check(authority, Device(other, "cam-a"))


def test_the_brokers_own_certificate_is_no_devices(authority: Authority) -> None:
    server = Device(authority, "cam-a")
    pem = (authority.folder / "server.crt").read_bytes()
    server.certificate = x509.load_pem_x509_certificates(pem)[0].public_bytes(Encoding.DER)
    with pytest.raises(UntrustedError, match="not of this fleet"):
        check(authority, server, "localhost")


@pytest.mark.parametrize("garbage", [b"", b"no certificate", b"x" * (LONGEST + 1)])
def test_what_is_no_certificate_is_refused(authority: Authority, garbage: bytes) -> None:
    device = Device(authority, "cam-a")
    device.certificate = garbage
    with pytest.raises(UntrustedError):
        check(authority, device)
