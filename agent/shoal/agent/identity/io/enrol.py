"""Enrolment: exchange a join token for a certificate. The private key never leaves the folder.

The token contains the fingerprint of the root CA: /ca.pem is fetched without verification and
accepted only if it matches; everything after that is verified against it. Enrolling again with the
same name is safe: the key is kept.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shoal.address import parse_url
from shoal.agent.host.io.config import (
    Controller,
    Device,
    Settings,
    Source,
    dump,
    is_written,
    load,
)
from shoal.agent.host.io.folder import CA, CERTIFICATE, DIRECTOR, KEY, ROOT, SETTINGS
from shoal.connection_errors import PORTAL, explain, portal_fault
from shoal.durable import write_durable
from shoal.enrolment import LIMIT, EnrolRequest, EnrolResponse, fingerprint, parse_token
from shoal.errors import DeniedError, LinkError, SettingError, UntrustedError
from shoal.issuer import is_issued_by
from shoal.topics import check_device
from shoal.validation_errors import decode_errors_as

if TYPE_CHECKING:
    from urllib3 import PoolManager

_DER = serialization.Encoding.DER
_TIMEOUT_S = 20.0
_T = TypeVar("_T")


class EnrolOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `shoal-agent enroll`."""

    controller: str
    token: str
    name: str
    ring: str = "stable"
    profile: str = ""
    line: str = ""
    labels: dict[str, str] = {}
    source: Source | None = None


def enrol(
    folder: Path,
    options: EnrolOptions,
    facts: dict[str, Any],
    raise_floor: Callable[[int], None] = lambda floor: None,
) -> Settings:
    """Enrol, and write agent.toml, the key, the certificates and the trusted roots into `folder`.

    raise_floor   given the version below which every assignment was a predecessor's; called before
                  the folder counts as enrolled

    Raises SettingError for invalid options or a folder of another device, UntrustedError when the
    controller is not the one in the token, DeniedError when it refuses, LinkError out of reach.
    """
    check_device(options.name)
    secret = parse_token(options.token)
    server = "/".join(options.controller.split("/")[:3])  # a path before /api is left to a proxy
    parse_url(server, {"https": 443}, "controller")
    _check_folder(folder, options.name)
    url = options.controller.rstrip("/")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca = pinned(_fetch_ca(url), secret.ca_sha256)
    write_durable(folder / CA, ca)
    key = _key(folder / KEY)
    body = EnrolRequest(
        token=options.token.strip(),
        csr=make_csr(key, options.name),
        device=options.name,
        ring=options.ring,
        profile=options.profile,
        line=options.line,
        labels=options.labels,
        facts=facts,
    )
    response = _enrol(url, folder / CA, body)
    settings = _settings(url, options, response)
    raise_floor(response.floor)
    _save(folder, response, secret.ca_sha256, settings)
    return settings


def _check_folder(folder: Path, name: str) -> None:
    """SettingError when `folder` has another device's key, models and messages."""
    existing = load(folder).device.name if is_written(folder) else ""
    if existing not in ("", name):
        raise SettingError(
            f"{folder} is the device {existing!r} already",
            f"choose a folder of its own for {name!r} (--folder), or move this one away first",
        )


def pinned(bundle: bytes, sha256: str) -> bytes:
    """The certificates of `bundle` that chain to the root with fingerprint `sha256`, as PEM.

    Raises UntrustedError when that root is not among them.
    """
    try:
        certificates = x509.load_pem_x509_certificates(bundle)
    except ValueError as error:
        raise UntrustedError(f"the controller's ca.pem cannot be read: {error}") from error
    roots = [c for c in certificates if fingerprint(c.public_bytes(_DER)) == sha256]
    if not roots:
        raise UntrustedError(
            "this is not the controller that made the join token: its CA is another",
            "check the address, and that nobody sits in between",
        )
    known = roots[:1]
    for certificate in certificates:
        if certificate not in known and is_issued_by(certificate, known):
            known.append(certificate)
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in known)


def _fetch_ca(url: str) -> bytes:
    """ca.pem, unverified: it is accepted by its fingerprint only."""
    import urllib3

    with urllib3.PoolManager(cert_reqs="CERT_NONE", assert_hostname=False) as pool:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        try:
            return request(pool, "GET", f"{url}/ca.pem")
        except DeniedError as error:
            hint = "is this the controller's address, with the port of its console?"
            raise LinkError(f"{url} has no /ca.pem", hint) from error


def _enrol(url: str, ca: Path, enrolment: EnrolRequest) -> EnrolResponse:
    import urllib3

    with urllib3.PoolManager(ca_certs=str(ca)) as pool:
        body = msgspec.json.encode(enrolment)
        return decoded(request(pool, "POST", f"{url}/api/v1/enrol", body), EnrolResponse)


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """This device's key, generated at the first call; mode 0600."""
    if path.exists():
        return read_key(path)
    new = ec.generate_private_key(ec.SECP256R1())
    write_durable(path, key_pem(new), 0o600)
    return new


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key of an enrolled device; SettingError when it cannot be read."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise SettingError(f"{path}: {error}", "enrol this device again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SettingError(f"{path} is no EC key", "move it away and enrol again")
    return key


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PKCS #8 PEM."""
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def make_csr(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """A certificate request for `key`, PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def _settings(url: str, options: EnrolOptions, response: EnrolResponse) -> Settings:
    return Settings(
        device=Device(
            name=response.device,
            site=response.site,
            line=options.line,
            ring=options.ring,
            profile=response.profile,
            labels=options.labels,
        ),
        controller=Controller(url=url, broker=response.broker, artifacts=response.artifacts),
        source=options.source,
    )


def _save(folder: Path, response: EnrolResponse, ca_sha256: str, settings: Settings) -> None:
    """Write everything durably; agent.toml last, since it marks the folder as enrolled."""
    write_durable(folder / CA, pinned(response.ca.encode(), ca_sha256))
    write_durable(folder / CERTIFICATE, response.certificate.encode(), 0o600)
    write_durable(folder / ROOT, response.root.encode())
    write_durable(folder / DIRECTOR, response.director_root.encode())
    old = load(folder) if is_written(folder) else Settings()
    merged = msgspec.structs.replace(
        old,
        device=settings.device,
        controller=settings.controller,
        source=settings.source or old.source,
    )
    if merged != old:
        write_durable(folder / SETTINGS, dump(merged).encode())


# ------------------------------------------------------------------ requests


def request(pool: "PoolManager", method: str, url: str, body: bytes | None = None) -> bytes:
    """The body of the response. DeniedError when refused, LinkError out of reach."""
    import urllib3

    headers = {"Content-Type": "application/json"} if body else {}
    try:
        response = pool.request(
            method,
            url,
            body=body,
            headers=headers,
            timeout=_TIMEOUT_S,
            retries=False,
            preload_content=False,
        )
        data = response.read(16 * LIMIT + 1)
        response.close()
    except urllib3.exceptions.HTTPError as error:
        why = explain(error, "controller")
        raise LinkError(f"{url}: {why}", "is the controller running there?") from error
    if portal := portal_fault(response.status, response.headers):
        raise LinkError(f"{url}: {portal}", PORTAL)
    if response.status >= 400:
        raise _refusal(url, response.status, data)
    return data


def decoded(data: bytes, kind: type[_T]) -> _T:
    """The controller's response; LinkError when it cannot be read."""
    with decode_errors_as(lambda e: LinkError(f"the controller's response cannot be read: {e}")):
        return msgspec.json.decode(data, type=kind)


def _refusal(url: str, status: int, body: bytes) -> DeniedError | LinkError:
    try:
        problem = msgspec.json.decode(body)
        why = str(problem.get("detail") or problem.get("title"))
    except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError):
        why = f"HTTP {status}"
    kind = DeniedError if status < 500 else LinkError
    return kind(f"{url} refused: {why}")
