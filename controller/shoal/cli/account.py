"""The signed-in account: controller URL, token and pinned CA, on disk.

~/.config/shoal/ (XDG_CONFIG_HOME honoured): account.json and ca.pem, mode 0600 in a folder 0700.
SHOAL_URL, SHOAL_TOKEN and SHOAL_CA override these, each on its own.
"""

import os
import ssl
from collections.abc import Mapping
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from shoal.enrolment import fingerprint
from shoal.errors import DeniedError, SettingError

SIGN_IN = "sign in with: shoal login https://HOST:8443"


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Credentials for one controller.

    token    "shoal_<id>_<secret>"
    ca       PEM bundle that must have signed the controller's certificate; "" for the system's
    """

    url: str
    token: str = ""
    ca: str = ""
    user: str = ""
    role: str = ""


def folder(environment: Mapping[str, str]) -> Path:
    """Folder of the CLI's files."""
    base = environment.get("XDG_CONFIG_HOME") or str(Path(environment.get("HOME", "~")) / ".config")
    return Path(base).expanduser() / "shoal"


def load(environment: Mapping[str, str]) -> Account:
    """The account to use; DeniedError when not signed in."""
    stored = _stored(folder(environment))
    url = environment.get("SHOAL_URL") or (stored.url if stored else "")
    if not url:
        raise DeniedError("not signed in", SIGN_IN)
    kept = stored if stored and stored.url == url else Account(url=url)
    ca_path = environment.get("SHOAL_CA", "")
    ca = _read(Path(ca_path)) if ca_path else kept.ca
    return msgspec.structs.replace(kept, token=environment.get("SHOAL_TOKEN") or kept.token, ca=ca)


def save(account: Account, environment: Mapping[str, str]) -> Path:
    """Save `account` for the next commands; returns the folder."""
    where = folder(environment)
    try:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(where / "account.json", msgspec.json.format(msgspec.json.encode(account)))
        _write(where / "ca.pem", account.ca.encode())
    except OSError as error:
        raise SettingError(f"cannot keep the account in {where}: {error}") from error
    return where


def root_fingerprint(bundle: str) -> str:
    """SHA-256, hex, of the root certificate in a PEM `bundle`, as `init` prints it."""
    try:
        certificates = x509.load_pem_x509_certificates(bundle.encode())
    except ValueError as error:
        raise SettingError("the controller's /ca.pem is not a certificate") from error
    roots = [c for c in certificates if c.issuer == c.subject] or certificates[-1:]
    return fingerprint(roots[0].public_bytes(Encoding.DER))


def trust(account: Account) -> ssl.SSLContext:
    """TLS context that trusts only the account's CA, or the system's CAs when it has none."""
    try:
        return ssl.create_default_context(cadata=account.ca or None)
    except ssl.SSLError as error:
        raise SettingError("the stored CA cannot be read", SIGN_IN) from error


def _stored(where: Path) -> Account | None:
    path = where / "account.json"
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Account)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise SettingError(f"{path}: {error}", SIGN_IN) from error


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise SettingError(f"SHOAL_CA: {error}") from error


def _write(path: Path, data: bytes) -> None:
    """Write atomically, with mode 0600 from the start."""
    fresh = path.with_suffix(".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    fresh.replace(path)
