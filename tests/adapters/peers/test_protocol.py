"""Peer downloads: what a peer may request, what is accepted from it, and its worst-case cost.

The real client and server over real TLS with devices' certificates; the artifact server is a fake
that counts bytes.
"""

import base64
import contextlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from real_agents import enrol
from shoal import bundle
from shoal import manifest as manifests
from shoal.agent.host.faults import Fault
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.peers.io import downloader, listener, protocol
from shoal.agent.peers.io.downloader import PeerContext, PeerDownloads
from shoal.agent.peers.io.protocol import PeerConnection, PieceRequest, client_context, connect
from shoal.agent.peers.io.server import DownloadState, PeerServer, PieceStore
from shoal.agent.peers.policy import PieceStatus
from shoal.errors import BundleError, LinkError, UntrustedError
from shoal.manifest import PIECE, File

MODEL = "parts"
DATA = np.random.default_rng(3).bytes(5 * PIECE + 77)
FILE = bundle.describe("model.onnx", DATA)


class ArtifactServer:
    """Fake artifact server. down: it cannot be reached."""

    def __init__(self) -> None:
        self.sent, self.down, self.whole = 0, False, 0
        self.pause_s = 0.02

    def span(self, url: str, start: int, end: int, size: int, stop: Callable[[], bool]) -> bytes:
        if self.down:
            raise LinkError("no route")
        time.sleep(self.pause_s)
        self.sent += end - start
        return DATA[start:end]

    def file(self, *_: Any) -> int:
        self.whole += 1
        return len(DATA)

    def metadata(self, name: str) -> bytes:
        return b""

    small = delta = None


class SiteDevice:
    """One device: its folder, peer downloader and peer server."""

    def __init__(self, site: "Site", name: str, folder: Path) -> None:
        self.site, self.name, self.folder, self.faults = site, name, folder, list[Fault]()
        self.slots, state, self.assigned = DiskSlots(folder / "models"), DownloadState(), True
        self.server = PeerServer(
            folder, ("127.0.0.1", 0), store=PieceStore(folder / "models", time.monotonic),
            state=state, max_kbps=0, sleep=time.sleep,
            allowed=lambda: site.allowed if self.assigned else (),
            generations=lambda: site.generations,
        )  # fmt: skip
        context = PeerContext(
            folder=folder, me=name, peers=lambda: site.addresses(name), fault=self.faults.append,
            wall=time.time, monotonic=time.monotonic, sleep=time.sleep,
            random=random.Random(name),
        )  # fmt: skip
        self.downloads = PeerDownloads(site.wan, context, state, self.stage)
        self.fetched, self.error = -1, None

    def stage(self, model: str) -> Path:
        return self.slots.path(model, "stage")

    def begin(self, file: File = FILE) -> None:
        """Prepare a stage with the manifest that names the file, as an update does."""
        self.slots.put_manifest(MODEL, self.site.manifest)

    def download(self, file: File = FILE) -> None:
        self.begin(file)
        try:
            self.fetched = self.downloads.file("url", MODEL, file, lambda: False)
        except Exception as error:
            self.error = error

    def whole(self) -> bool:
        path = self.stage(MODEL) / FILE.name
        return path.is_file() and path.read_bytes() == DATA


class Site:
    """Devices of one site; `extra` are addresses without a device of the site."""

    def __init__(self, parent: Path, count: int) -> None:
        self.wan, self.devices, self.extra = ArtifactServer(), list[SiteDevice](), dict[str, str]()
        self.manifest = manifest_of(FILE)
        first = None
        for n in range(1, count + 1):
            made = enrol(parent, name=f"cam-{n}", beside=first)
            first = first or made
            self.devices.append(SiteDevice(self, f"cam-{n}", made.folder))
            self.devices[-1].server.start()
        self.parent, self.first = parent, first
        self.allowed = {device.name for device in self.devices}
        self.generations = dict[str, int]()

    def addresses(self, me: str) -> dict[str, str]:
        ports = {device.name: device.server.port for device in self.devices}
        return {n: f"127.0.0.1:{p}" for n, p in ports.items() if n != me} | self.extra

    def all_download(self) -> None:
        threads = [threading.Thread(target=device.download) for device in self.devices]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for device in self.devices:
            assert device.error is None, device.error
            assert device.whole()

    def end(self) -> None:
        for device in self.devices:
            device.server.finish()


def manifest_of(file: File) -> bytes:
    from devices import Cloud

    made = Cloud().manifest(1, 1, MODEL, b"")
    from msgspec.structs import replace

    return manifests.encode(replace(made, card=file))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, 4)
    yield made
    made.end()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, 2)
    yield made
    made.end()


def test_every_byte_comes_over_the_wide_network_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CONNECT_S", "READ_S"):  # a busy machine must not look like a dead peer
        monkeypatch.setattr(protocol, name, 30.0)
    site.all_download()
    assert site.wan.sent == len(DATA)
    assert sum(device.fetched for device in site.devices) == len(DATA)
    assert not any(device.faults for device in site.devices)


def test_of_devices_that_start_together_one_fetches_a_file_of_one_piece(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CONNECT_S", "READ_S"):  # a busy machine must not look like a dead peer
        monkeypatch.setattr(protocol, name, 30.0)
    for head_start_s in (0.0, downloader.HEAD_START_S):  # without one the claims alone decide
        monkeypatch.setattr(downloader, "HEAD_START_S", head_start_s)
        for size in range(370_000, 370_006):  # another ranking each
            assert together(site, bundle.describe("model.onnx", DATA[:size])) == size


def together(site: Site, file: File) -> int:
    """Bytes sent for `file` when all devices receive their assignments within 30 ms."""
    site.wan.sent, site.manifest, chance = 0, manifest_of(file), random.Random(file.sha256)
    for device in site.devices:
        device.assigned, device.begun_s = False, chance.uniform(0.0, 0.03)

    def begin(device: SiteDevice) -> None:
        time.sleep(device.begun_s)
        device.assigned = True
        device.download(file)

    threads = [threading.Thread(target=begin, args=(device,)) for device in site.devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [device.error for device in site.devices] == [None] * len(site.devices)
    return site.wan.sent


def test_a_file_stays_available_while_it_moves_into_its_slot(pair: Site) -> None:
    client, peer = pair.devices
    peer.download()
    line = open_connection(client, peer)
    assert line.request(PieceRequest(FILE.sha256, 0), PIECE)[0] is PieceStatus.HAVE
    stage = peer.stage(MODEL)
    stage.rename(stage.with_name("a"))
    assert line.request(PieceRequest(FILE.sha256, 0), PIECE)[0] is PieceStatus.HAVE


def test_a_later_device_does_not_need_the_wide_network(pair: Site) -> None:
    early, late = pair.devices
    early.download()
    pair.wan.down = True
    late.download()
    assert (late.error, late.fetched, late.whole()) == (None, 0, True)


def test_pieces_of_an_older_version_need_no_network_at_all(pair: Site, tmp_path: Path) -> None:
    one, _ = pair.devices
    (tmp_path / "old.onnx").write_bytes(DATA[:PIECE] + b"?" + DATA[PIECE + 1 :])
    one.begin()
    got = one.downloads.file("url", MODEL, FILE, lambda: False, [tmp_path / "old.onnx"])
    assert one.whole()
    assert got == pair.wan.sent == PIECE


def test_without_peers_or_pieces_the_whole_file_is_downloaded(pair: Site) -> None:
    lone = pair.devices[0]
    plain = File(name="model.onnx", size=len(DATA), sha256=FILE.sha256)
    lone.download(plain)
    pair.devices[:] = [lone]
    lone.download()
    assert pair.wan.whole == 2


def test_an_interrupted_download_resumes_at_the_piece_where_it_stopped(pair: Site) -> None:
    device = pair.devices[0]
    device.begin()
    (device.stage(MODEL) / f"{FILE.sha256}.part").write_bytes(DATA[: 2 * PIECE + 5])
    device.download()
    assert (device.fetched, device.whole()) == (len(DATA) - 2 * PIECE, True)


def test_a_corrupt_partial_file_is_deleted_and_reported(pair: Site) -> None:
    device = pair.devices[0]
    device.begin()
    part = device.stage(MODEL) / f"{FILE.sha256}.part"
    part.write_bytes(bytes(2 * PIECE))
    device.download()
    assert isinstance(device.error, BundleError)
    assert not part.exists()


class CorruptStore(PieceStore):
    def read(self, piece: PieceRequest) -> bytes:
        part = FILE.pieces()[piece.number]
        return bytes(part.stop - part.start)


class AlwaysFetching(DownloadState):
    def status(self, piece: PieceRequest) -> PieceStatus:
        return PieceStatus.FETCHING


def test_a_peer_that_sends_wrong_pieces_is_asked_once(pair: Site) -> None:
    honest, corrupt = pair.devices
    corrupt.server._store = CorruptStore(corrupt.folder, time.monotonic)
    honest.download()
    assert (honest.fetched, honest.whole()) == (len(DATA), True)
    assert [fault.cause for fault in honest.faults] == ["peer-lied"]
    assert "cam-2 sent a piece of model.onnx" in honest.faults[0].detail


def test_a_peer_that_only_reports_fetching_costs_one_wait(
    pair: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloader, "MAX_WAIT_S", 1.5)
    honest, staller = pair.devices
    staller.server._state = AlwaysFetching()
    began = time.monotonic()
    honest.download()
    assert honest.whole()
    assert time.monotonic() - began >= 1.5
    assert honest.downloads.avoided["cam-2"] > time.monotonic() + 60


class SlowServer(PeerServer):
    """Sends one byte of a piece every 50 ms. requests: number of requests received."""

    def _answer(self, connection: ssl.SSLSocket, piece: PieceRequest) -> None:
        part = FILE.pieces()[piece.number]
        connection.sendall(b"have %d\n" % (part.stop - part.start))
        self.requests = getattr(self, "requests", 0) + 1
        while not self._finished.is_set():
            connection.sendall(b"x")
            time.sleep(0.05)


def test_a_peer_that_sends_a_byte_now_and_then_costs_one_deadline(
    pair: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "SLOWEST_BPS", 1e9)
    monkeypatch.setattr(protocol, "READ_S", 2.0)
    honest, slow = pair.devices
    slow.server.__class__ = SlowServer
    honest.download()
    assert (honest.error, honest.fetched, honest.whole()) == (None, len(DATA), True)
    assert slow.server.requests == 1
    assert honest.downloads.avoided["cam-2"] > time.monotonic() + 60


def test_a_cancelled_download_does_not_wait_for_a_slow_piece(
    pair: Site,
) -> None:
    honest, slow = pair.devices
    slow.server.__class__ = SlowServer
    honest.begin()
    with pytest.raises(LinkError, match="cancelled"):
        honest.downloads.file("url", MODEL, FILE, lambda: getattr(slow.server, "requests", 0) > 0)
    assert (pair.wan.sent, honest.downloads.avoided) == (0, {})


def test_a_malformed_certificate_does_not_fail_a_download(pair: Site, tmp_path: Path) -> None:
    """A server at a peer's address presents "X.509 v10": the parser has an error of its own."""
    lone = pair.devices[0]
    pair.devices[1].server.finish()
    pem = (lone.folder / "device.crt").read_text().partition("-----END CERTIFICATE-----")[0]
    der = base64.b64decode(pem.partition("-----BEGIN CERTIFICATE-----")[2])
    odd = der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020109"), 1)
    (tmp_path / "odd.crt").write_text(ssl.DER_cert_to_PEM_cert(odd))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "odd.crt", lone.folder / "device.key")
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=show, args=(context, server), daemon=True).start()
        pair.extra = {"cam-7": f"127.0.0.1:{server.getsockname()[1]}"}
        lone.download()
    assert (lone.error, lone.whole()) == (None, True)
    assert [fault.cause for fault in lone.faults] == ["peer-untrusted"]


def show(context: ssl.SSLContext, server: socket.socket) -> None:
    """Complete a TLS handshake and send nothing."""
    plain, _ = server.accept()
    with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
        connection.recv(1)


def test_unreachable_or_wrong_peer_addresses_do_not_fail_a_download(pair: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        pair.extra = {"cam-7": "127.0.0.1:1", "cam-8": "no address", "cam-6": f"127.0.0.1:{port}"}
        pair.extra["cam-9"] = f"127.0.0.1:{pair.devices[1].server.port}"  # it is cam-2 there
        pair.devices[0].download()
    assert pair.devices[0].whole()
    assert [fault.cause for fault in pair.devices[0].faults] == ["peer-untrusted"]


def test_wrong_bytes_from_the_artifact_server_are_refused(pair: Site) -> None:
    pair.wan.span = lambda *_: bytes(PIECE)
    pair.devices[0].download()
    assert isinstance(pair.devices[0].error, BundleError)


def test_a_withdrawn_assignment_ends_the_download(pair: Site) -> None:
    device = pair.devices[0]
    device.begin()
    with pytest.raises(LinkError, match="cancelled"):
        device.downloads.file("url", MODEL, FILE, lambda: True)


def open_connection(client: SiteDevice, peer: SiteDevice) -> PeerConnection:
    return connect(("127.0.0.1", peer.server.port), peer.name, client.folder, time.time())


def response_to(connection: ssl.SSLSocket, line: bytes) -> bytes:
    """First byte of the response; b"" when the connection is closed."""
    try:
        connection.sendall(line)
        return connection.recv(1)
    except OSError:
        return b""
    finally:
        connection.close()


def test_a_device_that_the_assignment_does_not_name_is_refused(pair: Site) -> None:
    client, peer = pair.devices
    peer.download()
    pair.allowed = {"cam-2"}
    line = open_connection(client, peer)
    with pytest.raises((OSError, ValueError)):
        line.request(PieceRequest(FILE.sha256, 0), PIECE)


def test_a_certificate_of_an_earlier_generation_is_refused_as_client_and_server(
    pair: Site,
) -> None:
    old, peer = pair.devices
    peer.download()
    pair.generations = {"cam-1": 1, "cam-2": 0}
    with pytest.raises((OSError, ValueError)):
        open_connection(old, peer).request(PieceRequest(FILE.sha256, 0), PIECE)
    with pytest.raises(UntrustedError):
        connect(("127.0.0.1", old.server.port), "cam-1", peer.folder, time.time(), 1)
    (pair.parent / "cam-1").rename(pair.parent / "before")
    anew = enrol(pair.parent, name="cam-1", beside=pair.first, generation=2).folder
    line = connect(("127.0.0.1", peer.server.port), "cam-2", anew, time.time(), 0)
    assert line.request(PieceRequest(FILE.sha256, 0), PIECE) == (PieceStatus.HAVE, DATA[:PIECE])


def test_a_certificate_of_another_ca_is_refused_as_client_and_server(
    pair: Site, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    stranger = enrol(tmp_path / "elsewhere", name="cam-1").folder
    peer = pair.devices[1]
    peer.download()
    with pytest.raises(UntrustedError):
        connect(("127.0.0.1", peer.server.port), "cam-2", stranger, time.time())
    plain = socket.create_connection(("127.0.0.1", peer.server.port))
    assert not response_to(
        client_context(stranger).wrap_socket(plain), PieceRequest(FILE.sha256, 0).encode()
    )


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\n",
        b"shoal-peer/1 ../../device.key 0\n",
        b"shoal-peer/1 " + b"0" * 64 + b" -1\n",
        b"shoal-peer/1 " + b"0" * 64 + b" 99999999\n",
        b"x" * 10_000,
        b"\xff\xfe\n",
    ],
)
def test_a_malformed_request_closes_the_connection(pair: Site, line: bytes) -> None:
    client, peer = pair.devices
    connection = open_connection(client, peer)._connection
    assert not response_to(connection, line)
    assert open_connection(client, peer).request(PieceRequest("0" * 64, 0), 1) == (
        PieceStatus.NONE,
        b"",
    )


def test_only_files_that_a_manifest_names_are_sent_and_only_with_matching_bytes(pair: Site) -> None:
    client, peer = pair.devices
    peer.download()
    line = open_connection(client, peer)
    assert line.request(PieceRequest(FILE.sha256, 0), PIECE) == (PieceStatus.HAVE, DATA[:PIECE])
    key = bundle.sha256_of(peer.folder / "device.key")
    assert line.request(PieceRequest(key, 0), PIECE) == (PieceStatus.NONE, b"")
    assert line.request(PieceRequest(FILE.sha256, 9), PIECE) == (PieceStatus.NONE, b"")
    path = peer.stage(MODEL) / FILE.name
    path.write_bytes(bytes(len(DATA)))  # the disk has gone bad
    assert line.request(PieceRequest(FILE.sha256, 1), PIECE) == (PieceStatus.NONE, b"")


def test_connections_are_bounded_and_closed_ones_free_their_place(
    pair: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, peer = pair.devices
    peer.download()
    lines = [open_connection(client, peer) for _ in range(listener.CONNECTIONS)]
    for line in lines:
        assert line.request(PieceRequest(FILE.sha256, 0), PIECE)[0] is PieceStatus.HAVE
    with pytest.raises((OSError, UntrustedError)):
        open_connection(client, peer).request(PieceRequest(FILE.sha256, 0), PIECE)
    for line in lines:
        line.close()
    end = time.monotonic() + 20
    while True:
        try:
            assert (
                open_connection(client, peer).request(PieceRequest(FILE.sha256, 0), PIECE)[0]
                is PieceStatus.HAVE
            )
            break
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_a_server_that_finishes_waits_for_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_ACCEPT_S", 600.0)
    site = Site(tmp_path, 1)
    site.end()
    site.devices[0].server.join(60)
    assert not site.devices[0].server.is_alive()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", site.devices[0].server.port))
