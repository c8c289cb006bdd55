"""The socket on which peers and gateways listen."""

import socket

import pytest

from ports import has_ipv6
from shoal.agent.peers.io.listener import listen


@pytest.mark.parametrize(
    ("host", "reached"),
    [("", ["127.0.0.1", "::1"]), ("::1", ["::1"]), ("127.0.0.1", ["127.0.0.1"])],
)
def test_a_peer_listens_on_the_address_it_was_given_and_without_one_on_all(
    host: str, reached: list[str]
) -> None:
    if "::1" in reached and not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]
        found = []
        for address in ("127.0.0.1", "::1"):
            try:
                socket.create_connection((address, port), 2.0).close()
                found.append(address)
            except OSError:
                continue
    assert found == reached
