"""The Link without a broker: addresses, session names, delays and messages of failures."""

import random
import ssl
import threading
from pathlib import Path

import pytest

from shoal.connection_errors import explain
from shoal.errors import LinkError, SettingError
from shoal.mqtt import LONGEST_DELAY_S, Link, session_id


def make(tmp_path: Path, url: str = "mqtts://127.0.0.1:1") -> Link:
    return Link(
        url=url,
        client_id="cam-a",
        ca=tmp_path / "ca.pem",
        certificate=tmp_path / "cam-a.crt",
        key=tmp_path / "cam-a.key",
        subscriptions=[],
        random=random.Random(7),
    )


@pytest.mark.parametrize("url", ["", "mqtt://plain:1883", "mqtts://h:port"])
def test_what_is_no_broker_is_refused_with_the_form_it_should_have(tmp_path, url):
    with pytest.raises(SettingError, match="mqtts://HOST:PORT"):
        make(tmp_path, url)


def test_a_session_id_is_derived_from_the_key_and_not_from_the_name(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())
    one, two = (session_id("cam-a", tmp_path / name) for name in ("one", "two"))
    assert one == session_id("cam-a", tmp_path / "one") != two
    assert one.startswith("cam-a-")
    assert len(one) < 128


def test_delays_are_drawn_from_ever_wider_spans_up_to_a_minute(tmp_path):
    link = make(tmp_path)
    spans = [[link._delay(attempt) for _ in range(300)] for attempt in range(1, 20)]
    assert max(spans[0]) <= 2
    assert all(max(span) <= LONGEST_DELAY_S for span in spans)
    assert min(spans[-1]) < 5
    assert max(spans[-1]) > 50


def test_publishing_before_there_is_a_connection_is_a_link_error(tmp_path):
    with pytest.raises(LinkError, match="not started"):
        make(tmp_path).publish("shoal/v1/cam-a/up/window", b"x")


def test_a_missing_certificate_is_named_and_the_link_keeps_trying(tmp_path):
    link = make(tmp_path)
    assert "ca.pem" in explain(FileNotFoundError(2, "No such file", str(tmp_path / "ca.pem")))
    link.start(lambda *_: None, lambda _: None)
    link.stop()
    assert not link.connected


@pytest.mark.parametrize(("code", "word"), [(9, "clock"), (10, "expired"), (19, "not trusted")])
def test_a_refused_certificate_gets_a_hint(code, word):
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "said openssl"
    assert word in explain(error)


def test_a_thread_that_has_yet_to_begin_is_not_taken_for_one_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two would throw each other off the broker, and the device would hear nothing."""
    link = make(tmp_path)
    revived: list[bool] = []
    monkeypatch.setattr(threading.Thread, "start", lambda _: revived.append(link.revive()))
    link.start(lambda *_: None, lambda _: None)
    assert revived == [False]
