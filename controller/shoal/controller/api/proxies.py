"""Reverse proxies and names: whose forwarding headers are believed, and which Host is answered.

X-Forwarded-For, -Host and -Proto are read from addresses of `[network] trusted_proxies` alone:
anybody else could choose the address that the audit log and the back-off of wrong passwords see. A
request for another host name than the controller's is refused: a page of another site, whose name
was pointed at this controller, would otherwise be of the same origin.
"""

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509

from shoal.controller.host.settings import Network
from shoal.errors import SettingError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PROTO")
Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
WsgiApp = Callable[[dict[str, Any], Any], Iterable[bytes]]


class ForwardedHeaders:
    """WSGI middleware: the client's address, host and scheme as trusted proxies give them."""

    def __init__(self, app: WsgiApp, proxies: Sequence[str]) -> None:
        self._app, self._proxies = app, _networks(proxies)

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        forwarded = {name: environ.pop(name, "") for name in _FORWARDED}
        if _is_in(environ.get("REMOTE_ADDR", ""), self._proxies):
            chain, host, proto = (forwarded[name] for name in _FORWARDED)
            if client := _client(chain, self._proxies):
                environ["REMOTE_ADDR"] = client
            if host:
                environ["HTTP_HOST"] = _last(host)
            if _last(proto) in ("http", "https"):
                environ["wsgi.url_scheme"] = _last(proto)
        return self._app(environ, start)


def hosts_of(network: Network) -> frozenset[str]:
    """Host names that are answered: `names`, `hosts`, those of `tls_certificate`, and loopback."""
    names = {*network.names, *network.hosts, *LOOPBACK}
    if network.tls_certificate:
        names |= _names_in(Path(network.tls_certificate))
    return frozenset(name.lower() for name in names)


def is_known(host: str, known: frozenset[str]) -> bool:
    """Whether a Host header names this controller. A name "*.example.org" is for one level.

    >>> is_known("shoal.example.org:8443", frozenset({"*.example.org"}))
    True
    >>> is_known("[::1]:8443", frozenset({"::1"})), is_known("evil.example", frozenset({"::1"}))
    (True, False)
    """
    name = host.lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    name = name.rstrip(".")
    return bool({name, f"*.{name.partition('.')[2]}"} & known)


def _client(chain: str, proxies: Networks) -> str:
    """The last address that is no trusted proxy: what stands before it may be invented."""
    for address in reversed([part.strip() for part in chain.split(",")]):
        if not _is_address(address):
            return ""
        if not _is_in(address, proxies):
            return address
    return ""


def _networks(proxies: Sequence[str]) -> Networks:
    try:
        return [ipaddress.ip_network(proxy) for proxy in proxies]
    except ValueError as error:
        raise SettingError(
            f"[network] trusted_proxies: {error}", 'write addresses, such as ["10.0.0.7"]'
        ) from error


def _is_in(address: str, networks: Networks) -> bool:
    return _is_address(address) and any(ipaddress.ip_address(address) in n for n in networks)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _last(value: str) -> str:
    return value.rpartition(",")[2].strip()


def _names_in(path: Path) -> set[str]:
    """DNS names and addresses of a certificate; none if it cannot be read: serving says so."""
    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, IndexError, x509.ExtensionNotFound):
        return set()
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    return {*names.get_values_for_type(x509.DNSName), *addresses}
