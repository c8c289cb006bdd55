"""How a device's certificate is renewed: by who has the key of the present one, and nobody else."""

import base64
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from api.controller_app import ControllerApp, is_problem, make_request
from shoal.controller.fleet import devices
from shoal.enrolment import renewal_message
from shoal.trust import director_version, follow_roots

DAY_S = 86_400.0


class Member:
    """A device with its key."""

    def __init__(self, controller: ControllerApp, name: str = "press-4") -> None:
        self.controller, self.name = controller, name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.token = controller.join_token(uses=3, ttl_s=7 * DAY_S)
        self.certificate = self.enrol().json["certificate"]

    def enrol(self, key: ec.EllipticCurvePrivateKey | None = None) -> Any:
        return self.controller.enrol(self.name, self.token, csr=make_request(key or self.key))

    def challenge(self) -> str:
        given = self.controller.get(f"/api/v1/renew?device={self.name}", role="")
        return str(given.json["challenge"])

    def request(self, **other: Any) -> dict[str, Any]:
        """What it would send to renew; `signer` is another key, the rest other fields."""
        body = {
            "certificate": self.certificate,
            "csr": make_request(),
            "challenge": other.pop("challenge", "") or self.challenge(),
        }
        message = renewal_message(body["challenge"], body["csr"])
        proof = (other.pop("signer", None) or self.key).sign(message, ec.ECDSA(hashes.SHA256()))
        return body | {"proof": base64.b64encode(proof).decode()} | other

    def renew(self, **other: Any) -> Any:
        return self.send(self.request(**other))

    def send(self, body: dict[str, Any]) -> Any:
        return self.controller.client.post("/api/v1/renew", json=body)


@pytest.fixture
def member(controller: ControllerApp) -> Member:
    return Member(controller)


def test_the_holder_of_the_current_key_gets_the_next_certificate(
    controller: ControllerApp, member: Member
) -> None:
    controller.clock.now += 60 * DAY_S
    answer = member.renew()
    assert answer.status_code == 201
    leaf = x509.load_pem_x509_certificates(answer.json["certificate"].encode())[0]
    assert leaf.subject.rfc4514_string() == "CN=press-4,O=shoal"
    assert "BEGIN CERTIFICATE" in answer.json["ca"]
    told = devices.get_device(controller.ctx, "press-4").certificate_expires_at
    assert told == pytest.approx(controller.clock.now + 90 * DAY_S, abs=2)


def test_an_answer_that_was_lost_costs_nothing(member: Member) -> None:
    assert member.renew().status_code == 201
    assert member.renew().status_code == 201, "with the present certificate, once more"


def test_a_request_cannot_be_sent_again(member: Member) -> None:
    body = member.request()
    assert member.send(body).status_code == 201
    assert is_problem(member.send(body), 403, "denied")


def test_a_challenge_expires_and_is_one_devices_only(
    controller: ControllerApp, member: Member
) -> None:
    old, others = member.challenge(), Member(controller, "press-5").challenge()
    assert is_problem(member.renew(challenge=others), 403)
    controller.clock.now += 301
    assert is_problem(member.renew(challenge=old), 403)
    for forged in ("", "9" * 11 + "." + "0" * 64, "x.y", "\N{DIGIT ONE}²"):
        assert is_problem(member.send(member.request() | {"challenge": forged}), 403)


def test_another_key_renews_nothing(member: Member) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    refused = member.renew(signer=stranger)
    assert is_problem(refused, 403)
    assert "proof" in refused.json["detail"]


def test_a_request_for_one_key_cannot_be_turned_into_one_for_another(member: Member) -> None:
    body = member.request() | {"csr": make_request()}
    assert is_problem(member.send(body), 403)


def test_a_decommissioned_device_renews_no_more_not_even_once_its_name_is_taken_again(
    controller: ControllerApp, member: Member
) -> None:
    old = member.certificate
    controller.post("/api/v1/devices/press-4/decommission")
    assert is_problem(member.renew(), 403)
    again = member.enrol()
    assert again.status_code == 201
    assert is_problem(member.renew(certificate=old), 403), "not even by the same key, just after"
    renewed = member.renew(certificate=again.json["certificate"])
    assert renewed.status_code == 201
    leaf = x509.load_pem_x509_certificates(renewed.json["certificate"].encode())[0]
    assert leaf.subject.rfc4514_string() == "CN=press-4.1,O=shoal"


def test_an_expired_certificate_renews_nothing_and_gives_a_hint(
    controller: ControllerApp, member: Member
) -> None:
    controller.clock.now += 91 * DAY_S
    refused = member.renew()
    assert is_problem(refused, 403)
    assert "join token" in refused.json["detail"]


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("certificate", "nonsense", 403),
        ("certificate", "é" * 5_000, 403),
        ("csr", "nonsense", 403),
        ("proof", "%%%", 403),
        ("proof", "", 403),
        ("proof", 7, 422),
    ],
)
def test_what_is_no_request_is_refused(member: Member, field: str, value: Any, status: int) -> None:
    assert is_problem(member.send(member.request() | {field: value}), status)


def test_the_controllers_own_certificate_renews_nothing(
    controller: ControllerApp, member: Member
) -> None:
    for name in ("controller", "server"):
        pki = controller.ctx.folder / "pki"
        key = serialization.load_pem_private_key((pki / f"{name}.key").read_bytes(), None)
        refused = member.renew(certificate=(pki / f"{name}.crt").read_text(), signer=key)
        assert is_problem(refused, 403)


def test_the_same_key_enrols_again_when_its_answer_was_lost_and_takes_no_use(
    controller: ControllerApp, member: Member
) -> None:
    assert member.enrol().status_code == 201
    assert controller.get("/api/v1/join-tokens").json["items"][0]["uses_left"] == 2
    controller.clock.now += 2 * 3_600
    assert member.enrol().status_code == 201, "later it takes a use like anybody"
    assert controller.get("/api/v1/join-tokens").json["items"][0]["uses_left"] == 1
    assert is_problem(member.enrol(ec.generate_private_key(ec.SECP256R1())), 409)


def test_the_directors_roots_are_served_from_any_version_on(controller: ControllerApp) -> None:
    signer, now = controller.ctx.signer, controller.clock.now
    first = signer.director_root
    signer.refresh_timestamps(now + 300 * DAY_S)
    told = controller.get("/api/v1/director-roots?after=1", role="").json["roots"]
    assert follow_roots(first, [text.encode() for text in told]) == signer.director_root
    assert director_version(signer.director_root) == 2
    assert controller.get("/api/v1/director-roots?after=2", role="").json["roots"] == []
