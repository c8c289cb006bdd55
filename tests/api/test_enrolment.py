"""How a device joins, and how it leaves."""

import json
import threading
from typing import Any

import pytest
from cryptography import x509

from api.controller_app import ControllerApp, is_problem, make_request
from shoal import enrolment
from shoal.controller.broker.io.process import EnrolledDevices
from shoal.controller.fleet import devices
from shoal.controller.rollouts import assignments
from shoal.controller.store.rollout_tables import assignment


def test_a_device_with_a_token_gets_everything_it_needs(controller: ControllerApp) -> None:
    response = controller.enrol(
        "press-4", controller.join_token(), ring="canary", facts={"arch": "x86_64"}
    )
    assert response.status_code == 201
    given = response.json
    leaf = x509.load_pem_x509_certificates(given["certificate"].encode())[0]
    assert leaf.subject.rfc4514_string() == "CN=press-4,O=shoal"
    assert given["site"] == "north"
    assert given["broker"] == "mqtts://localhost:8883"
    assert given["artifacts"] == "https://localhost:8444"
    assert json.loads(given["root"])["signed"]["_type"] == "root"
    assert json.loads(given["director_root"])["signed"]["_type"] == "root"
    device = controller.get("/api/v1/devices/press-4").json
    assert (device["ring"], device["site"], device["state"]) == ("canary", "north", "enrolled")
    assert device["certificate_expires_at"] > controller.clock.now + 80 * 86_400
    assert not device["online"]


def test_a_join_token_pins_the_ca_that_the_controller_shows(controller: ControllerApp) -> None:
    bundle = x509.load_pem_x509_certificates(controller.client.get("/ca.pem").data)
    from cryptography.hazmat.primitives.serialization import Encoding

    pinned = enrolment.parse_token(controller.join_token()).ca_sha256
    assert pinned in {enrolment.fingerprint(c.public_bytes(Encoding.DER)) for c in bundle}


def test_an_enrolled_device_cannot_be_enrolled_again_until_it_is_decommissioned(
    controller: ControllerApp,
) -> None:
    token = controller.join_token(uses=5)
    assert controller.enrol("press-4", token).status_code == 201
    again = controller.enrol("press-4", token)
    assert is_problem(again, 409, "conflict")
    assert "shoal device decommission press-4" in again.json["detail"]
    left = controller.get("/api/v1/join-tokens").json["items"][0]["uses_left"]
    assert left == 4, "a refused enrolment takes no use"
    gone = controller.post("/api/v1/devices/press-4/decommission")
    assert gone.json["state"] == "decommissioned"
    assert is_problem(controller.post("/api/v1/devices/press-4/decommission"), 409)
    assert controller.enrol("press-4", token).status_code == 201
    assert controller.get("/api/v1/devices/press-4").json["state"] == "enrolled"
    told = [e["state"] for e in controller.get("/api/v1/devices/press-4/timeline").json["items"]]
    assert sorted(told) == ["DECOMMISSIONED", "ENROLLED", "ENROLLED"]


def subject_of(response: Any) -> str:
    leaf = x509.load_pem_x509_certificates(response.json["certificate"].encode())[0]
    return str(leaf.subject.rfc4514_string())


def test_a_name_taken_again_has_another_name_in_its_certificate(controller: ControllerApp) -> None:
    token, names = controller.join_token(uses=5), []
    for _ in range(3):
        names.append(subject_of(controller.enrol("press-4", token)))
        controller.post("/api/v1/devices/press-4/decommission")
    assert names == ["CN=press-4,O=shoal", "CN=press-4.1,O=shoal", "CN=press-4.2,O=shoal"]
    assert EnrolledDevices(controller.ctx.store).names() == frozenset()
    controller.enrol("press-4", token)
    assert EnrolledDevices(controller.ctx.store).names() == {"press-4.3"}


def test_a_name_too_long_for_a_generation_suffix_is_refused(controller: ControllerApp) -> None:
    token, name = controller.join_token(uses=5), "n" * 63
    assert controller.enrol(name, token).status_code == 201
    controller.post(f"/api/v1/devices/{name}/decommission")
    again = controller.enrol(name, token)
    assert is_problem(again, 422)
    assert "another name" in again.json["detail"]


def test_two_devices_cannot_both_take_the_last_use(controller: ControllerApp) -> None:
    token = controller.join_token(uses=1)
    statuses: list[int] = []
    start = threading.Barrier(8)

    def join(number: int) -> None:
        body = {"token": token, "csr": make_request(), "device": f"press-{number}"}
        client = controller.app.test_client()
        start.wait()
        statuses.append(client.post("/api/v1/enrol", json=body).status_code)

    threads = [threading.Thread(target=join, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] + [403] * 7
    assert controller.get("/api/v1/devices").json["page"]["total"] == 1


def test_a_token_of_many_uses_lets_exactly_so_many_in(controller: ControllerApp) -> None:
    token = controller.join_token(uses=2)
    statuses = [controller.enrol(f"press-{n}", token).status_code for n in range(3)]
    assert statuses == [201, 201, 403]


def altered(token: str) -> str:
    """The same token with another secret."""
    head, id_, secret, ca = token.split(".")
    return ".".join((head, id_, secret[::-1], ca))


def of_another_controller(token: str) -> str:
    return token.rpartition(".")[0] + "." + "0" * 64


@pytest.mark.parametrize(
    ("change", "more", "status", "says"),
    [
        (altered, {}, 403, "unknown"),
        (of_another_controller, {}, 403, "another controller"),
        (lambda t: "sj1.nonsense", {}, 422, "join token"),
        (lambda t: t, {"ring": "gold"}, 422, "ring"),
        (lambda t: t, {"device": "Press 4"}, 422, "device name"),
        (lambda t: t, {"device": "controller"}, 422, "device name"),
        (lambda t: t, {"profile": "toaster"}, 422, "toaster"),
        (lambda t: t, {"csr": "-----BEGIN NONSENSE-----"}, 422, "CSR"),
        (lambda t: t, {"labels": {"x" * 64: ""}}, 422, "labels"),
        (lambda t: t, {"facts": {"flags": 7}}, 422, "facts"),
    ],
)  # fmt: skip
def test_a_refused_enrolment_gets_a_reason_and_costs_no_use(
    controller: ControllerApp, change: Any, more: dict[str, Any], status: int, says: str
) -> None:
    token = controller.join_token()
    response = controller.enrol(more.pop("device", "press-4"), change(token), **more)
    assert is_problem(response, status)
    assert says in response.json["detail"]
    assert token.split(".")[2] not in response.text
    assert controller.get("/api/v1/join-tokens").json["items"][0]["uses_left"] == 1
    assert controller.enrol("press-9", token).status_code == 201


def test_a_token_is_for_its_rings_and_for_its_time(controller: ControllerApp) -> None:
    token = controller.join_token(rings=["stable"], ttl_s=60)
    assert "'canary'" in controller.enrol("press-4", token, ring="canary").json["detail"]
    controller.clock.now += 61
    response = controller.enrol("press-4", token)
    assert is_problem(response, 403)
    assert "expired" in response.json["detail"]


@pytest.mark.parametrize(
    "site", ["", " ", " north", "north ", "/b", "a\nb", "<b>x</b>", "'; --", "n" * 64, "a\u202eb"]
)
def test_a_site_has_a_name_that_can_stand_anywhere(controller: ControllerApp, site: str) -> None:
    refused = controller.post("/api/v1/join-tokens", json={"site": site, "rings": ["stable"]})
    assert is_problem(refused, 422)
    assert "letters and digits" in refused.json["detail"]


@pytest.mark.parametrize(
    "site", ["north", "Halle 3/B (West)", "Čáslav", "100", "x-1_b.2", "St. Anna's"]
)
def test_a_site_is_called_as_people_call_it(controller: ControllerApp, site: str) -> None:
    made = controller.post("/api/v1/join-tokens", json={"site": site, "rings": ["stable"]})
    assert made.json["site"] == site


def test_a_revoked_token_enrols_no_device(controller: ControllerApp) -> None:
    token = controller.join_token()
    assert (
        controller.request("DELETE", f"/api/v1/join-tokens/{token.split('.')[1]}").status_code
        == 204
    )
    assert is_problem(controller.enrol("press-4", token), 403)


def test_a_board_that_can_run_no_model_enrols_with_a_notice(controller: ControllerApp) -> None:
    response = controller.enrol("old-pi", controller.join_token(), facts={"arch": "armv7l"})
    assert response.status_code == 201
    assert response.json["profile"] == "rpi3-armv7"
    assert "64-bit OS" in response.json["notice"]
    assert "64-bit OS" in controller.get("/api/v1/devices/old-pi").json["error"]


def test_an_older_controller_reads_a_newer_agents_request(controller: ControllerApp) -> None:
    assert controller.enrol("press-4", controller.join_token(), new_in_v2=True).status_code == 201


def test_a_decommissioned_device_has_no_orders_and_its_version_never_falls(
    controller: ControllerApp,
) -> None:
    controller.enrol("press-4", controller.join_token())
    row = {"device": "press-4", "version": 7, "sent_version": 6, "orders": {"m": {}}}
    with controller.ctx.store.write() as db:
        db.execute(assignment.insert().values(**row, message=b""))
    controller.post("/api/v1/devices/press-4/decommission")
    with controller.ctx.store.read() as db:
        kept = db.execute(assignment.select()).one()
    assert (kept.version, kept.orders) == (8, {})
    assert assignments.pending(controller.ctx) == [("press-4", 8, b"")], "the broker forgets it"


def test_a_device_that_takes_a_name_again_accepts_no_order_of_its_predecessor(
    controller: ControllerApp,
) -> None:
    """Its floor is above them, whether the broker has forgotten the last of them or not."""
    assert controller.enrol("press-4", controller.join_token()).json["floor"] == 0
    row = {"device": "press-4", "version": 7, "sent_version": 7, "orders": {"m": {}}}
    with controller.ctx.store.write() as db:
        db.execute(assignment.insert().values(**row, message=b"signed"))
    controller.post("/api/v1/devices/press-4/decommission")
    assert controller.enrol("press-4", controller.join_token()).json["floor"] > 7
    assert [one.message for one in assignments.pending(controller.ctx)] == [b""]


def test_a_name_with_a_percent_sign_finds_no_device(controller: ControllerApp) -> None:
    controller.enrol("press-4", controller.join_token())
    assert devices.list_devices(controller.ctx, q="%")[1].total == 0
