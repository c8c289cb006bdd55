"""The device CA: what it signs, what it refuses, and when its own certificates are renewed."""

import datetime
import ssl
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shoal.controller.fleet.io.ca import Authority, load_certificate
from shoal.errors import SettingError

NOW = 1_800_000_000.0
DAY_S = 86_400


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    folder = tmp_path_factory.mktemp("ca") / "pki"
    return Authority.create(folder, names=["shoal.example", "127.0.0.1"], now=NOW)


def request(key, common_name: str = "any-name") -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


def issued(authority: Authority, csr: str, device: str = "cam-a") -> x509.Certificate:
    return x509.load_pem_x509_certificate(
        authority.issue_device(csr, device, NOW).certificate.encode()
    )


def test_a_device_certificate_names_the_device_whatever_the_request_names(authority):
    made = issued(authority, request(ec.generate_private_key(ec.SECP256R1()), "controller"))
    assert made.subject.rfc4514_string() == "CN=cam-a,O=shoal"
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["cam-a"]
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_device_certificate_is_valid_for_ninety_days_and_never_longer_than_its_issuer(authority):
    csr = request(ec.generate_private_key(ec.SECP256R1()))
    made = authority.issue_device(csr, "cam-a", NOW)
    assert made.expires_s == NOW + 90 * DAY_S
    late = authority.issue_device(csr, "cam-a", NOW + 5 * 365 * DAY_S - 10 * DAY_S)
    assert late.expires_s == NOW + 5 * 365 * DAY_S


def test_openssl_accepts_every_certificate_for_its_purpose_and_no_other(authority, tmp_path):
    device = tmp_path / "device.crt"
    csr = request(ec.generate_private_key(ec.SECP256R1()))
    device.write_text(authority.issue_device(csr, "cam-a", NOW).certificate)
    folder = authority.folder
    assert verifies(folder, folder / "server.crt", "sslserver")
    assert verifies(folder, folder / "controller.crt", "sslclient")
    assert verifies(folder, device, "sslclient")
    assert not verifies(folder, device, "sslserver")


def verifies(pki: Path, certificate: Path, purpose: str) -> bool:
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-attime", str(int(NOW))]
    found = subprocess.run([*command, "-CAfile", pki / "ca.pem", certificate], capture_output=True)
    return found.returncode == 0


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65_537, 2048),
    ],
    ids=["p256", "p384", "ed25519", "rsa2048"],
)
def test_keys_that_a_secure_element_may_have_are_accepted(authority, key):
    assert issued(authority, request(key)).public_key() == key.public_key()


def tampered(csr: str) -> str:
    """The same request over another key: its signature no longer fits."""
    other = request(ec.generate_private_key(ec.SECP256R1()))
    mine, theirs = (
        bytearray(x509.load_pem_x509_csr(text.encode()).public_bytes(serialization.Encoding.DER))
        for text in (csr, other)
    )
    mine[-8:] = theirs[-8:]
    lines = ssl.DER_cert_to_PEM_cert(bytes(mine))
    return lines.replace("CERTIFICATE", "CERTIFICATE REQUEST")


@pytest.mark.parametrize(
    "csr",
    [
        "",
        "not PEM at all",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        "x" * 20_000,
        tampered(request(ec.generate_private_key(ec.SECP256R1()))),
        request(ec.generate_private_key(ec.SECP521R1())),
        request(rsa.generate_private_key(65_537, 1024)),
    ],
    ids=["empty", "text", "cut", "oversized", "tampered", "curve", "weak"],
)
def test_a_bad_request_is_refused_with_an_error(authority, csr):
    with pytest.raises(SettingError, match="CSR"):
        authority.issue_device(csr, "cam-a", NOW)


@pytest.mark.parametrize("name", ["controller", "fleet", "Cam", "a.b", "a/b", "+", "", "a" * 64])
def test_a_name_that_no_device_may_have_is_never_signed(authority, name):
    with pytest.raises(SettingError, match="device name"):
        authority.issue_device(request(ec.generate_private_key(ec.SECP256R1())), name, NOW)


def test_keys_are_readable_by_their_owner_alone(authority):
    assert stat.S_IMODE(authority.folder.stat().st_mode) == 0o700
    keys = list(authority.folder.glob("*.key"))
    assert len(keys) == 4
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_with_the_root_key_moved_away_devices_can_still_be_signed(tmp_path):
    folder = tmp_path / "pki"
    made = Authority.create(folder, names=["localhost"], now=NOW)
    (folder / "root.key").rename(tmp_path / "safe")
    again = Authority.open(folder)
    assert again.root_fingerprint == made.root_fingerprint
    assert issued(again, request(ec.generate_private_key(ec.SECP256R1())))


def test_own_certificates_are_renewed_at_two_thirds_of_their_life_or_for_other_names(tmp_path):
    folder, names = tmp_path / "pki", ["localhost", "127.0.0.1"]
    made = Authority.create(folder, names=names, now=NOW)
    assert made.renew_own(names, NOW + 240 * DAY_S) == []
    assert made.renew_own([*names, "shoal.example"], NOW + DAY_S) == ["server"]
    assert made.renew_own([*names, "shoal.example"], NOW + 250 * DAY_S) == ["server", "controller"]
    end = load_certificate(folder / "server.crt").not_valid_after_utc
    assert end == datetime.datetime.fromtimestamp(NOW + (250 + 365) * DAY_S, datetime.UTC)


@pytest.mark.parametrize("name", ["root.crt", "intermediate.crt", "intermediate.key"])
def test_a_missing_or_damaged_file_is_named(tmp_path, name):
    folder = tmp_path / "pki"
    Authority.create(folder, names=["localhost"], now=NOW)
    (folder / name).write_text("damaged")
    with pytest.raises(SettingError, match=name):
        Authority.open(folder)
    (folder / name).unlink()
    with pytest.raises(SettingError, match=name):
        Authority.open(folder)
