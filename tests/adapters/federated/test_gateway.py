"""Devices hand their updates to their site's gateway: real certificates, sockets and files."""

import contextlib
import hashlib
import socket
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import UNSET

from ports import free_port
from real_agents import enrol
from shoal.agent.federated.io import gateway
from shoal.agent.federated.io.gateway import SiteUpdateServer, hand_over
from shoal.agent.federated.io.sandbox import rounds_folder
from shoal.agent.host.io.config import GatewaySettings
from shoal.agent.peers.io.protocol import client_context
from shoal.errors import LinkError, UntrustedError
from shoal.federated import site_sum
from shoal.federated.compression import compress
from shoal.federated.messages import Contribution, GatewayRoute
from shoal.federated.noise import Draws
from shoal.federated.plan import Compression
from shoal.federated.sums import ExactSum

SIZE, ATTEMPT, NAMES = 5000, b"a" * 16, ("cam-1", "cam-2", "cam-3")


class Site:
    """cam-1 is the gateway."""

    def __init__(self, parent: Path) -> None:
        self.parent, self.first = parent, (first := enrol(parent, name="cam-1"))
        others = [enrol(parent, name=name, beside=first) for name in NAMES[1:]]
        self.folders = {it.folder.name: it.folder for it in (first, *others)}
        self.settings = GatewaySettings(enabled=True, host="127.0.0.1", port=free_port())
        self.here = parent / "cam-1" / "learning"
        self.server = SiteUpdateServer(self.folders["cam-1"], self.here, self.settings)
        self.round = rounds_folder(self.here, ATTEMPT.hex())
        self.data = {name: update(i) for i, name in enumerate(NAMES)}

    def open(
        self, *members: str, most: int = 1 << 20, anew: Mapping[str, int] | None = None
    ) -> None:
        """anew: member -> how often its name was given away, of those that were."""
        told = dict.fromkeys(members or NAMES, 0) | (anew or {})
        self.server.open(ATTEMPT, told, most)
        (self.round / "contribution").write_bytes(self.data["cam-1"])

    def way(self, gateway: str = "cam-1", generation: int = 0) -> GatewayRoute:
        address = f"127.0.0.1:{self.settings.port}"
        return GatewayRoute(
            gateway=gateway, address=address, close_s=0.0, most=40,
            generations={gateway: generation} if generation else UNSET,
        )  # fmt: skip

    def hand(self, name: str, *, attempt: bytes = ATTEMPT, **of: Any) -> bool:
        way = self.way(**of)
        return hand_over(self.folders[name], way, attempt, self.data[name], time.time())

    def enrol_anew(self, name: str, generation: int) -> None:
        (self.parent / name).rename(self.parent / f"{name}-before-{generation}")
        self.folders[name] = enrol(
            self.parent, name=name, beside=self.first, generation=generation
        ).folder


def update(seed: int, **changes) -> bytes:
    delta = np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)
    packed = compress(delta, Compression(kind="int8"), Draws(b"s" * 32))
    whole = {"update": packed, "examples": 30 + 10 * seed, "loss": 0.5, "seconds": 1.0}
    return msgspec.msgpack.encode(Contribution(**whole | changes))


@pytest.fixture
def site(tmp_path: Path):
    made = Site(tmp_path)
    yield made
    made.server.close()


def summed(site: Site, made) -> site_sum.SiteSum:
    data = (site.round / "site-sum").read_bytes()
    assert (hashlib.sha256(data).digest(), len(data)) == (made.saved.digest, made.saved.length)
    return site_sum.decode(msgspec.msgpack.decode(data, type=Contribution).site)


def test_the_gateway_sums_what_its_site_hands_over(site: Site) -> None:
    site.open()
    assert site.hand("cam-2")
    assert site.hand("cam-3")
    assert site.hand("cam-3")  # again: it has it
    assert site.server.received() == {"cam-2", "cam-3"}
    found = summed(site, site.server.sum(ATTEMPT, NAMES, SIZE, 40))
    assert {name: one.examples for name, one in found.members.items()} == {
        "cam-1": 30, "cam-2": 40, "cam-3": 50,
    }  # fmt: skip
    assert ExactSum.from_bytes(found.weights, 1).value()[0] == 30 + 40 + 40


def test_a_late_one_is_turned_away_and_sends_its_update_itself(site: Site) -> None:
    site.open()
    assert site.hand("cam-2")
    assert site.server.sum(ATTEMPT, NAMES[:2], SIZE, 40).members == {"cam-1", "cam-2"}
    with pytest.raises(LinkError):
        site.hand("cam-3")


def test_a_device_that_is_not_a_member_is_refused_and_another_round_is_for_later(
    site: Site,
) -> None:
    site.open("cam-1", "cam-2")
    with pytest.raises(LinkError):
        site.hand("cam-3")
    assert not site.hand("cam-2", attempt=b"b" * 16)
    assert site.server.received() == set()


def test_a_certificate_of_an_earlier_enrolment_is_refused(site: Site) -> None:
    site.open(anew={"cam-2": 2})
    with pytest.raises(LinkError):
        site.hand("cam-2")
    assert site.server.received() == set()
    site.enrol_anew("cam-2", 1)  # given away once more meanwhile
    with pytest.raises(LinkError):
        site.hand("cam-2")
    site.enrol_anew("cam-2", 2)
    assert site.hand("cam-2")
    assert site.hand("cam-3")


def test_a_name_that_is_enrolled_again_within_an_attempt_is_accepted_with_its_new_certificate_only(
    site: Site,
) -> None:
    site.open()
    with (
        socket.create_connection(("127.0.0.1", site.settings.port)) as plain,
        client_context(site.folders["cam-2"]).wrap_socket(plain) as connection,
    ):
        connection.sendall(b"shoal-gateway/1 %s 9\n" % (b"b" * 32))
        assert connection.recv(6) == b"later\n"
        site.open(anew={"cam-2": 1})
        connection.sendall(b"shoal-gateway/1 %s 9\n" % ATTEMPT.hex().encode())
        assert connection.recv(5) == b""
    with pytest.raises(LinkError):
        site.hand("cam-2")
    site.enrol_anew("cam-2", 1)
    assert site.hand("cam-2")


def test_a_gateways_certificate_of_before_its_name_was_enrolled_anew_is_given_nothing(
    site: Site,
) -> None:
    site.open()
    with pytest.raises(UntrustedError):
        site.hand("cam-2", generation=1)
    assert site.server.received() == set()
    site.server.close()
    site.enrol_anew("cam-1", 1)
    site.server = SiteUpdateServer(site.folders["cam-1"], site.here, site.settings)
    site.open()
    assert site.hand("cam-2", generation=1)


def test_something_else_at_the_gateways_address_is_given_nothing(site: Site) -> None:
    site.open()
    with pytest.raises(UntrustedError):
        site.hand("cam-2", gateway="cam-3")
    assert site.server.received() == set()


def test_a_missing_gateway_is_reported_as_unreachable(site: Site) -> None:
    with pytest.raises(LinkError):
        site.hand("cam-2")


def test_what_is_too_large_or_broken_or_a_sum_itself_is_in_no_sum(site: Site) -> None:
    site.data["cam-2"] = update(1, loss=-1.0)
    site.data["cam-3"] = update(2, site=b"sum")
    site.open()
    assert site.hand("cam-2")
    assert site.hand("cam-3")
    assert site.server.sum(ATTEMPT, NAMES, SIZE, 40).members == {"cam-1"}

    site.server.close()
    site.data["cam-2"] = bytes(3000)
    (site.round / "site" / "cam-2").unlink()
    site.open(most=2000)
    with pytest.raises(LinkError):
        site.hand("cam-2")


def test_what_was_handed_over_survives_a_restart_of_the_gateway(site: Site) -> None:
    site.open()
    assert site.hand("cam-2")
    site.server.close()
    site.server = SiteUpdateServer(site.folders["cam-1"], site.here, site.settings)
    site.open()
    assert site.server.received() == {"cam-2"}


def test_a_gateway_that_takes_in_others_is_asked_again_and_a_full_disk_takes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "RECEIVING", 1)
    site.open()
    listener = site.server._listener
    with listener._receiving:
        assert not site.hand("cam-2")
    monkeypatch.setattr(gateway, "RESERVE", 2**60)
    with pytest.raises(LinkError):
        site.hand("cam-2")
    monkeypatch.undo()
    assert site.hand("cam-2")


def test_a_client_without_a_certificate_of_the_site_is_refused(site: Site) -> None:
    site.open()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", site.settings.port)) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.sendall(b"shoal-gateway/1 " + ATTEMPT.hex().encode() + b" 4\n")
        assert not connection.recv(5)
    assert site.server.received() == set()
