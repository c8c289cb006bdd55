"""`from shoal.agent import Client, Session`: a program on the device uses its models."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from devices import MODEL, engine, softmax
from endpoints import Running
from real_agents import Process, enrol
from real_models import FEATURES, answers, mlp, put_release
from shoal import bundle, wire
from shoal.agent import Client, Session
from shoal.agent.host.faults import Fault
from shoal.agent.host.io import config
from shoal.agent.host.io.folder import JOURNAL, MODELS, SETTINGS, SOCKET, SPOOL
from shoal.agent.installed.io.journal import SqliteJournal
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.installed.record import Record, Slot, State
from shoal.agent.serving.io import window_spool
from shoal.agent.serving.io.window_spool import WindowSpool
from shoal.agent.telemetry.io.outbox_store import SqliteOutbox
from shoal.errors import AbsentError, BundleError, InputError, LinkError
from shoal.sketch import Sketch
from shoal.wire import Health

ROWS = np.array([[0.5, -0.5], [1, 2]], np.float32)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.stop()


def test_importing_the_sdk_loads_nothing_heavy() -> None:
    script = (
        "import sys, shoal.agent;"
        "assert not {'numpy', 'onnxruntime', 'msgspec'} & set(sys.modules);"
        "from shoal.agent import Client; assert 'onnxruntime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_name_that_the_sdk_does_not_have_is_an_attribute_error() -> None:
    import shoal.agent

    with pytest.raises(AttributeError, match="Server"):
        shoal.agent.Server  # noqa: B018


# ---------------------------------------------------------------------------- Client


def test_a_client_gets_arrays_and_follows_a_swap(running: Running) -> None:
    with Client(MODEL, running.path.parent) as client:
        assert client.ready()
        np.testing.assert_allclose(client.infer(ROWS), softmax(ROWS, 3), rtol=1e-5)
        assert client.release == "lot-codes@3"
        running.serving.swap(engine(4), Health())
        np.testing.assert_allclose(client.infer(ROWS.tolist()), softmax(ROWS, 4), rtol=1e-5)
        assert client.release == "lot-codes@4"
        found = client.describe()
        assert (found.release, found.labels) == ("lot-codes@4", ["good", "bad", "odd"])
        assert found.features == ["contrast", "blur"]


def test_a_client_raises_what_is_wrong_and_stays_usable(running: Running) -> None:
    client = Client(MODEL, running.path.parent)
    for rows, message in (
        (np.zeros((1, 3)), "whole rows of 8 bytes"),
        (np.zeros(2), "send .rows, features"),
        ([[np.nan, 0]], "'contrast' is missing"),
    ):
        with pytest.raises(InputError, match=message):
            client.infer(rows)
    with pytest.raises(AbsentError, match=MODEL):
        Client("other", running.path.parent).infer(ROWS)
    assert client.infer(ROWS).shape == (2, 3)


def test_a_client_survives_an_agent_that_starts_again(tmp_path: Path) -> None:
    first = Running(tmp_path)
    client = Client(MODEL, tmp_path)
    client.infer(ROWS)
    first.stop()
    assert not client.ready()
    with pytest.raises(LinkError, match="is shoal-agent running"):
        client.infer(ROWS)
    second = Running(tmp_path)
    assert client.infer(ROWS).shape == (2, 3)
    second.stop()


def test_a_client_is_shared_by_threads(running: Running) -> None:
    client, wrong = Client(MODEL, running.path.parent), list[int]()

    def infer(seed: int) -> None:
        rows = np.random.default_rng(seed).normal(size=(1, 2)).astype(np.float32)
        for _ in range(30):
            if not np.allclose(client.infer(rows), softmax(rows, 3), rtol=1e-4):
                wrong.append(seed)

    threads = [threading.Thread(target=infer, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


BROKEN_RESPONSES = {
    "nothing": b"",
    "half a response": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
    "no length": b"HTTP/1.1 200 OK\r\n\r\n",
    "another protocol": b"\x16\x03\x01\r\n\r\n",
}


@pytest.mark.parametrize("kind", BROKEN_RESPONSES)
def test_a_broken_response_is_a_link_error(kind: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / SOCKET))
        listening.listen()

        def respond() -> None:
            peer, _ = listening.accept()
            with peer:
                peer.recv(1 << 16)
                peer.sendall(BROKEN_RESPONSES[kind])

        responding = threading.Thread(target=respond)
        responding.start()
        with pytest.raises(LinkError):
            Client(MODEL, tmp_path, timeout_s=5).infer(ROWS)
        responding.join()


# ---------------------------------------------------------------------------- Session


GIVEN = np.random.default_rng(4).normal(size=(3, FEATURES)).astype(np.float32)


class Folder:
    """An agent's folder with installed releases."""

    def __init__(self, path: Path) -> None:
        self.path, self.slots = path, DiskSlots(path / MODELS)
        if not (path / SETTINGS).exists():
            device = config.Device(name="cam-1", profile="x86-vnni")
            (path / SETTINGS).write_text(config.dump(config.Settings(device=device)))
        self.install(1, "a")

    def install(self, version: int, slot: str, damage: bool = False) -> None:
        folder = self.slots.path("parts", slot)
        model = mlp(seed=version).SerializeToString()
        manifest = put_release(folder, version=version, models={"fp32": model})
        if damage:
            (folder / "fp32.onnx").write_bytes(b"")
        self.slots.point(
            "parts",
            Slot(
                slot=slot,
                model="parts",
                release=manifest.release,
                path=f"release/parts/{version}/manifest.json",
                sha256=bundle.sha256_of(folder / bundle.MANIFEST),
                variant="fp32",
                model_sha256=manifest.variant("fp32").file.sha256,
                counter=1,
            ),
        )

    def want(self, version: int) -> np.ndarray:
        return answers(mlp(seed=version).SerializeToString(), GIVEN)

    def windows(self) -> list[wire.WindowReport]:
        """Windows that sessions have written, read as the agent reads them."""
        found: list[wire.WindowReport] = []
        WindowSpool(self.path / SPOOL).take(lambda report, key: not found.append(report), _no_fault)
        return found


def _no_fault(fault: Fault) -> None:
    pytest.fail(fault.detail)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_session_infers_in_process_and_its_windows_reach_the_agent(folder: Folder) -> None:
    with Session(folder=folder.path) as session:
        np.testing.assert_array_equal(session.infer(GIVEN), folder.want(1))
        session.infer(GIVEN, np.zeros(3, np.float32))
        with pytest.raises(InputError):
            session.infer(np.full((1, FEATURES), np.nan, np.float32))
    (window,) = folder.windows()
    assert (window.release, window.rows, window.errors, window.labelled) == ("parts@1", 6, 1, 3)
    engine_references = folder.slots.path("parts", "a")
    references = bundle.read_references(engine_references, bundle.read_manifest(engine_references))
    assert window.reference == references.id
    assert Sketch.from_bytes(references.inputs, window.inputs).rows == 6
    assert folder.windows() == []


def test_a_session_follows_the_swap_and_no_window_mixes_two_releases(folder: Folder) -> None:
    with Session("parts", folder.path, look_s=0.01) as session:
        session.infer(GIVEN)
        folder.install(2, "b")
        for _ in range(1_000):
            if session.release == "parts@2":
                break
            threading.Event().wait(0.01)
        np.testing.assert_array_equal(session.infer(GIVEN), folder.want(2))
    assert [(w.release, w.rows) for w in folder.windows()] == [("parts@1", 3), ("parts@2", 3)]


def test_a_session_keeps_serving_when_the_new_release_is_damaged(folder: Folder) -> None:
    from shoal.agent.serving.io.embedded import Follower
    from shoal.agent.serving.io.runtime import OrtLoader
    from shoal.agent.serving.served_model import ServedModel
    from shoal.profile import profile

    serving = ServedModel("parts", clock=lambda: 1.0, timer=lambda: 0.0, lock=threading.Lock())
    follower = Follower(
        serving,
        slots=folder.slots,
        loader=OrtLoader(folder.slots.path),
        profile=profile("x86-vnni"),
    )
    follower.refresh()
    folder.install(2, "b", damage=True)
    with pytest.raises(BundleError):
        follower.refresh()
    assert follower.refresh() is None
    np.testing.assert_array_equal(serving.infer(GIVEN), folder.want(1))
    folder.install(3, "b")
    follower.refresh()
    np.testing.assert_array_equal(serving.infer(GIVEN), folder.want(3))


def test_a_session_of_a_model_that_the_device_does_not_have_is_refused(folder: Folder) -> None:
    with Session("other", folder.path) as session, pytest.raises(AbsentError, match="roll one out"):
        session.infer(GIVEN)
    folder.slots.point("parts", None)
    with pytest.raises(AbsentError, match="name the one you mean"):
        Session(folder=folder.path)


def report(start_s: float = 1_000.0) -> wire.WindowReport:
    return wire.WindowReport(
        device="",
        boot="",
        seq=0,
        sent_s=1.0,
        model="parts",
        release="parts@1",
        reference="r",
        window_start_s=start_s,
        window_s=60.0,
        rows=3,
    )


def test_a_window_stays_until_the_outbox_has_it(tmp_path: Path) -> None:
    waiting = WindowSpool(tmp_path / "spool")
    waiting.put(report(), "1")
    keys: list[str] = []
    waiting.take(lambda report, key: bool(keys.append(key)), _no_fault)
    waiting.take(lambda report, key: not keys.append(key), _no_fault)
    waiting.take(lambda report, key: not keys.append(key), _no_fault)
    assert keys == ["00000001000000000-1.window"] * 2


def test_a_file_that_is_no_window_is_reported_once_and_deleted(tmp_path: Path) -> None:
    (tmp_path / "x.window").write_bytes(b"no message")
    (tmp_path / "y.window").write_bytes(b"\0" * (wire.LIMIT["window"] + 1))
    (tmp_path / "z.window.new").write_bytes(b"half written")
    faults: list[Fault] = []
    for _ in range(2):
        WindowSpool(tmp_path).take(lambda report, key: True, faults.append)
    assert len(faults) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["z.window.new"]


def test_a_spool_that_the_agent_does_not_read_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_spool, "KEPT", 3)
    waiting = WindowSpool(tmp_path)
    for i in range(6):
        waiting.put(report(float(i)), "p")
    starts: list[float] = []
    waiting.take(lambda report, key: not starts.append(report.window_start_s), _no_fault)
    assert starts == [3.0, 4.0, 5.0]


def test_a_window_is_in_the_outbox_once_however_often_it_is_read(tmp_path: Path) -> None:
    from devices import Cloud, Device

    device = Device(tmp_path / "device", Cloud())
    device.acks = False
    waiting = WindowSpool(tmp_path / "spool")
    waiting.put(report(), "1")
    for _ in range(2):  # the power fails between the outbox and the deletion
        waiting.take(lambda r, key: not device.agent.reporter.add(r, key), _no_fault)
    device.run(2)
    (window,) = (w for w in device.windows() if w.release == "parts@1")
    assert window.device == "cam-1"
    assert msgspec.structs.replace(window, device="", boot="", seq=0, sent_s=1.0) == report()


def test_windows_of_a_session_reach_the_outbox_of_a_real_agent(tmp_path: Path) -> None:
    device = enrol(tmp_path).folder
    installed = Folder(device)
    journal = SqliteJournal(device / JOURNAL)
    journal.save(Record(model="parts", serving=installed.slots.found()[0], state=State.IDLE))
    journal.close()
    config_of = config.load(device)
    (device / SETTINGS).write_text(
        config.dump(msgspec.structs.replace(config_of, source=None, sources={}))
    )
    with Session("parts", device) as session:
        session.infer(GIVEN)  # before the agent has ever run
    agent = Process(device)
    agent.wait_until()
    with Session("parts", device) as session, Client("parts", device) as client:
        np.testing.assert_array_equal(session.infer(GIVEN), installed.want(1))
        np.testing.assert_array_equal(client.infer(GIVEN), installed.want(1))
    agent.wait_for(lambda: not list((device / SPOOL).glob("*.window")))
    assert agent.end() == 0
    outbox = SqliteOutbox(device / "outbox.db", limit_bytes=1 << 20, boot_name=lambda: "x")
    kept = [wire.decode_up(x.kind, x.payload) for x in outbox.after(0, 99)]
    rows = [m.rows for m in kept if isinstance(m, wire.WindowReport) and m.rows]
    assert rows == [3, 3, 3]  # two sessions, and the endpoint that the client used
    outbox.close()
