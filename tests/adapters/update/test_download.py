"""Downloads over a real, and really unreliable, HTTPS server."""

import hashlib
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.update.flaky_server import DATA, FILE, NONE, Server, getter, stage
from shoal import bundle, delta
from shoal.agent.update.io import download
from shoal.controller.fleet.io.ca import Authority
from shoal.errors import AbsentError, BundleError, DeniedError, LinkError, StorageError
from shoal.manifest import File


def test_a_file_is_stored_complete_under_its_name(fetch, tmp_path: Path) -> None:
    assert fetch() == len(DATA)
    assert (stage(tmp_path) / "model.onnx").read_bytes() == DATA
    assert [p.name for p in stage(tmp_path).iterdir()] == ["model.onnx"]


def test_a_download_resumes_where_its_connection_broke(
    fetch, server: Server, tmp_path: Path
) -> None:
    server.cuts = [100_000, 1, 70_000, 0]
    for _ in range(4):
        with pytest.raises(LinkError):
            fetch()
    fetch()
    assert (stage(tmp_path) / "model.onnx").read_bytes() == DATA
    assert server.wanted == ["", "bytes=100000-", "bytes=100001-", "bytes=170001-", "bytes=170001-"]
    assert server.sent == len(DATA)


def test_only_a_resumed_file_is_read_again_to_hash_it(
    fetch, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    whole = bundle.sha256_of
    monkeypatch.setattr(bundle, "sha256_of", lambda path: (read.append(path.name), whole(path))[1])
    fetch()
    assert read == []
    (stage(tmp_path) / "model.onnx").unlink()
    server.cuts = [100_000]
    with pytest.raises(LinkError):
        fetch()
    fetch()
    assert read == [f"{FILE.sha256}.part"]


def test_without_range_support_a_download_restarts(fetch, server: Server, tmp_path: Path) -> None:
    server.cuts, server.ranges = [1000], False
    with pytest.raises(LinkError):
        fetch()
    fetch()
    assert (stage(tmp_path) / "model.onnx").read_bytes() == DATA


@pytest.mark.parametrize("wrong", ["bytes 0-299999/300000", "bytes 1000-1001/5", "nonsense"])
def test_a_response_for_another_range_is_not_written(
    fetch, server: Server, tmp_path: Path, wrong: str
) -> None:
    server.cuts = [1000]
    with pytest.raises(LinkError):
        fetch()
    server.content_range = wrong
    with pytest.raises(LinkError, match="range"):
        fetch()
    server.content_range = ""
    fetch()
    assert (stage(tmp_path) / "model.onnx").read_bytes() == DATA


@pytest.mark.parametrize("refusal", [416, 400, 405, 501, NONE, "bytes 5-9/10"])
def test_where_ranges_are_refused_the_whole_file_is_fetched_after_two_tries(
    fetch, server: Server, tmp_path: Path, refusal: int | str
) -> None:
    server.cuts = [100_000]
    with pytest.raises(LinkError):
        fetch()
    if isinstance(refusal, int):
        server.range_status = refusal
    else:
        server.content_range = refusal
    with pytest.raises(LinkError):
        fetch()
    assert fetch() == len(DATA)
    assert (stage(tmp_path) / "model.onnx").read_bytes() == DATA
    assert server.wanted == ["", "bytes=100000-", "bytes=100000-", ""]


def test_a_proxy_that_calls_everything_partial_delivers_all_the_same(
    fetch, server: Server, tmp_path: Path
) -> None:
    server.cuts, server.whole_status, server.content_range = [100_000], 206, NONE
    for _ in range(2):
        with pytest.raises(LinkError):
            fetch()
    assert fetch() == len(DATA)


def test_a_server_that_is_busy_is_asked_for_the_rest_again(
    fetch, server: Server, tmp_path: Path
) -> None:
    server.cuts = [100_000]
    for server.range_status in (0, 503, 429, 500, 502):
        with pytest.raises(LinkError):
            fetch()
    server.range_status = 0
    assert fetch() == len(DATA) - 100_000
    assert set(server.wanted[1:]) == {"bytes=100000-"}


@pytest.mark.parametrize(
    ("status", "headers", "named"),
    [
        (302, {"Location": "http://login.example/?next=x"}, "redirected to login.example"),
        (511, {}, "HTTP 511"),
        (200, {"Content-Type": "text/html; charset=utf-8"}, "web page"),
    ],
)
def test_a_captive_portal_is_named_and_costs_no_bytes_that_are_there(
    fetch, server: Server, tmp_path: Path, status: int, headers: dict[str, str], named: str
) -> None:
    server.cuts = [100_000]
    with pytest.raises(LinkError):
        fetch()
    server.status, server.headers = status, headers
    for _ in range(3):
        with pytest.raises(LinkError, match=f"{named}.*captive portal"):
            fetch()
    server.status = 0
    assert fetch() == len(DATA) - 100_000


def test_bytes_that_do_not_match_the_signed_hash_are_deleted(
    fetch, server: Server, tmp_path: Path
) -> None:
    server.data = DATA[:-1] + b"!"
    with pytest.raises(BundleError, match="signed hash"):
        fetch()
    assert list(stage(tmp_path).iterdir()) == []


def test_no_more_bytes_than_the_signed_size_are_read(fetch, server: Server, tmp_path: Path) -> None:
    server.data = DATA + b"x" * 10_000_000
    fetch()
    assert (stage(tmp_path) / "model.onnx").stat().st_size == len(DATA)


def test_a_partial_file_longer_than_the_file_is_restarted(
    fetch, server: Server, tmp_path: Path
) -> None:
    stage(tmp_path).mkdir(parents=True)
    (stage(tmp_path) / f"{FILE.sha256}.part").write_bytes(b"y" * (len(DATA) + 1))
    fetch()
    assert (stage(tmp_path) / "model.onnx").read_bytes() == DATA


def test_a_complete_partial_file_is_only_verified(fetch, server: Server, tmp_path: Path) -> None:
    stage(tmp_path).mkdir(parents=True)
    (stage(tmp_path) / f"{FILE.sha256}.part").write_bytes(DATA)
    assert fetch() == 0
    assert server.wanted == []


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, AbsentError), (403, DeniedError), (500, LinkError), (302, LinkError), (416, LinkError)],
)
def test_an_http_error_is_mapped_to_its_class_without_leaking_the_capability(
    fetch, server: Server, status: int, error: type[Exception]
) -> None:
    server.status = status
    with pytest.raises(error) as caught:
        fetch()
    assert "secret" not in str(caught.value)


def test_an_unreachable_server_is_a_link_error(fetch, server: Server) -> None:
    server.stop()
    with pytest.raises(LinkError, match="artifact server"):
        fetch()


def test_a_server_certificate_of_another_ca_is_refused(server: Server, tmp_path: Path) -> None:
    Authority.create(tmp_path / "pki", names=["localhost"], now=time.time())
    with pytest.raises(LinkError, match=r"(?i)certificate"):
        getter(server, tmp_path / "pki" / "ca.pem", tmp_path)()


def test_a_cancelled_download_keeps_its_partial_file(fetch, server: Server, tmp_path: Path) -> None:
    cancelled = iter([False, False, True])
    with pytest.raises(LinkError, match="cancelled"):
        fetch(stop=lambda: next(cancelled))
    fetch()
    assert server.wanted[1].startswith("bytes=")
    assert (stage(tmp_path) / "model.onnx").read_bytes() == DATA


def test_the_bandwidth_limit_adds_pauses(server: Server, pki: Path, tmp_path: Path) -> None:
    pauses: list[float] = []
    getter(server, pki / "ca.pem", tmp_path, max_kbps=800, pauses=pauses)()
    assert max(pauses) == pytest.approx(3.0, rel=0.2)  # 300 kB at 100 kB/s, had it slept


def test_a_full_disk_is_a_storage_error(fetch, tmp_path: Path) -> None:
    stage(tmp_path).parent.mkdir()
    stage(tmp_path).write_text("a file where the folder should be")
    with pytest.raises(StorageError):
        fetch()


def test_small_files_are_bounded_and_verified(fetch, server: Server) -> None:
    downloads = fetch.downloads
    with pytest.raises(BundleError):
        downloads.small(server.url, 10, FILE.sha256)
    with pytest.raises(BundleError):
        downloads.small(server.url, FILE.size, "0" * 64)
    assert downloads.small(server.url, FILE.size, FILE.sha256) == DATA
    with pytest.raises(LinkError, match="https"):
        downloads.small("http://localhost/", 1, "")


def test_missing_metadata_is_absent(fetch, server: Server) -> None:
    server.status = 404
    with pytest.raises(AbsentError):
        fetch.downloads.metadata("2.root.json")


NEW = random.Random(1).randbytes(100_000)
MADE = File(name="model.onnx", size=len(NEW), sha256=hashlib.sha256(NEW).hexdigest())
OLD = NEW[:50_000] + random.Random(2).randbytes(500) + NEW[50_500:]
DELTA = delta.make(OLD, NEW)


@pytest.fixture
def shorter(fetch, server: Server, tmp_path: Path) -> Callable[..., int]:
    """Fetches MADE as a delta to OLD; the server has DELTA."""
    server.data = DELTA
    (tmp_path / "old.onnx").write_bytes(OLD)

    def by_delta(stop: Callable[[], bool] = lambda: False) -> int:
        base = tmp_path / "old.onnx"
        return fetch.downloads.delta(f"{server.url}/blobs/x-y", "parts", MADE, base, stop)

    return by_delta


def test_a_delta_rebuilds_the_file_from_the_old_one(
    shorter, server: Server, tmp_path: Path
) -> None:
    assert shorter() == len(DELTA) < len(NEW) // 10
    assert (stage(tmp_path) / "model.onnx").read_bytes() == NEW
    assert [p.name for p in stage(tmp_path).iterdir()] == ["model.onnx"]


def test_a_delta_download_resumes_where_its_connection_broke(
    shorter, server: Server, tmp_path: Path
) -> None:
    server.cuts = [100, 50]
    for _ in range(2):
        with pytest.raises(LinkError):
            shorter()
    shorter()
    assert server.wanted == ["", "bytes=100-", "bytes=150-"]
    assert server.sent == len(DELTA)
    assert (stage(tmp_path) / "model.onnx").read_bytes() == NEW


def test_a_delta_whose_application_killed_the_process_is_not_retried(
    shorter, server: Server, tmp_path: Path
) -> None:
    """It needs memory: an agent killed by the OOM killer would be killed at every start."""
    stage(tmp_path).mkdir(parents=True)
    left = stage(tmp_path) / f"{MADE.sha256}.whole"
    left.write_bytes(DELTA)
    with pytest.raises(BundleError, match="not applied completely"):
        shorter()
    assert not left.exists()
    assert server.sent == 0


def test_a_delta_that_saves_little_is_not_fetched(shorter, server: Server, tmp_path: Path) -> None:
    stage(tmp_path).mkdir(parents=True)
    (stage(tmp_path) / f"{MADE.sha256}.part").write_bytes(NEW[: -len(DELTA)])
    with pytest.raises(BundleError, match="saves too little"):
        shorter()
    server.data = NEW
    with pytest.raises(BundleError, match="saves too little"):
        shorter()


@pytest.mark.parametrize(
    "served", [b"junk" * 9, delta.make(b"", NEW[:-1]), delta.make(OLD, NEW[:-1] + b"!")]
)
def test_after_a_delta_with_a_wrong_result_the_whole_file_can_be_fetched(
    served: bytes, fetch, shorter, server: Server, tmp_path: Path
) -> None:
    server.data = served
    with pytest.raises(BundleError):
        shorter()
    assert not (stage(tmp_path) / "model.onnx").exists()
    server.data = NEW
    assert fetch(MADE) == len(NEW)


@pytest.mark.parametrize("status", [404, 403, 500, 503])
def test_an_unavailable_delta_is_not_retried(shorter, server: Server, status: int) -> None:
    server.status = status
    with pytest.raises((AbsentError, DeniedError)):
        shorter()


def test_a_missing_delta_does_not_open_a_new_connection(
    shorter, fetch, server: Server, tmp_path: Path
) -> None:
    server.status = 404
    with pytest.raises(AbsentError):
        shorter()
    server.status, server.data = 0, DATA
    assert fetch() == len(DATA)
    assert len(server.callers) == 1


def test_a_file_over_the_delta_limit_is_not_fetched_as_a_delta(
    shorter, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "DELTA_LIMIT", 1000)
    with pytest.raises(BundleError, match="too large"):
        shorter()
    assert server.wanted == []


# ---- pieces of an older version

MB = 1 << 20
#: Weights of 6 MiB, and a version of them where a few in the third MiB have changed.
WEIGHTS = random.Random(1).randbytes(6 * MB)
CHANGED = WEIGHTS[: 2 * MB + 7] + b"changed" + WEIGHTS[2 * MB + 14 :]


@pytest.fixture
def newer(fetch, server: Server, tmp_path: Path) -> Callable[..., int]:
    """Fetches CHANGED, or other data, where `old` is on the device."""
    server.data = CHANGED

    def fetch_it(old: bytes = WEIGHTS, new: bytes = CHANGED) -> int:
        server.data = new
        (tmp_path / "old.bin").write_bytes(old)
        file = bundle.describe("weights.bin", new)
        bases = [tmp_path / "absent.bin", tmp_path / "old.bin"]
        url, stop = f"{server.url}/blobs/x", lambda: False
        got: int = fetch.downloads.file(url, "parts", file, stop, bases)
        assert (stage(tmp_path) / "weights.bin").read_bytes() == new
        return got

    return fetch_it


def test_a_version_that_changes_few_weights_is_fetched_as_those_pieces(
    newer, server: Server
) -> None:
    assert newer() == MB
    assert server.wanted == [f"bytes={2 * MB}-{3 * MB - 1}"]


SHIFTED: dict[str, tuple[bytes, bytes, int]] = {
    "a longer head": (WEIGHTS, b"a longer head" + WEIGHTS, MB + 13),
    "a longer end": (WEIGHTS, WEIGHTS + b"more", 4),
    "a shorter end": (WEIGHTS, WEIGHTS[:-5], MB - 5),
    "nothing alike": (WEIGHTS, bytes(3 * MB), 3 * MB),
    "nothing there": (b"", CHANGED, 6 * MB),
}


@pytest.mark.parametrize("what", SHIFTED)
def test_pieces_are_found_from_the_beginning_or_the_end(what: str, newer) -> None:
    old, new, most = SHIFTED[what]
    assert newer(old, new) <= most


def test_pieces_resume_where_the_connection_broke(newer, server: Server, tmp_path: Path) -> None:
    server.cuts = [300_000, 0]
    for _ in range(2):
        with pytest.raises(LinkError):
            newer()
    assert newer() == MB - 300_000
    rest = f"bytes={2 * MB + 300_000}-{3 * MB - 1}"
    assert server.wanted == [f"bytes={2 * MB}-{3 * MB - 1}", rest, rest]


@pytest.mark.parametrize("refusal", ["whole file", "416"])
def test_where_ranges_are_refused_pieces_become_the_whole_file(
    newer, server: Server, refusal: str
) -> None:
    server.ranges = refusal != "whole file"
    server.range_status = 416 if refusal == "416" else 0
    with pytest.raises(LinkError):
        newer()
    assert newer() == len(CHANGED)


def test_a_wrong_piece_from_the_server_is_not_taken(fetch, server: Server, tmp_path: Path) -> None:
    server.data = WEIGHTS  # the old piece again
    (tmp_path / "old.bin").write_bytes(WEIGHTS)
    file, url = bundle.describe("weights.bin", CHANGED), f"{server.url}/blobs/x"
    with pytest.raises(BundleError, match="does not match its signed hash"):
        fetch.downloads.file(url, "parts", file, lambda: False, [tmp_path / "old.bin"])
    assert list(stage(tmp_path).iterdir()) == []
