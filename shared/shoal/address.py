"""Addresses of servers as text: host:port and URLs, with IPv6 addresses in brackets. Pure.

Everything that builds or parses one uses this module: an IPv6 address contains the colon that
separates the port. Source: RFC 3986, section 3.2; RFC 6874 for zones ("fe80::1%25eth0").
"""

import ipaddress
import urllib.parse
from collections.abc import Mapping
from typing import NamedTuple

from shoal.errors import SettingError


class Address(NamedTuple):
    """host is a name or an address without brackets; port is 1 to 65535."""

    host: str
    port: int

    def __str__(self) -> str:
        return host_port(self.host, self.port)


class Url(NamedTuple):
    """A URL that names a server and nothing else."""

    scheme: str
    address: Address


def host_port(host: str, port: int) -> str:
    """Host and port as text.

    >>> host_port("10.0.0.7", 80), host_port("fd00::7", 80)
    ('10.0.0.7:80', '[fd00::7]:80')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url_of(scheme: str, host: str, port: int) -> str:
    """URL of a server.

    >>> url_of("mqtts", "fe80::1%eth0", 8883)
    'mqtts://[fe80::1%25eth0]:8883'
    """
    return f"{scheme}://{host_port(host.replace('%', '%25'), port)}"


def parse_url(url: str, ports: Mapping[str, int], what: str) -> Url:
    """Scheme, host and port of SCHEME://HOST[:PORT]; SettingError for any other text.

    ports   allowed schemes, with the port that each has without one
    what    what it is the address of, for the error

    >>> parse_url("mqtts://[fd00::7]", {"mqtts": 8883}, "broker").address
    Address(host='fd00::7', port=8883)
    """
    hint = f"write {next(iter(ports))}://HOST:PORT"
    try:
        parts = urllib.parse.urlsplit(url.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise SettingError(f"{what} {url!r}: {error}", _with_brackets(url, hint)) from error
    if parts.scheme not in ports or not host or parts.username is not None or port == 0:
        raise SettingError(f"{what} {url!r} is not an address", _with_brackets(url, hint))
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise SettingError(f"{what} {url!r} has more than an address", hint)
    return Url(parts.scheme, Address(urllib.parse.unquote(host), port or ports[parts.scheme]))


def parse_host_port(text: str) -> Address | None:
    """Parse "host:port"; None if it is no address.

    >>> parse_host_port("10.0.0.7:8455"), parse_host_port("fd00::7:8455")
    (Address(host='10.0.0.7', port=8455), None)
    """
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65_536):
        return None
    if bracketed != (":" in host) or not _is_host(host, bracketed):
        return None
    return Address(host, int(port))


def is_ipv6(host: str) -> bool:
    """Whether it is an IPv6 address, rather than a name or an IPv4 address."""
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _is_host(host: str, bracketed: bool) -> bool:
    if bracketed:
        return is_ipv6(host)
    return 0 < len(host) <= 253 and host.isascii() and all(c.isalnum() or c in ".-" for c in host)


def _with_brackets(url: str, hint: str) -> str:
    """The hint, with the brackets that an IPv6 address lacks."""
    if url.count(":") > 2 and "[" not in url:
        return f"{hint}, an IPv6 address in brackets: {hint[6:].partition('://')[0]}://[::1]:PORT"
    return hint
