"""HTTP to addresses that people chose: bounded in time and size, and not into the private network.

The host is resolved once and that address is connected to, so that a second answer of a hostile
name server changes nothing; redirects are not followed.
"""

import ipaddress
import socket
from urllib.parse import urlsplit

import httpx

from shoal.errors import DeniedError, LinkError

TIMEOUT_S = 10.0
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_host(host: str, *, private: bool) -> str:
    """One address of `host`. DeniedError for a private one unless `private`; LinkError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise LinkError(f"the name {host:.200} is not found: {error}") from error
    addresses = [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]
    if not private and not all(map(is_public, addresses)):
        raise DeniedError(
            f"{host:.200} is a private address",
            "allow it in controller.toml: [alerts] notify_private = true",
        )
    return str(addresses[0])


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet, and none that stands for a private one.

    >>> [is_public(ipaddress.ip_address(a)) for a in ("9.9.9.9", "10.0.0.1", "::ffff:127.0.0.1")]
    [True, False, False]
    """
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo[1] if address.teredo else None
        inner = address.ipv4_mapped or address.sixtofour or teredo
        if address in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def request(
    method: str, url: str, *, private: bool, body: bytes = b"", headers: dict[str, str]
) -> int:
    """Send one request; the status of the answer, whose body is not read. DeniedError,
    LinkError."""
    host = urlsplit(url).hostname or ""
    address = check_host(host, private=private)
    target = httpx.URL(url).copy_with(host=address)
    named = {**headers, "Host": httpx.URL(url).netloc.decode()}
    try:
        with (
            httpx.Client(timeout=TIMEOUT_S, trust_env=False, follow_redirects=False) as client,
            client.stream(
                method, target, content=body, headers=named, extensions={"sni_hostname": host}
            ) as answer,
        ):
            return answer.status_code
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise LinkError(f"{host}: {type(error).__name__}: {error}") from error
