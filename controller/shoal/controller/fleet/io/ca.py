"""Device CA: a root that may be kept offline, an intermediate that signs, and its certificates.

ECDSA P-256 throughout: nats-server, Mosquitto, OpenSSL and Go all support it, and a Pi signs
with it in under a millisecond. Files, PEM, under ``pki/`` of the controller's folder:

    root.crt root.key                 20 years; the key may be moved away after ``init``
    intermediate.crt intermediate.key 5 years; signs everything below
    server.crt server.key             chain for broker, API and artifact server
    controller.crt controller.key     client certificate of the controller at the broker
    ca.pem                            root and intermediate: the trust anchors

Source: RFC 5280; DESIGN section 5, "device CA".
"""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shoal.controller.fleet.certificates import Issued, Proven, common_name
from shoal.controller.fleet.io.proof_of_possession import (
    PublicKey,
    key_sha256,
    prove,
    translated,
)
from shoal.controller.host.io.files import private_folder, write_durable
from shoal.durable import SECRET
from shoal.enrolment import fingerprint
from shoal.errors import SettingError

ORGANISATION = "shoal"
CONTROLLER = "controller"
DEVICE_DAYS, OWN_DAYS, INTERMEDIATE_DAYS, ROOT_DAYS = 90, 365, 5 * 365, 20 * 365
CSR_LIMIT = 16_384
_SKEW = datetime.timedelta(hours=1)  # certificates are valid for clocks that are a little behind
_CLIENT, _SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


class Authority:
    """Signs certificates with the intermediate key. Build it with `create` or `open`."""

    def __init__(
        self,
        folder: Path,
        root: x509.Certificate,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
    ) -> None:
        self.folder, self._root, self._certificate, self._key = folder, root, certificate, key

    @classmethod
    def create(cls, folder: Path, *, names: Sequence[str], now: float) -> "Authority":
        """Create `folder` (``pki/``) with root, intermediate, server, controller certificates."""
        private_folder(folder)
        root_key, key = _new_key(), _new_key()
        root = _authority_certificate("Shoal root CA", root_key.public_key(), None, root_key, now)
        certificate = _authority_certificate(
            "Shoal device CA", key.public_key(), root, root_key, now
        )
        _save_key(folder / "root.key", root_key)
        _save_key(folder / "intermediate.key", key)
        write_durable(folder / "root.crt", _pem(root))
        write_durable(folder / "intermediate.crt", _pem(certificate))
        write_durable(folder / "ca.pem", _pem(root) + _pem(certificate))
        authority = cls(folder, root, certificate, key)
        authority.issue_server(names, now)
        authority.issue_controller(now)
        return authority

    @classmethod
    def open(cls, folder: Path) -> "Authority":
        """The authority in `folder`; SettingError names the file that is missing or damaged."""
        root = load_certificate(folder / "root.crt")
        certificate = load_certificate(folder / "intermediate.crt")
        return cls(folder, root, certificate, _load_key(folder / "intermediate.key"))

    @property
    def bundle(self) -> str:
        """PEM of root and intermediate: the trust anchors of devices and browsers."""
        return (_pem(self._root) + _pem(self._certificate)).decode()

    @property
    def root_fingerprint(self) -> str:
        """SHA-256 of the root's DER bytes, hex: what a join token pins."""
        return fingerprint(self._root.public_bytes(serialization.Encoding.DER))

    def issue_device(self, csr: str, device: str, now: float, generation: int = 0) -> Issued:
        """Issue a certificate for `device` with the key in `csr`, valid 90 days.

        Its CN includes the `generation` (fleet.certificates), its DNS name does not. Other fields
        of the request are ignored. Raises SettingError for an invalid name or CSR.
        """
        name = common_name(device, generation)
        public = read_csr(csr)
        names = [x509.DNSName(device)]
        certificate = self._sign(name, public, names, _CLIENT, DEVICE_DAYS, now)
        return Issued(
            self._chain(certificate).decode(),
            format(certificate.serial_number, "x"),
            certificate.not_valid_after_utc.timestamp(),
            key_sha256(public),
        )

    def prove(self, certificate: str, proof: bytes, message: bytes, now: float | None) -> Proven:
        """Verify `proof`, the signature by the certificate's key over `message`; its device.

        now   Unix seconds; None skips the expiry check, for callers with a rule of their own

        Raises DeniedError for a certificate that is expired, of another CA or not a device's, and
        for a proof by another key.
        """
        return prove(self._certificate, certificate, proof, message, now)

    def sign_as_controller(self, message: bytes) -> bytes:
        """Signature by the key of `controller_chain`: ECDSA over SHA-256, DER."""
        key = _load_key(self.folder / f"{CONTROLLER}.key")
        return key.sign(message, ec.ECDSA(hashes.SHA256()))

    @property
    def controller_chain(self) -> str:
        """PEM of the controller's client certificate and of its issuer."""
        return (self.folder / f"{CONTROLLER}.crt").read_text()

    def issue_server(self, names: Sequence[str], now: float) -> None:
        """Write server.crt and server.key for these DNS names and addresses."""
        if not names:
            raise SettingError("no name for the controller's certificate", "give --name HOST")
        key = _new_key()
        alternative = [_general_name(name) for name in names]
        public = key.public_key()
        self._store(
            "server", key, self._sign(names[0], public, alternative, _SERVER, OWN_DAYS, now)
        )

    def issue_controller(self, now: float) -> None:
        """Write controller.crt and controller.key: the controller as a client of the broker."""
        key = _new_key()
        names = [x509.DNSName(CONTROLLER)]
        made = self._sign(CONTROLLER, key.public_key(), names, _CLIENT, OWN_DAYS, now)
        self._store(CONTROLLER, key, made)

    def renew_own(self, names: Sequence[str], now: float) -> list[str]:
        """Renew server and controller certificates past two thirds of their life, and the server's
        when `names` changed; return which."""
        renewed = []
        server = load_certificate(self.folder / "server.crt")
        if _is_old(server, now) or set(_names_of(server)) != set(names):
            self.issue_server(names, now)
            renewed.append("server")
        if _is_old(load_certificate(self.folder / "controller.crt"), now):
            self.issue_controller(now)
            renewed.append(CONTROLLER)
        return renewed

    def _store(self, name: str, key: ec.EllipticCurvePrivateKey, made: x509.Certificate) -> None:
        _save_key(self.folder / f"{name}.key", key)
        write_durable(self.folder / f"{name}.crt", self._chain(made))

    def _chain(self, certificate: x509.Certificate) -> bytes:
        return _pem(certificate) + _pem(self._certificate)

    def _sign(
        self,
        common_name: str,
        public: PublicKey,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        days: int,
        now: float,
    ) -> x509.Certificate:
        start = _instant(now)
        end = min(start + datetime.timedelta(days=days), self._certificate.not_valid_after_utc)
        issuer_key = self._certificate.public_key()
        if not isinstance(issuer_key, ec.EllipticCurvePublicKey):
            raise SettingError("intermediate.crt is not an ECDSA certificate")
        return (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - _SKEW)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )


def read_csr(pem: str) -> PublicKey:
    """Verify a certificate request, which is signed by its own key, and return this public key.

    Raises SettingError when it is oversized, unreadable, wrongly signed or has a weak key.
    """
    if len(pem) > CSR_LIMIT:
        raise SettingError(f"CSR of {len(pem)} characters, {CSR_LIMIT} allowed")
    with translated(SettingError("CSR is not a readable PEM certificate request")):
        request = x509.load_pem_x509_csr(pem.encode())
        valid, public = request.is_signature_valid, request.public_key()
    if not valid:
        raise SettingError("CSR is not signed by its own key")
    return _check_key(public)


def load_certificate(path: Path) -> x509.Certificate:
    """First certificate of a PEM file; SettingError when there is none."""
    data = _read(path, "run: shoal-controller init")
    with translated(SettingError(f"{path} is not a PEM certificate")):
        return x509.load_pem_x509_certificate(data)


def _read(path: Path, hint: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise SettingError(f"no {path}", hint) from error


def _check_key(public: object) -> PublicKey:
    if isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name in (
        "secp256r1",
        "secp384r1",
    ):
        return public
    if isinstance(public, rsa.RSAPublicKey) and 2048 <= public.key_size <= 4096:
        return public
    if isinstance(public, ed25519.Ed25519PublicKey):
        return public
    raise SettingError("CSR has an unsupported kind of key", "use ECDSA P-256, or RSA of 2048 bits")


def _authority_certificate(
    common_name: str,
    public: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: float,
) -> x509.Certificate:
    start = _instant(now)
    days = ROOT_DAYS if issuer is None else INTERMEDIATE_DAYS
    constraints = x509.BasicConstraints(ca=True, path_length=1 if issuer is None else 0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .issuer_name(_name(common_name) if issuer is None else issuer.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _SKEW)
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(constraints, critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    return builder.sign(issuer_key, hashes.SHA256())


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    """O, then CN: written most specific first (RFC 2253), that is ``CN=<device>,O=shoal``."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),
        ]
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise SettingError(f"{name!r} is neither a host name nor an address") from error


def _names_of(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = found.get_values_for_type(x509.IPAddress)
    return [*found.get_values_for_type(x509.DNSName), *map(str, addresses)]


def _is_old(certificate: x509.Certificate, now: float) -> bool:
    begin = certificate.not_valid_before_utc.timestamp()
    end = certificate.not_valid_after_utc.timestamp()
    return now > begin + (end - begin) * 2 / 3


def _instant(now: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(now), datetime.UTC)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _save_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    data = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_durable(path, data, SECRET)


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    data = _read(path, "the device CA cannot sign without it")
    with translated(SettingError(f"{path} is not a PEM private key")):
        key = serialization.load_pem_private_key(data, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SettingError(f"{path} is not an ECDSA key")
    return key
