"""Secured OPC UA channel: signed and encrypted, with mutually trusted certificates.

OPC UA needs RSA certificates with the application's URI, and each side is configured with the
other's. So the device's own certificate does not fit, and this one is made once
(docs/sources-and-sinks.md). The files are read at every connection: renewal needs no restart.
Source: OPC 10000-4, 6.1; OPC 10000-6, 6.2.
"""

import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cryptography import x509

from shoal.agent.feeds.io.interface import ServerSettings, Touched
from shoal.errors import SettingError

#: Names in agent.toml -> asyncua's classes. SHA-1 policies are insecure and not offered.
POLICIES = {
    "Basic256Sha256": "SecurityPolicyBasic256Sha256",
    "Aes128Sha256RsaOaep": "SecurityPolicyAes128Sha256RsaOaep",
    "Aes256Sha256RsaPss": "SecurityPolicyAes256Sha256RsaPss",
}
_PEM = b"-----BEGIN"


class OpcUaSettings(ServerSettings, frozen=True, kw_only=True):
    """Settings of an OPC UA server. Needs shoal[agent-opcua].

    url                 opc.tcp://host:port/path
    username, password  "" for an anonymous session
    security            "Basic256Sha256", "Aes128Sha256RsaOaep" or "Aes256Sha256RsaPss": signed and
                        encrypted; "" for neither
    certificate, key    with security: this client's, RSA, PEM or DER, relative to the agent's
                        folder
    server_certificate  with security: the server's certificate, the only one that is trusted
    timeout_s           timeout of a request, in seconds
    """

    url: str
    username: str = ""
    password: str = ""
    security: str = ""
    certificate: str = ""
    key: str = ""
    server_certificate: str = ""
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 4.0

    def touches(self) -> Touched:
        """Its certificates and key, read."""
        return Touched(reads=(self.certificate, self.key, self.server_certificate))


def check(settings: OpcUaSettings, where: str) -> None:
    """SettingError for an unknown policy or a missing file; `where` names the settings."""
    if not settings.security:
        return
    if settings.security not in POLICIES:
        raise SettingError(
            f"{where}.security {settings.security!r} is unknown",
            f"it is one of {', '.join(POLICIES)}; the files are settings of their own",
        )
    for name in ("certificate", "key", "server_certificate"):
        if not getattr(settings, name):
            raise SettingError(f"{where}.{name} is missing", "a secured connection needs all three")


async def secure(
    client: Any, settings: OpcUaSettings, folder: Path, now: datetime.datetime
) -> None:
    """Configure asyncua's `client` with `settings`; SettingError for an unusable file.

    folder  that the files are relative to
    """
    from asyncua.crypto import security_policies
    from asyncua.crypto.uacrypto import CertProperties

    def given(name: str) -> Any:
        data = _read(folder / getattr(settings, name))
        return CertProperties(data, "pem" if data.startswith(_PEM) else "der")

    ours, theirs = given("certificate"), given("server_certificate")
    _check_dates(ours.path_or_content, settings.certificate, now)
    _check_dates(theirs.path_or_content, settings.server_certificate, now)
    client.application_uri = application_uri(ours.path_or_content, settings.certificate)
    policy = getattr(security_policies, POLICIES[settings.security])
    try:
        await client.set_security(policy, ours, given("key"), server_certificate=theirs)
    except (ValueError, TypeError) as error:
        raise SettingError(
            f"{settings.key}: {error}", "it is an RSA key without a password"
        ) from error


def application_uri(data: bytes, name: str) -> str:
    """The application URI in a certificate; the server compares the client's with it."""
    try:
        names = _load(data, name).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return names.value.get_values_for_type(x509.UniformResourceIdentifier)[0]
    except (x509.ExtensionNotFound, IndexError) as error:
        raise SettingError(
            f"{name} has no application URI", "make one with subjectAltName=URI:urn:..."
        ) from error


def _check_dates(data: bytes, name: str, now: datetime.datetime) -> None:
    certificate = _load(data, name)
    if now > certificate.not_valid_after_utc:
        raise SettingError(f"{name} expired at {certificate.not_valid_after_utc}", "renew it")
    if now < certificate.not_valid_before_utc:
        raise SettingError(f"{name} is not valid yet", "is this machine's clock right?")


def _load(data: bytes, name: str) -> x509.Certificate:
    try:
        if data.startswith(_PEM):
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except ValueError as error:
        raise SettingError(f"{name} is no certificate", "it is PEM or DER") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingError(f"{path}: {error.strerror}", "put the file there") from error
