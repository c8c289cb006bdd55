"""What neighbours may ask, what they are believed, and what they cost at worst.

The real asking and answering code over real TLS with devices' certificates; the artifact server
is a function that counts.
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
from shoal.agent.peers.io.downloader import Neighbourly, Site
from shoal.agent.peers.io.protocol import Line, Wish, asking_context, call
from shoal.agent.peers.io.server import Board, Sharing, Shelf
from shoal.agent.peers.policy import Word
from shoal.errors import BundleError, LinkError, UntrustedError
from shoal.manifest import PIECE, File

MODEL = "parts"
DATA = np.random.default_rng(3).bytes(5 * PIECE + 77)
FILE = bundle.describe("model.onnx", DATA)


class Wan:
    """The artifact server. away: it cannot be reached."""

    def __init__(self) -> None:
        self.sent, self.away, self.whole = 0, False, 0
        self.pause_s = 0.02

    def span(self, url: str, start: int, end: int, size: int, stop: Callable[[], bool]) -> bytes:
        if self.away:
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


class House:
    """One device: its folder, what it downloads by, and what it shares by."""

    def __init__(self, town: "Town", name: str, folder: Path) -> None:
        self.town, self.name, self.folder, self.faults = town, name, folder, list[Fault]()
        self.slots, board, self.told = DiskSlots(folder / "models"), Board(), True
        self.sharing = Sharing(
            folder, ("127.0.0.1", 0), shelf=Shelf(folder / "models", time.monotonic),
            board=board, max_kbps=0, sleep=time.sleep,
            allowed=lambda: town.allowed if self.told else (),
            generations=lambda: town.generations,
        )  # fmt: skip
        site = Site(
            folder=folder, me=name, named=lambda: town.addresses(name), fault=self.faults.append,
            wall=time.time, monotonic=time.monotonic, sleep=time.sleep,
            random=random.Random(name),
        )  # fmt: skip
        self.downloads = Neighbourly(town.wan, site, board, self.stage)
        self.came, self.error = -1, None

    def stage(self, model: str) -> Path:
        return self.slots.path(model, "stage")

    def begin(self, file: File = FILE) -> None:
        """A stage with the manifest that names the file, as an update leaves it."""
        self.slots.put_manifest(MODEL, self.town.manifest)

    def download(self, file: File = FILE) -> None:
        self.begin(file)
        try:
            self.came = self.downloads.file("url", MODEL, file, lambda: False)
        except Exception as error:
            self.error = error

    def whole(self) -> bool:
        path = self.stage(MODEL) / FILE.name
        return path.is_file() and path.read_bytes() == DATA


class Town:
    """Devices of one site; `extra` are addresses that nobody of ours is at."""

    def __init__(self, parent: Path, count: int) -> None:
        self.wan, self.houses, self.extra = Wan(), list[House](), dict[str, str]()
        self.manifest = manifest_of(FILE)
        first = None
        for n in range(1, count + 1):
            made = enrol(parent, name=f"cam-{n}", beside=first)
            first = first or made
            self.houses.append(House(self, f"cam-{n}", made.folder))
            self.houses[-1].sharing.start()
        self.parent, self.first = parent, first
        self.allowed = {house.name for house in self.houses}
        self.generations = dict[str, int]()

    def addresses(self, me: str) -> dict[str, str]:
        ports = {house.name: house.sharing.port for house in self.houses}
        return {n: f"127.0.0.1:{p}" for n, p in ports.items() if n != me} | self.extra

    def all_download(self) -> None:
        threads = [threading.Thread(target=house.download) for house in self.houses]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for house in self.houses:
            assert house.error is None, house.error
            assert house.whole()

    def end(self) -> None:
        for house in self.houses:
            house.sharing.finish()


def manifest_of(file: File) -> bytes:
    from devices import Cloud

    made = Cloud().manifest(1, 1, MODEL, b"")
    from msgspec.structs import replace

    return manifests.encode(replace(made, card=file))


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    made = Town(tmp_path, 4)
    yield made
    made.end()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Town]:
    made = Town(tmp_path, 2)
    yield made
    made.end()


def test_every_byte_comes_over_the_wide_network_once(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CONNECT_S", "SILENCE_S"):  # a busy machine must not look like a dead neighbour
        monkeypatch.setattr(protocol, name, 30.0)
    town.all_download()
    assert town.wan.sent == len(DATA)
    assert sum(house.came for house in town.houses) == len(DATA)
    assert not any(house.faults for house in town.houses)


def test_of_devices_that_begin_together_one_fetches_a_file_of_one_piece(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CONNECT_S", "SILENCE_S"):  # a busy machine must not look like a dead neighbour
        monkeypatch.setattr(protocol, name, 30.0)
    for head_start_s in (0.0, downloader.HEAD_START_S):  # without one the claims alone decide
        monkeypatch.setattr(downloader, "HEAD_START_S", head_start_s)
        for size in range(370_000, 370_006):  # another ranking each
            assert together(town, bundle.describe("model.onnx", DATA[:size])) == size


def together(town: Town, file: File) -> int:
    """Bytes sent for `file` when all hear of it, and of each other, within 30 ms."""
    town.wan.sent, town.manifest, chance = 0, manifest_of(file), random.Random(file.sha256)
    for house in town.houses:
        house.told, house.begun_s = False, chance.uniform(0.0, 0.03)

    def begin(house: House) -> None:
        time.sleep(house.begun_s)
        house.told = True
        house.download(file)

    threads = [threading.Thread(target=begin, args=(house,)) for house in town.houses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [house.error for house in town.houses] == [None] * len(town.houses)
    return town.wan.sent


def test_a_file_that_moves_into_its_slot_can_be_had_all_the_time(pair: Town) -> None:
    asker, asked = pair.houses
    asked.download()
    line = line_to(asker, asked)
    assert line.ask(Wish(FILE.sha256, 0), PIECE)[0] is Word.HAVE
    stage = asked.stage(MODEL)
    stage.rename(stage.with_name("a"))
    assert line.ask(Wish(FILE.sha256, 0), PIECE)[0] is Word.HAVE


def test_who_comes_later_needs_the_wide_network_no_more(pair: Town) -> None:
    early, late = pair.houses
    early.download()
    pair.wan.away = True
    late.download()
    assert (late.error, late.came, late.whole()) == (None, 0, True)


def test_without_neighbours_or_pieces_a_file_comes_as_ever(pair: Town) -> None:
    lone = pair.houses[0]
    plain = File(name="model.onnx", size=len(DATA), sha256=FILE.sha256)
    lone.download(plain)
    pair.houses[:] = [lone]
    lone.download()
    assert pair.wan.whole == 2


def test_a_download_that_was_cut_goes_on_at_the_piece_where_it_stopped(pair: Town) -> None:
    house = pair.houses[0]
    house.begin()
    (house.stage(MODEL) / f"{FILE.sha256}.part").write_bytes(DATA[: 2 * PIECE + 5])
    house.download()
    assert (house.came, house.whole()) == (len(DATA) - 2 * PIECE, True)


def test_an_old_part_that_is_wrong_is_thrown_away_and_said(pair: Town) -> None:
    house = pair.houses[0]
    house.begin()
    part = house.stage(MODEL) / f"{FILE.sha256}.part"
    part.write_bytes(bytes(2 * PIECE))
    house.download()
    assert isinstance(house.error, BundleError)
    assert not part.exists()


class Liar(Shelf):
    def piece(self, wish: Wish) -> bytes:
        return bytes(FILE.pieces()[wish.number].stop - FILE.pieces()[wish.number].start)


class Staller(Shelf):
    """Never has anything; its board says that it is about to."""

    def piece(self, wish: Wish) -> None:
        return None


class Eternal(Board):
    def word(self, wish: Wish) -> Word:
        return Word.FETCHING


def test_a_neighbour_that_lies_is_asked_once(pair: Town) -> None:
    honest, liar = pair.houses
    liar.sharing._shelf = Liar(liar.folder, time.monotonic)
    honest.download()
    assert (honest.came, honest.whole()) == (len(DATA), True)
    assert [fault.cause for fault in honest.faults] == ["peer-lied"]
    assert "cam-2 gave a piece of model.onnx" in honest.faults[0].detail


def test_a_neighbour_that_only_says_that_it_fetches_costs_patience_once(
    pair: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloader, "PATIENCE_S", 1.5)
    honest, staller = pair.houses
    staller.sharing._board = Eternal()
    began = time.monotonic()
    honest.download()
    assert honest.whole()
    assert time.monotonic() - began >= 1.5
    assert honest.downloads.quiet["cam-2"] > time.monotonic() + 60


class Dribbler(Sharing):
    """Has every piece, and gives a byte of it now and then; `wish` tells when it was asked."""

    def _answer(self, connection: ssl.SSLSocket, wish: Wish) -> None:
        piece = FILE.pieces()[wish.number]
        connection.sendall(b"have %d\n" % (piece.stop - piece.start))
        self.asked = getattr(self, "asked", 0) + 1
        while not self._ending.is_set():
            connection.sendall(b"x")
            time.sleep(0.05)


def test_a_neighbour_that_gives_a_byte_now_and_then_costs_one_deadline(
    pair: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "SLOWEST_BPS", 1e9)
    monkeypatch.setattr(protocol, "SILENCE_S", 2.0)
    honest, dribbler = pair.houses
    dribbler.sharing.__class__ = Dribbler
    honest.download()
    assert (honest.error, honest.came, honest.whole()) == (None, len(DATA), True)
    assert dribbler.sharing.asked == 1
    assert honest.downloads.quiet["cam-2"] > time.monotonic() + 60


def test_a_download_that_is_taken_back_does_not_wait_for_a_piece_that_dribbles_in(
    pair: Town,
) -> None:
    honest, dribbler = pair.houses
    dribbler.sharing.__class__ = Dribbler
    honest.begin()
    with pytest.raises(LinkError, match="taken back"):
        honest.downloads.file("url", MODEL, FILE, lambda: getattr(dribbler.sharing, "asked", 0) > 0)
    assert (pair.wan.sent, honest.downloads.quiet) == (0, {})


def test_a_certificate_that_nobody_can_read_costs_a_download_nothing(
    pair: Town, tmp_path: Path
) -> None:
    """Anybody at a neighbour's address may show one of "X.509 v10": an error of its own."""
    lone = pair.houses[0]
    pair.houses[1].sharing.finish()
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
    """A handshake, and no word."""
    plain, _ = server.accept()
    with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
        connection.recv(1)


def test_addresses_where_nobody_or_somebody_else_is_cost_no_download(pair: Town) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        pair.extra = {"cam-7": "127.0.0.1:1", "cam-8": "no address", "cam-6": f"127.0.0.1:{port}"}
        pair.extra["cam-9"] = f"127.0.0.1:{pair.houses[1].sharing.port}"  # it is cam-2 there
        pair.houses[0].download()
    assert pair.houses[0].whole()
    assert [fault.cause for fault in pair.houses[0].faults] == ["peer-untrusted"]


def test_a_wrong_answer_of_the_artifact_server_is_refused(pair: Town) -> None:
    pair.wan.span = lambda *_: bytes(PIECE)
    pair.houses[0].download()
    assert isinstance(pair.houses[0].error, BundleError)


def test_an_order_that_is_taken_back_ends_the_download(pair: Town) -> None:
    house = pair.houses[0]
    house.begin()
    with pytest.raises(LinkError, match="taken back"):
        house.downloads.file("url", MODEL, FILE, lambda: True)


def line_to(asker: House, asked: House) -> Line:
    return call(("127.0.0.1", asked.sharing.port), asked.name, asker.folder, time.time())


def answered(connection: ssl.SSLSocket, line: bytes) -> bytes:
    """What comes back; nothing when the other end hangs up."""
    try:
        connection.sendall(line)
        return connection.recv(1)
    except OSError:
        return b""
    finally:
        connection.close()


def test_a_device_that_the_controller_does_not_name_hears_nothing(pair: Town) -> None:
    asker, asked = pair.houses
    asked.download()
    pair.allowed = {"cam-2"}
    line = line_to(asker, asked)
    with pytest.raises((OSError, ValueError)):
        line.ask(Wish(FILE.sha256, 0), PIECE)


def test_a_certificate_of_before_the_name_was_given_away_is_neither_served_nor_believed(
    pair: Town,
) -> None:
    old, asked = pair.houses
    asked.download()
    pair.generations = {"cam-1": 1, "cam-2": 0}
    with pytest.raises((OSError, ValueError)):
        line_to(old, asked).ask(Wish(FILE.sha256, 0), PIECE)
    with pytest.raises(UntrustedError):
        call(("127.0.0.1", old.sharing.port), "cam-1", asked.folder, time.time(), 1)
    (pair.parent / "cam-1").rename(pair.parent / "before")
    anew = enrol(pair.parent, name="cam-1", beside=pair.first, generation=2).folder
    line = call(("127.0.0.1", asked.sharing.port), "cam-2", anew, time.time(), 0)
    assert line.ask(Wish(FILE.sha256, 0), PIECE) == (Word.HAVE, DATA[:PIECE])


def test_who_is_of_another_ca_is_neither_answered_nor_believed(pair: Town, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    stranger = enrol(tmp_path / "elsewhere", name="cam-1").folder
    asked = pair.houses[1]
    asked.download()
    with pytest.raises(UntrustedError):
        call(("127.0.0.1", asked.sharing.port), "cam-2", stranger, time.time())
    plain = socket.create_connection(("127.0.0.1", asked.sharing.port))
    assert not answered(asking_context(stranger).wrap_socket(plain), Wish(FILE.sha256, 0).line())


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
def test_what_is_no_question_ends_the_conversation(pair: Town, line: bytes) -> None:
    asker, asked = pair.houses
    connection = line_to(asker, asked)._connection
    assert not answered(connection, line)
    assert line_to(asker, asked).ask(Wish("0" * 64, 0), 1) == (Word.NONE, b"")


def test_only_what_a_manifest_names_is_given_and_only_when_it_is_true(pair: Town) -> None:
    asker, asked = pair.houses
    asked.download()
    line = line_to(asker, asked)
    assert line.ask(Wish(FILE.sha256, 0), PIECE) == (Word.HAVE, DATA[:PIECE])
    key = bundle.sha256_of(asked.folder / "device.key")
    assert line.ask(Wish(key, 0), PIECE) == (Word.NONE, b"")
    assert line.ask(Wish(FILE.sha256, 9), PIECE) == (Word.NONE, b"")
    path = asked.stage(MODEL) / FILE.name
    path.write_bytes(bytes(len(DATA)))  # the disk has gone bad
    assert line.ask(Wish(FILE.sha256, 1), PIECE) == (Word.NONE, b"")


def test_connections_are_bounded_and_room_comes_back(
    pair: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    asker, asked = pair.houses
    asked.download()
    lines = [line_to(asker, asked) for _ in range(listener.CONNECTIONS)]
    for line in lines:
        assert line.ask(Wish(FILE.sha256, 0), PIECE)[0] is Word.HAVE
    with pytest.raises((OSError, UntrustedError)):
        line_to(asker, asked).ask(Wish(FILE.sha256, 0), PIECE)
    for line in lines:
        line.close()
    end = time.monotonic() + 20
    while True:
        try:
            assert line_to(asker, asked).ask(Wish(FILE.sha256, 0), PIECE)[0] is Word.HAVE
            break
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_who_is_told_to_finish_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_ACCEPT_S", 600.0)
    town = Town(tmp_path, 1)
    town.end()
    town.houses[0].sharing.join(60)
    assert not town.houses[0].sharing.is_alive()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", town.houses[0].sharing.port))
