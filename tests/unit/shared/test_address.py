"""Addresses as text: IPv6 in brackets, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.address import Address, host_port, is_ipv6, parse_host_port, parse_url, url_of
from shoal.errors import SettingError

PORTS = {"mqtt": 1883, "mqtts": 8883}
hosts = (
    st.ip_addresses().map(str)
    | st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]{2,4})?", fullmatch=True)
    | st.just("fe80::1%eth0")
)


@given(hosts, st.integers(1, 65_535))
def test_every_address_that_is_built_is_parsed_back(host: str, port: int) -> None:
    assert parse_url(url_of("mqtts", host, port), PORTS, "broker").address == (host, port)
    if "%" not in host:
        assert parse_host_port(host_port(host, port)) == Address(host, port)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_none(text: str) -> None:
    found = parse_host_port(text)
    assert found is None or 0 < found.port < 65_536


@pytest.mark.parametrize(
    "text", ["", "x", "h:", ":80", "h:0", "h:65536", "h:٣", "fd00::7:80", "[h]:80", "[fd00::7:80",
             "h h:80", "[fd00::7]80", "http://h:80"]
)  # fmt: skip
def test_what_is_no_address_is_none(text: str) -> None:
    assert parse_host_port(text) is None


def test_a_scheme_has_its_own_port() -> None:
    assert parse_url("mqtt://plant", PORTS, "broker") == ("mqtt", ("plant", 1883))
    assert parse_url(" mqtts://[::1]/ ", PORTS, "broker") == ("mqtts", ("::1", 8883))


@pytest.mark.parametrize(
    "url", ["", "plant", "http://plant", "mqtt://", "mqtt://h:port", "mqtt://h:0", "mqtt://h:99999",
            "mqtt://user@h", "mqtt://[::1", "mqtt://h/x", "mqtt://h?x"]
)  # fmt: skip
def test_what_is_no_url_of_a_server_is_refused_with_the_form_it_should_have(url: str) -> None:
    with pytest.raises(SettingError) as refused:
        parse_url(url, PORTS, "broker")
    assert refused.value.hint == "write mqtt://HOST:PORT"
    assert refused.value.message.startswith(f"broker {url!r}")


@pytest.mark.parametrize("url", ["mqtts://::1:8883", "mqtts://fd00::7"])
def test_an_ipv6_address_without_brackets_is_refused_with_them(url: str) -> None:
    with pytest.raises(SettingError) as refused:
        parse_url(url, {"mqtts": 8883}, "broker")
    assert "an IPv6 address in brackets: mqtts://[::1]:PORT" in refused.value.hint


def test_only_an_address_of_version_6_is_one() -> None:
    assert [is_ipv6(h) for h in ("::", "fd00::1", "10.0.0.1", "plant", "")] == [True, True] + [
        False
    ] * 3
