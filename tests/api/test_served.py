"""API under the real gunicorn with TLS: what a test client in process cannot show."""

import json
import shutil
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import urllib3

from api.controller_app import PASSWORD, make_request, open_folder
from api.serving import Served, give_ports
from shoal.controller.access import tokens
from shoal.controller.access.roles import Actor
from shoal.controller.api.stream import LIFETIME_S, MAX_STREAMS
from shoal.controller.host.context import Context
from shoal.controller.host.io.tls_timeouts import IDLE_TIMEOUT_S
from shoal.controller.host.io.web_server import THREADS
from shoal.controller.store import changes
from waiting import eventually


class Site(NamedTuple):
    server: Served
    ctx: Context
    folder: Path
    bearer: dict[str, str]

    def request(self, method: str, path: str, **more: Any) -> urllib3.BaseHTTPResponse:
        headers = {**self.bearer, **more.pop("headers", {})}
        return self.server.http.request(method, self.server.url + path, headers=headers, **more)


@pytest.fixture(scope="module")
def site(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("web") / "controller"
    shutil.copytree(template, folder)
    network = give_ports(folder).network
    ctx = open_folder(folder, time.time)
    made = tokens.create_token(ctx, actor=Actor("admin", "admin", "test", ""), name="test")
    server = Served(folder, "web", network.port)
    yield Site(server.wait(), ctx, folder, {"Authorization": f"Bearer {made.secret}"})
    code, said = server.end(), server.said
    ctx.store.close()
    assert code == 0, said
    assert "Traceback" not in said, said


def test_the_certificate_is_of_the_ca_that_the_controller_shows(site: Site) -> None:
    shown = site.server.get("/ca.pem")
    assert shown.data == site.server.ca.read_bytes()
    strangers = urllib3.PoolManager(retries=False)
    with pytest.raises(urllib3.exceptions.SSLError):
        strangers.request("GET", site.server.url + "/healthz")


def test_the_controller_is_ready_and_counts_what_it_answers(site: Site) -> None:
    assert site.server.get("/readyz").json() == {"status": "ok"}
    text = site.request("GET", "/metrics").data.decode()
    assert 'shoal_http_requests_total{method="GET",route="/readyz",status="200"} ' in text
    enrolled = site.request("GET", "/api/v1/devices").json()["items"]
    assert f"shoal_devices {float(len(enrolled))}\n" in text


def test_a_browser_signs_in_asks_and_signs_out(site: Site) -> None:
    ours = {"Origin": site.server.url, "Sec-Fetch-Site": "same-origin"}
    body = {"user": "operator", "password": PASSWORD}
    entered = site.server.http.request(
        "POST", site.server.url + "/api/v1/session", json=body, headers=ours
    )
    cookie = {"Cookie": entered.headers.getlist("Set-Cookie")[0].split(";")[0]}
    url = site.server.url + "/api/v1/me"
    assert site.server.http.request("GET", url, headers=cookie).json()["name"] == "operator"
    out = site.server.http.request(
        "DELETE", site.server.url + "/api/v1/session", headers=cookie | ours
    )
    assert out.status == 204
    assert site.server.http.request("GET", url, headers=cookie).status == 401


def test_one_use_lets_one_device_in_however_many_knock(site: Site) -> None:
    token = site.request("POST", "/api/v1/join-tokens", json={"site": "north"}).json()["secret"]
    statuses: list[int] = []
    start = threading.Barrier(10)

    def join(number: int) -> None:
        body = {"token": token, "csr": make_request(), "device": f"press-{number}"}
        start.wait()
        statuses.append(site.request("POST", "/api/v1/enrol", json=body, headers={}).status)

    threads = [threading.Thread(target=join, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] + [403] * 9


def first_event(response: urllib3.BaseHTTPResponse) -> dict[str, Any]:
    """Data of the first event of a stream."""
    text = b""
    for piece in response.stream(1):
        text += piece
        if b"data: " in text and text.endswith(b"\n\n"):
            return dict(json.loads(text.rpartition(b"data: ")[2]))
    raise AssertionError(text)


def test_a_change_made_by_another_process_reaches_a_listener(site: Site) -> None:
    stream = site.request("GET", "/api/v1/stream", preload_content=False)
    assert stream.headers["Content-Type"].startswith("text/event-stream")
    with site.ctx.store.write() as db:
        changes.note(db, site.ctx, "rollout", "r-1")
    began = time.monotonic()
    assert first_event(stream)["subject"] == "r-1"
    assert time.monotonic() - began < 2
    stream.close()


def test_twenty_listeners_leave_threads_for_everybody_else(site: Site) -> None:
    assert MAX_STREAMS < THREADS
    listening = [
        site.request("GET", "/api/v1/stream", preload_content=False) for _ in range(THREADS + 4)
    ]
    began = time.monotonic()
    for _ in range(20):
        assert site.request("GET", "/api/v1/fleet").status == 200
    assert time.monotonic() - began < 5
    for stream in listening:
        stream.close()


def finds_a_place(site: Site) -> bool:
    """Whether a new listener is served, and not told to come again for the crowd."""
    stream = site.request("GET", "/api/v1/stream", preload_content=False)
    first = next(stream.stream(10))
    stream.close()
    return b"retry: 500" in first


def test_a_listener_that_left_gives_its_place_to_the_next(site: Site) -> None:
    for _ in range(MAX_STREAMS + 3):
        eventually(lambda: finds_a_place(site), within_s=LIFETIME_S / 3)


def test_a_large_dataset_goes_to_disk_and_leaves_nothing_behind(site: Site) -> None:
    rows = b"".join(b"%d.5,%d,%d\n" % (n, n % 97, n % 2) for n in range(400_000))
    fields = {"name": "parts", "label": "ok", "file": ("parts.csv", b"a,b,ok\n" + rows)}
    response = site.request("POST", "/api/v1/datasets", fields=fields)
    assert response.status == 201, response.data
    assert response.json()["rows"] == 400_000
    assert list((site.folder / "uploads").iterdir()) == []


def test_a_body_without_a_length_is_bounded_too(site: Site) -> None:
    pieces = (b"x" * 65536 for _ in range(64))
    headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    try:
        status = site.request("POST", "/api/v1/join-tokens", body=pieces, headers=headers).status
    except urllib3.exceptions.HTTPError:
        status = 413  # refused and hung up before all of it was sent
    assert status == 413
    site.server.http.clear()  # that connection is not to be used again
    assert site.server.get("/healthz").status == 200


GARBLED = [
    b"POST /api/v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{}",
    b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"\r\n\r\n\r\n",
]


@pytest.mark.parametrize("line", GARBLED)
def test_a_garbled_request_does_not_affect_others(site: Site, line: bytes) -> None:
    with site.server.raw() as raw:
        raw.sendall(line)
    for _ in range(THREADS + 2):
        assert site.server.get("/healthz").status == 200


STALLED = [b"", b"\x16\x03\x01\x02\x00", b"GET /healthz HTTP/1.1\r\nHo"]


@pytest.mark.parametrize("said", STALLED, ids=["silence", "half a handshake", "half a request"])
def test_clients_that_stall_give_their_threads_back(site: Site, said: bytes) -> None:
    waiting = []
    for _ in range(THREADS):
        line = site.server.raw() if said.startswith(b"GET") else site.server.plain()
        line.sendall(said)  # and no more
        waiting.append(line)
    began = time.monotonic()
    answered = site.server.get("/healthz").status
    took = time.monotonic() - began
    for line in waiting:
        line.close()
    assert answered == 200
    assert took < IDLE_TIMEOUT_S * 2, took


def trickle(line: ssl.SSLSocket, seconds: float) -> float:
    """Send a byte now and then; seconds until the server hung up."""
    began = time.monotonic()
    try:
        while time.monotonic() - began < seconds:
            line.sendall(b"x")
            time.sleep(0.2)
    except OSError:
        pass
    return time.monotonic() - began


def test_a_client_that_trickles_is_cut_off(site: Site) -> None:
    with site.server.raw() as line:
        line.sendall(b"POST /api/v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n")
        assert trickle(line, IDLE_TIMEOUT_S * 4) < IDLE_TIMEOUT_S * 2
