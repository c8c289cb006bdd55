"""What is carried by hand: who may seal it, that it counts once, and what goes out."""

import base64
import io
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from api.controller_app import ControllerApp, is_problem, make_request
from api.test_renewal import Member
from repositories import NOW
from shoal import sealed_message, topics, wire
from shoal.agent.host.io.folder import CA, CERTIFICATE, KEY
from shoal.agent.identity.io.enrol import key_pem
from shoal.agent.offline.io.seal import open_sealed
from shoal.controller.access import audit
from shoal.controller.fleet import ledger
from shoal.controller.fleet.io.ca import Authority
from shoal.controller.ingest.ingest import ingest
from shoal.errors import MisdirectedError, UntrustedError
from shoal.sealed_message import DOWN, UP, BatchMessage, MessageBatch

DAY_S = 86_400.0
PARCELS = "/api/v1/folders/parcels"


@pytest.fixture
def member(controller: ControllerApp) -> Member:
    return Member(controller)


def fault(seq: int, device: str = "press-4") -> BatchMessage:
    message = wire.FaultEvent(
        device=device, boot="b1", seq=seq, sent_s=NOW, cause="source", detail="gone"
    )
    return BatchMessage("event", wire.encode(message))


def inventory(agent: str, device: str = "press-4") -> BatchMessage:
    message = wire.Inventory(
        device=device, boot="b1", seq=0, sent_s=NOW, agent=agent, profile="generic", ring="stable",
        site="north", line="", labels={}, facts={}, installed=[], floors={},
    )  # fmt: skip
    return BatchMessage("inventory", wire.encode(message))


def sealed(member: Member, *letters: BatchMessage, **other: Any) -> bytes:
    """A parcel as the device seals it; way, key and certificate, or fields of it, otherwise."""
    way, key = other.pop("way", UP), other.pop("key", member.key)
    certificate = other.pop("certificate", member.certificate)
    fields = {"device": member.name, "made_s": member.controller.clock(), "trip": "0" * 8, **other}
    made = MessageBatch(letters=list(letters), **fields)
    return sealed_message.seal(
        made, way, certificate, lambda message: key.sign(message, ec.ECDSA(hashes.SHA256()))
    )


def send(controller: ControllerApp, data: bytes, role: str = "operator") -> Any:
    return controller.post(PARCELS, role, data={"parcel": (io.BytesIO(data), "parcel")})


def received(controller: ControllerApp) -> int:
    return sum(one.received for one in ledger.ledgers(controller.ctx, "press-4"))


def test_a_parcel_counts_once_however_often_and_whichever_way_its_messages_come(
    controller: ControllerApp, member: Member
) -> None:
    topic = topics.up("press-4", "event")
    ingest(controller.ctx, [(topic, fault(1).payload)])  # this one found a network
    data = sealed(member, fault(1), fault(2), fault(3))
    answer = send(controller, data)
    assert (answer.json["letters"], answer.json["fresh"]) == (3, 2)
    assert send(controller, data).json["fresh"] == 0
    ingest(controller.ctx, [(topic, fault(n).payload) for n in (2, 3, 4)])
    (one,) = ledger.ledgers(controller.ctx, "press-4")
    assert (one.received, one.highest, one.missing) == (4, 4, 0)
    entries = controller.get("/api/v1/audit").json["items"]
    carried = [e for e in entries if e["verb"] == "folder.import"]
    assert [(e["actor"], e["subject"]) for e in carried] == [("operator", "press-4")] * 2
    assert carried[0]["detail"]["letters"] == 3


def test_a_device_cannot_send_messages_of_another(
    controller: ControllerApp, member: Member
) -> None:
    other = Member(controller, "press-5")
    assert is_problem(send(controller, sealed(other, fault(1), device="press-4")), 403, "denied")
    assert send(controller, sealed(other, fault(1))).json["fresh"] == 0
    assert ledger.ledgers(controller.ctx, "press-4") == []
    said = controller.get("/api/v1/devices/press-5").json["error"]
    assert "event of 'press-4' on the topic of press-5" in said


def foreign(controller: ControllerApp, member: Member) -> bytes:
    authority = Authority.create(
        controller.ctx.folder / "elsewhere", names=["x"], now=controller.clock()
    )
    issued = authority.issue_device(make_request(member.key), "press-4", controller.clock())
    return sealed(member, fault(1), certificate=issued.certificate)


def changed(controller: ControllerApp, member: Member) -> bytes:
    return sealed(member, fault(1)).replace(b"gone", b"fine", 1)


def other_key(controller: ControllerApp, member: Member) -> bytes:
    return sealed(member, fault(1), key=ec.generate_private_key(ec.SECP256R1()))


def of_the_controller(controller: ControllerApp, member: Member) -> bytes:
    pki = controller.ctx.folder / "pki"
    key = serialization.load_pem_private_key((pki / "controller.key").read_bytes(), None)
    chain = (pki / "controller.crt").read_text()
    return sealed(member, fault(1), key=key, certificate=chain)


def going_down(controller: ControllerApp, member: Member) -> bytes:
    return sealed(member, fault(1), way=DOWN)


def cut_short(controller: ControllerApp, member: Member) -> bytes:
    return sealed(member, fault(1))[:-1]


def no_parcel(controller: ControllerApp, member: Member) -> bytes:
    return b"\x93" * 1000


def endless(controller: ControllerApp, member: Member) -> bytes:
    return b"\x00" * (sealed_message.LIMIT + 1)


def too_many(controller: ControllerApp, member: Member) -> bytes:
    return sealed(member, *[fault(1)] * (sealed_message.MAX_MESSAGES + 1))


def decommissioned(controller: ControllerApp, member: Member) -> bytes:
    controller.post("/api/v1/devices/press-4/decommission")
    return sealed(member, fault(1))


def of_an_earlier_enrolment(controller: ControllerApp, member: Member) -> bytes:
    controller.post("/api/v1/devices/press-4/decommission")
    Member(controller)
    return sealed(member, fault(1))


def of_an_old_key(controller: ControllerApp, member: Member) -> bytes:
    old = sealed(member, fault(1))
    controller.clock.now += 80 * DAY_S
    assert member.renew().status_code == 201
    controller.clock.now += 20 * DAY_S
    return old


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (foreign, 403), (changed, 403), (other_key, 403), (of_the_controller, 403),
        (going_down, 403), (decommissioned, 403), (of_an_earlier_enrolment, 403),
        (of_an_old_key, 403), (cut_short, 422), (no_parcel, 422), (too_many, 422), (endless, 413),
    ],
    ids=lambda it: getattr(it, "__name__", ""),
)  # fmt: skip
def test_what_is_not_sealed_by_an_enrolled_device_is_refused(
    controller: ControllerApp, member: Member, spoil: Any, status: int
) -> None:
    answer = send(controller, spoil(controller, member))
    assert is_problem(answer, status)
    assert received(controller) == 0
    entries, _ = audit.list_audit(controller.ctx)
    assert "folder.import" not in {entry.verb for entry in entries}
    if status != 413:  # that much is not even read
        assert entries[0].verb == "folder.refuse"
        assert entries[0].detail["why"]


def test_a_parcel_with_a_changed_byte_is_to_be_exported_again_first(
    controller: ControllerApp, member: Member
) -> None:
    answer = send(controller, changed(controller, member))
    assert "damaged or forged" in answer.json["detail"]
    assert answer.json["hint"].startswith("export it again on the device first; if that is refused")


def test_a_folder_taken_in_ends_what_a_damaged_one_before_had_left(
    controller: ControllerApp, member: Member
) -> None:
    def said(seq: int, cause: str, severity: str) -> BatchMessage:
        message = wire.FaultEvent(
            device="press-4", boot="b1", seq=seq, sent_s=NOW, cause=cause, detail=f"{cause}!",
            severity=severity,
        )  # fmt: skip
        return BatchMessage("event", wire.encode(message))

    damaged, good = said(1, "folder-damaged", "warning"), said(2, "folder-imported", "info")
    send(controller, sealed(member, damaged))
    assert controller.get("/api/v1/devices/press-4").json["error"] == "folder-damaged!"
    for letters in ([damaged, good], [damaged, good, fault(3)], [damaged, good, fault(3)]):
        send(controller, sealed(member, *letters))
        error = "" if len(letters) == 2 else "gone"
        assert controller.get("/api/v1/devices/press-4").json["error"] == error


def test_what_a_device_saw_counts_although_its_certificate_has_expired_meanwhile(
    controller: ControllerApp, member: Member
) -> None:
    controller.clock.now += 200 * DAY_S
    assert send(controller, sealed(member, fault(1))).json["fresh"] == 1


def test_an_old_inventory_does_not_undo_a_newer_one(
    controller: ControllerApp, member: Member
) -> None:
    old = sealed(member, inventory("1.0"), made_s=controller.clock())
    new = sealed(member, inventory("2.0"), made_s=controller.clock() + 60)
    controller.clock.now += 120
    send(controller, new)
    send(controller, old)
    assert controller.get("/api/v1/devices/press-4").json["agent"] == "2.0"
    online = wire.Status(
        device="press-4", boot="", seq=0, sent_s=NOW, online=True, since_s=NOW, session="s1"
    )
    ingest(controller.ctx, [(topics.up("press-4", "status"), wire.encode(online))])
    late = sealed(member, inventory("1.5"), made_s=controller.clock() - 1)
    send(controller, late)
    assert controller.get("/api/v1/devices/press-4").json["agent"] == "2.0"


def test_kinds_that_do_not_wait_in_an_outbox_are_left_aside(
    controller: ControllerApp, member: Member
) -> None:
    online = wire.Status(
        device="press-4", boot="", seq=0, sent_s=NOW, online=True, since_s=NOW, session="s1"
    )
    send(controller, sealed(member, BatchMessage("status", wire.encode(online))))
    assert controller.get("/api/v1/devices/press-4").json["online"] is False


def test_the_parcel_for_a_device_is_for_it_alone_and_acknowledges_what_has_arrived(
    controller: ControllerApp, member: Member, tmp_path: Any
) -> None:
    Member(controller, "press-5")
    send(controller, sealed(member, fault(1), fault(2)))
    plan = controller.post("/api/v1/folders", "operator", json={"site": "north"}).json
    assert plan["devices"] == ["press-4", "press-5"]
    assert controller.clock() + 6 * DAY_S < plan["valid_until_at"] <= controller.clock() + 7 * DAY_S
    folder = tmp_path / "press-4"
    folder.mkdir()
    (folder / KEY).write_bytes(key_pem(member.key))
    (folder / CERTIFICATE).write_text(member.certificate)
    (folder / CA).write_text((controller.ctx.folder / "pki" / "ca.pem").read_text())
    mine, other = (base64.b64decode(plan["parcels"][name]) for name in plan["devices"])
    opened = open_sealed(folder, mine, "press-4", controller.clock())
    (ack,) = [wire.decode_down(one.kind, one.payload) for one in opened.letters]
    assert ack == wire.Ack(boot="b1", seqs=[1, 2])
    assert opened.roots
    with pytest.raises(MisdirectedError):
        open_sealed(folder, other, "press-4", controller.clock())
    with pytest.raises(UntrustedError):
        open_sealed(folder, sealed(member, way=DOWN), "press-4", controller.clock())
    signed = msgspec.json.decode(plan["metadata"]["timestamp.json"])["signed"]
    assert signed["expires"] > "2"
    entry = controller.get("/api/v1/audit").json["items"][0]
    assert (entry["verb"], entry["detail"]["devices"]) == ("folder.export", plan["devices"])


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({}, 422),
        ({"devices": ["nobody"]}, 404),
        ({"site": "nowhere"}, 404),
        ({"devices": [f"press-{n}" for n in range(3)], "mistake": 1}, 422),
    ],
)
def test_a_folder_is_for_devices_that_there_are(
    controller: ControllerApp, asked: Any, status: int
) -> None:
    assert is_problem(controller.post("/api/v1/folders", "operator", json=asked), status)
