"""The artifact server, a real one: bytes by range, for who holds the address."""

import hashlib
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from api.serving import Served, give_ports
from shoal import delta
from shoal.controller.releases import download_urls
from shoal.controller.releases.io.artifacts import span_of
from shoal.controller.releases.io.blobs import Blobs

DATA = bytes(range(256)) * 4096  # 1 MiB
BIG = 32 << 20


class Site(NamedTuple):
    server: Served
    key: bytes
    sha256: str
    big: str
    folder: Path

    def path(self, sha256: str = "", expires_s: float = 0) -> str:
        """Path and query of a capability URL."""
        split = urlsplit(
            download_urls.make_url(
                "", self.key, sha256 or self.sha256, expires_s or time.time() + 60
            )
        )
        return f"{split.path}?{split.query}"


@pytest.fixture(scope="module")
def site(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("artifacts") / "controller"
    shutil.copytree(template, folder)
    network = give_ports(folder).network
    blobs = Blobs(folder / "blobs")
    small, big = blobs.put_bytes(DATA), blobs.put_bytes(b"\0" * BIG)
    server = Served(folder, "artifacts", network.artifacts)
    yield Site(server.wait(), download_urls.read_key(folder), small.sha256, big.sha256, folder)
    assert server.end() == 0, server.said


SIZE, ETAG = 1000, '"e"'


@pytest.mark.parametrize(
    ("headers", "span"),
    [
        ({}, (0, 1000, False)),
        ({"Range": "bytes=0-0"}, (0, 1, True)),
        ({"Range": "bytes=0-"}, (0, 1000, True)),
        ({"Range": "bytes=500-"}, (500, 1000, True)),
        ({"Range": "bytes=990-2000"}, (990, 1000, True)),
        ({"Range": "bytes=-1"}, (999, 1000, True)),
        ({"Range": "bytes=-5000"}, (0, 1000, True)),
        ({"Range": "bytes=999-"}, (999, 1000, True)),
        ({"Range": "bytes=1000-"}, None),
        ({"Range": "bytes=-0"}, None),
        ({"Range": "bytes=5-4"}, (0, 1000, False)),
        ({"Range": "bytes=-"}, (0, 1000, False)),
        ({"Range": "bytes=0-1,3-4"}, (0, 1000, False)),
        ({"Range": "lines=0-1"}, (0, 1000, False)),
        ({"Range": "bytes=x-"}, (0, 1000, False)),
        ({"Range": "bytes=10-", "If-Range": '"e"'}, (10, 1000, True)),
        ({"Range": "bytes=10-", "If-Range": '"other"'}, (0, 1000, False)),
        ({"Range": "bytes=10-", "If-Range": "Wed, 21 Oct 2015 07:28:00 GMT"}, (0, 1000, False)),
    ],
)
def test_a_range_is_parsed_as_in_rfc_9110(headers, span) -> None:  # type: ignore[no-untyped-def]
    assert span_of(headers, SIZE, ETAG) == span


def test_an_empty_file_has_no_range() -> None:
    assert span_of({"Range": "bytes=0-"}, 0, ETAG) is None
    assert span_of({}, 0, ETAG) == (0, 0, False)


def test_a_blob_comes_whole_with_its_hash_as_etag(site: Site) -> None:
    response = site.server.get(site.path())
    assert response.status == 200
    assert hashlib.sha256(response.data).hexdigest() == site.sha256
    assert response.headers["ETag"] == f'"{site.sha256}"'
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["Content-Length"] == str(len(DATA))


def test_a_broken_download_goes_on_where_it_broke(site: Site) -> None:
    first = site.server.get(site.path(), Range="bytes=0-99999")
    rest = site.server.get(site.path(), Range="bytes=100000-", If_Range=first.headers["ETag"])
    assert (first.status, rest.status) == (206, 206)
    assert rest.headers["Content-Range"] == f"bytes 100000-{len(DATA) - 1}/{len(DATA)}"
    assert first.data + rest.data == DATA


def test_what_lies_beyond_the_end_is_416_with_the_true_length(site: Site) -> None:
    response = site.server.get(site.path(), Range=f"bytes={len(DATA)}-")
    assert response.status == 416
    assert response.headers["Content-Range"] == f"bytes */{len(DATA)}"
    assert response.headers["Content-Type"] == "application/problem+json"


def test_head_has_every_header_and_no_body(site: Site) -> None:
    response = site.server.get(site.path(), "HEAD", Range="bytes=10-19")
    assert response.status == 206
    assert response.headers["Content-Length"] == "10"
    assert response.data == b""
    assert site.server.get(site.path()).data == DATA


def test_one_connection_serves_many_requests(site: Site) -> None:
    pool = site.server.http.connection_from_url(site.server.url)
    site.server.get("/healthz")
    before = pool.num_connections
    for at in range(0, 5000, 1000):
        response = site.server.get(site.path(), Range=f"bytes={at}-{at + 999}")
        assert response.data == DATA[at : at + 1000]
    assert pool.num_connections == before


@pytest.mark.parametrize("wrong", ["", "?exp=1&sig=x", "expired", "of another blob"])
def test_without_the_right_capability_there_is_nothing(site: Site, wrong: str) -> None:
    path = f"/blobs/{site.sha256}{wrong}"
    if wrong == "expired":
        path = site.path(expires_s=time.time() - 1)
    if wrong == "of another blob":
        path = site.path(site.big).replace(site.big, site.sha256)
    response = site.server.get(path)
    assert response.status == 403
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["type"].endswith("/denied")


def test_a_capability_for_what_is_not_there_is_404(site: Site) -> None:
    assert site.server.get(site.path("0" * 64)).status == 404


def test_metadata_is_public_and_is_revalidated(site: Site) -> None:
    for name in ("1.root.json", "timestamp.json"):
        response = site.server.get(f"/metadata/{name}")
        assert response.status == 200, name
        assert "signed" in response.json()
        assert response.headers["Cache-Control"] == "no-cache"


ESCAPES = [
    "/metadata/../../keys/capability.key",
    "/metadata/..%2f..%2fkeys%2fcapability.key",
    "/metadata/%2e%2e/%2e%2e/controller.toml",
    "/metadata/..%5c..%5ccontroller.toml",
    "/metadata/.hidden.json",
    "/metadata/%00.json",
    "/metadata/",
    "/metadata//etc/passwd",
    "/blobs/../keys/capability.key",
    "/blobs/..%2fkeys",
    "/blobs/",
    "/",
    "//etc/passwd",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leads_out_of_the_two_folders(site: Site, path: str) -> None:
    with site.server.raw() as line:  # bare, for a client would tidy the path
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.split()[1] in (b"400", b"403", b"404"), answer[:200]
    assert site.key not in answer


@pytest.mark.parametrize("line", [b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"X" * 20000])
def test_invalid_http_is_refused_and_other_requests_are_served(site: Site, line: bytes) -> None:
    with site.server.raw() as raw:
        raw.sendall(line)
        raw.settimeout(5)
        assert b" 400 " in raw.recv(65536)
    assert site.server.get("/healthz").status == 200


def test_other_methods_and_bodies_are_refused(site: Site) -> None:
    assert site.server.get(site.path(), "PUT").status == 405
    assert site.server.get(site.path(), "DELETE").status == 405


def test_two_hundred_stuck_downloads_delay_no_other_request(site: Site) -> None:
    stuck = []
    for _ in range(200):
        line = site.server.raw()
        line.sendall(f"GET {site.path(site.big)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert line.recv(12) == b"HTTP/1.1 200"
        stuck.append(line)  # and read no further
    took = []
    for _ in range(20):
        began = time.monotonic()
        assert site.server.get(site.path()).data == DATA
        took.append(time.monotonic() - began)
    for line in stuck:
        line.close()
    assert sorted(took)[10] < 0.5, took
    assert site.server.get("/healthz").status == 200


def test_a_client_that_hangs_up_is_no_error(site: Site) -> None:
    for _ in range(5):
        with site.server.raw() as line:
            line.sendall(f"GET {site.path(site.big)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            line.recv(1000)
    assert site.server.get("/healthz").status == 200
    assert "Traceback" not in site.server.said
    assert "SSL connection is closed" not in site.server.said


def test_what_differs_between_two_blobs_is_made_when_it_is_asked_for_and_kept(site: Site) -> None:
    blobs = Blobs(site.folder / "blobs")
    new = DATA[:500_000] + b"!" + DATA[500_001:]
    name = f"{site.sha256}-{blobs.put_bytes(new).sha256}"
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: site.server.get(site.path(name)), range(8)))
    assert {answer.status for answer in answers} == {200}
    [said] = {answer.data for answer in answers}
    assert delta.apply(DATA, said, len(new)) == new
    assert len(said) < 1000
    rest = site.server.get(site.path(name), Range="bytes=10-")
    assert (rest.status, rest.data) == (206, said[10:])
    assert [path.name for path in (site.folder / "deltas").iterdir()] == [name]


def test_a_delta_of_what_is_not_there_is_404_and_of_what_was_not_signed_403(site: Site) -> None:
    assert site.server.get(site.path(f"{site.sha256}-{'0' * 64}")).status == 404
    signed = site.path(f"{site.sha256}-{site.big}")
    other = signed.replace(f"{site.sha256}-{site.big}", f"{site.big}-{site.sha256}")
    assert site.server.get(other).status == 403
