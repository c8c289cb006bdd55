"""The agent renews its certificate and follows the director, against the real API over real TLS."""

import random
import shutil
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from werkzeug.serving import make_server

from api.controller_app import ControllerApp, make_request, make_template
from shoal.agent import upkeep
from shoal.agent.host.faults import Fault
from shoal.agent.host.io.config import Settings
from shoal.agent.identity.io import renewal
from shoal.agent.identity.io.enrol import EnrolOptions, enrol
from shoal.agent.upkeep import CHECK_S, RETRY_S, Upkeep
from shoal.controller.fleet import devices, enrolment
from shoal.errors import DeniedError, LinkError, SettingError, TrustError, UntrustedError
from waiting import eventually

DAY_S = 86_400.0


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def controller(template: Path, tmp_path: Path) -> Iterator[ControllerApp]:
    made = ControllerApp(template, tmp_path / "controller")
    yield made
    made.ctx.store.close()


@pytest.fixture
def url(controller: ControllerApp) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pki = controller.ctx.folder / "pki"
    context.load_cert_chain(pki / "server.crt", pki / "server.key")
    server = make_server("localhost", 0, controller.app, threaded=True, ssl_context=context)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture
def folder(controller: ControllerApp, url: str, tmp_path: Path) -> Path:
    made = tmp_path / "cam-1"
    joined(made, controller, url)
    return made


def joined(folder: Path, controller: ControllerApp, url: str) -> Settings:
    options = EnrolOptions(controller=url, token=controller.join_token(), name="cam-1")
    return enrol(folder, options, {"arch": "x86_64", "flags": ["avx2"], "ram_mb": 4096})


def serial(folder: Path) -> int:
    return x509.load_pem_x509_certificate((folder / "device.crt").read_bytes()).serial_number


def is_a_pair(folder: Path) -> bool:
    """Whether TLS takes key and certificate together, as the link will."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(folder / "device.crt", folder / "device.key")
    return True


class Watched:
    """An upkeep whose thread is not started, and what it told."""

    def __init__(self, folder: Path, url: str, controller: ControllerApp) -> None:
        self.faults: list[Fault] = []
        self.roots: list[bytes] = []
        self.upkeep = Upkeep(
            folder, url, "cam-1", clock=controller.clock, random=random.Random(3),
            on_fault=self.faults.append, on_root=self.roots.append,
        )  # fmt: skip


def test_nothing_is_asked_for_before_two_thirds_of_its_life(
    controller: ControllerApp, url: str, folder: Path
) -> None:
    first, watched = serial(folder), Watched(folder, url, controller)
    controller.clock.now += 59 * DAY_S
    assert CHECK_S / 2 <= watched.upkeep.check() <= CHECK_S
    assert serial(folder) == first
    controller.clock.now += 8 * DAY_S
    watched.upkeep.check()
    assert serial(folder) != first
    assert is_a_pair(folder)
    assert watched.faults == []
    assert devices.get_device(controller.ctx, "cam-1").certificate_expires_at > (
        controller.clock.now + 89 * DAY_S
    )


def test_a_clock_that_is_set_past_the_time_of_renewal_is_noticed_without_asking_anybody(
    controller: ControllerApp, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "LOOK_S", 0.02)
    first, watched = serial(folder), Watched(folder, url, controller)
    checks, check = [], watched.upkeep.check
    monkeypatch.setattr(watched.upkeep, "check", lambda: checks.append(check()) or CHECK_S)
    watched.upkeep.start()
    time.sleep(0.1)
    assert (checks, serial(folder)) == ([], first), "looks ask nobody"
    controller.clock.now += 70 * DAY_S
    eventually(lambda: serial(folder) != first, "a new certificate")
    watched.upkeep.finish()
    watched.upkeep.join()
    assert len(checks) == 1


def test_key_and_certificate_are_new_and_the_brokers_session_keeps_its_name(
    controller: ControllerApp, url: str, folder: Path
) -> None:
    name, key = renewal.session_name(folder, "cam-1"), (folder / "device.key").read_bytes()
    renewal.renew(folder, url, "cam-1")
    assert (folder / "device.key").read_bytes() != key
    assert renewal.session_name(folder, "cam-1") == name
    assert (folder / "device.key").stat().st_mode & 0o077 == 0
    assert not (folder / "renewed.pem").exists()


@pytest.mark.parametrize("cut", range(5))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_wherever_the_power_fails_a_pair_is_there_that_can_renew_again(
    cut: int, after: bool, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, real = 0, renewal.write_durable

    def write(path: Path, data: bytes, mode: int = 0o644) -> None:
        nonlocal writes
        writes += 1
        if after:
            real(path, data, mode)
        if writes == cut + 1:
            raise KeyboardInterrupt
        if not after:
            real(path, data, mode)

    monkeypatch.setattr(renewal, "write_durable", write)
    with pytest.raises(KeyboardInterrupt):
        renewal.renew(folder, url, "cam-1")
    monkeypatch.undo()
    renewal.complete_renewal(folder)
    assert is_a_pair(folder)
    renewal.renew(folder, url, "cam-1")
    assert is_a_pair(folder)


def test_an_answer_that_was_lost_is_asked_for_again(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise LinkError("the line went dead")

    monkeypatch.setattr(renewal, "_save", lost)
    with pytest.raises(LinkError):
        renewal.renew(folder, url, "cam-1")
    monkeypatch.undo()
    renewal.renew(folder, url, "cam-1")
    assert is_a_pair(folder)


def test_an_address_without_a_ca_is_reported_as_no_controller(url: str, tmp_path: Path) -> None:
    token = f"sj1.{'a' * 10}.{'b' * 32}.{'0' * 64}"
    options = EnrolOptions(controller=f"{url}/console", token=token, name="cam-1")
    with pytest.raises(LinkError, match=r"has no /ca\.pem; is this the controller's address"):
        enrol(tmp_path / "cam-1", options, {})


def test_a_folder_that_is_a_device_already_does_not_become_another_one(
    controller: ControllerApp, url: str, folder: Path
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    token = controller.join_token()
    with pytest.raises(SettingError, match="is the device 'cam-1' already") as told:
        enrol(folder, EnrolOptions(controller=url, token=token, name="cam-2"), {})
    assert "--folder" in told.value.hint
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    enrol(folder.parent / "cam-2", EnrolOptions(controller=url, token=token, name="cam-2"), {})


def test_an_enrolment_whose_answer_was_lost_is_done_again_with_the_same_token(
    controller: ControllerApp, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, folder = controller.join_token(uses=1), tmp_path / "cam-2"
    options = EnrolOptions(controller=url, token=token, name="cam-2")
    real = enrolment._response

    def cut(*given: object) -> object:
        monkeypatch.setattr(enrolment, "_response", real)
        raise TypeError("the connection ended here")

    monkeypatch.setattr(enrolment, "_response", cut)
    with pytest.raises(LinkError):
        enrol(folder, options, {"arch": "x86_64"})
    assert devices.get_device(controller.ctx, "cam-2").state == "enrolled"
    assert enrol(folder, options, {"arch": "x86_64"}).device.name == "cam-2"
    with pytest.raises(DeniedError):
        enrol(tmp_path / "cam-3", EnrolOptions(controller=url, token=token, name="cam-3"), {})


def test_a_decommissioned_device_gets_the_reason_and_keeps_trying(
    controller: ControllerApp, url: str, folder: Path
) -> None:
    watched = Watched(folder, url, controller)
    enrolment.decommission(controller.ctx, actor="test", device="cam-1")
    controller.clock.now += 70 * DAY_S
    assert watched.upkeep.check() <= RETRY_S
    assert [(f.cause, f.severity) for f in watched.faults] == [("certificate", "warning")]
    assert "not enrolled" in watched.faults[0].detail
    controller.clock.now += 15 * DAY_S
    watched.upkeep.check()
    assert watched.faults[-1].severity == "critical"


def test_a_renewal_that_works_again_ends_the_fault_of_the_one_that_did_not(
    controller: ControllerApp, url: str, folder: Path
) -> None:
    watched = Watched(folder, "https://127.0.0.1:1", controller)
    controller.clock.now += 85 * DAY_S
    watched.upkeep.check()
    assert watched.faults[0].severity == "critical"
    watched.upkeep._controller = url
    watched.upkeep.check()
    over = [fault.cause for fault in watched.faults if fault.facts.get("ended")]
    assert over == ["certificate", "director"]
    assert serial(folder)


def test_a_device_whose_name_was_taken_again_renews_like_any_other(
    controller: ControllerApp, url: str, folder: Path
) -> None:
    enrolment.decommission(controller.ctx, actor="test", device="cam-1")
    joined(folder, controller, url)
    first, watched = serial(folder), Watched(folder, url, controller)
    controller.clock.now += 70 * DAY_S
    watched.upkeep.check()
    assert watched.faults == []
    assert serial(folder) != first
    leaf = x509.load_pem_x509_certificate((folder / "device.crt").read_bytes())
    assert leaf.subject.rfc4514_string() == "CN=cam-1.1,O=shoal"


def test_a_controller_out_of_reach_is_no_news_while_there_is_time(
    controller: ControllerApp, folder: Path
) -> None:
    watched = Watched(folder, "https://127.0.0.1:1", controller)
    controller.clock.now += 70 * DAY_S
    watched.upkeep.check()
    assert {f.severity for f in watched.faults} == {"info"}


def test_another_controller_of_the_same_name_renews_nothing(
    controller: ControllerApp, url: str, folder: Path, tmp_path: Path
) -> None:
    """Its CA is another: the TLS connection is not even made."""
    other = ControllerApp(make_template(tmp_path / "other"), tmp_path / "other-copy")
    shutil.copy(other.ctx.folder / "pki" / "ca.pem", folder / "ca.pem")
    other.ctx.store.close()
    first = serial(folder)
    with pytest.raises(LinkError):
        renewal.renew(folder, url, "cam-1")
    assert serial(folder) == first


def test_a_certificate_that_is_not_ours_is_not_kept(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = serial(folder)
    monkeypatch.setattr(renewal, "make_csr", lambda key, name: make_request())
    with pytest.raises(UntrustedError):
        renewal.renew(folder, url, "cam-1")
    assert serial(folder) == first
    assert is_a_pair(folder)


def test_the_directors_new_root_is_followed_and_reported(
    controller: ControllerApp, url: str, folder: Path
) -> None:
    watched = Watched(folder, url, controller)
    watched.upkeep.check()
    assert watched.roots == []
    controller.ctx.signer.refresh_timestamps(controller.clock.now + 300 * DAY_S)
    controller.ctx.signer.refresh_timestamps(controller.clock.now + 600 * DAY_S)
    watched.upkeep.check()
    assert watched.roots == [controller.ctx.signer.director_root]
    assert (folder / "director.json").read_bytes() == controller.ctx.signer.director_root


def test_a_root_that_the_old_one_did_not_sign_is_refused(
    controller: ControllerApp, url: str, folder: Path, tmp_path: Path
) -> None:
    stranger = ControllerApp(make_template(tmp_path / "other"), tmp_path / "other-copy")
    stranger.ctx.signer.refresh_timestamps(controller.clock.now + 300 * DAY_S)
    forged, trusted = stranger.ctx.signer.director_root, (folder / "director.json").read_bytes()
    stranger.ctx.store.close()
    (controller.ctx.folder / "repository" / "director" / "2.root.json").write_bytes(forged)
    with pytest.raises(UntrustedError):
        renewal.refresh_director(folder, url)
    (controller.ctx.folder / "repository" / "director" / "2.root.json").write_bytes(b"{}")
    with pytest.raises(TrustError):
        renewal.refresh_director(folder, url)
    assert (folder / "director.json").read_bytes() == trusted
