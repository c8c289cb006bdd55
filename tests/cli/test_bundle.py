"""`shoal bundle`: what it writes on a stick, what it takes in, and what it leaves there."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cli.conftest import Cli
from shoal import sealed_message, wire
from shoal.agent.identity.io.enrol import make_csr
from shoal.cli.exit_codes import ABSENT, FAILED, USAGE
from shoal.controller.fleet import enrolment, join_tokens
from shoal.controller.fleet.io.ca import Authority
from shoal.enrolment import EnrolRequest
from shoal.offline_bundle import OfflineBundle
from shoal.sealed_message import UP, BatchMessage, MessageBatch


class Device:
    """A device that was enrolled, and what it seals."""

    def __init__(self, shoal: Cli, name: str) -> None:
        ctx = shoal.controller.ctx
        authority = Authority.open(ctx.folder / "pki")
        token = join_tokens.create_join_token(
            ctx, actor="ana", ca_sha256=authority.root_fingerprint, site="south",
            rings=["stable"], uses=1, ttl_s=60.0,
        )  # fmt: skip
        self.name, self.key = name, ec.generate_private_key(ec.SECP256R1())
        asked = EnrolRequest(token=token.secret, csr=make_csr(self.key, name), device=name)
        self.certificate = enrolment.enrol(ctx, authority, asked).certificate

    def write(self, stick: OfflineBundle, *seqs: int, part: int = 1, parts: int = 1) -> str:
        """A parcel of so many faults on the stick; its name there."""
        letters = [BatchMessage("event", wire.encode(self.fault(seq))) for seq in seqs]
        made = MessageBatch(
            device=self.name, made_s=1.8e9, trip="0badcafe", letters=letters, part=part, parts=parts
        )
        name = f"up/{self.name}/{made.name}"
        stick.write(name, sealed_message.seal(made, UP, self.certificate, self.sign))
        return name

    def fault(self, seq: int) -> wire.FaultEvent:
        return wire.FaultEvent(
            device=self.name, boot="b", seq=seq, sent_s=1.8e9, cause="source", detail="gone"
        )

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message, ec.ECDSA(hashes.SHA256()))


@pytest.fixture
def stick(tmp_path: Path) -> OfflineBundle:
    (tmp_path / "stick").mkdir()
    return OfflineBundle(tmp_path / "stick")


@pytest.fixture
def press(shoal: Cli, request: pytest.FixtureRequest) -> Device:
    return Device(shoal, request.node.name.replace("_", "-")[:60].strip("-"))


def test_what_was_taken_in_is_deleted_and_what_was_refused_stays(
    shoal: Cli, stick: OfflineBundle, press: Device
) -> None:
    good, bad = press.write(stick, 1, 2), f"up/{press.name}/bad.parcel"
    stick.write(bad, b"half of a parc")
    stick.write("up/Photos of Ana/1.parcel", b"")
    result = shoal("bundle", "import", str(stick.folder))
    assert result.exit_code == FAILED
    assert "bad.parcel" in result.output
    assert "not copied whole" in result.output
    assert "Photos" not in result.output
    assert not (stick.folder / good).exists()
    assert (stick.folder / bad).exists()


def test_keep_keeps_and_again_is_nothing_new(
    shoal: Cli, stick: OfflineBundle, press: Device
) -> None:
    name = press.write(stick, 1, 2)
    folder = str(stick.folder)
    assert shoal.json("bundle", "import", folder, "--keep")["parcels"][0]["fresh"] == 2
    assert shoal.json("bundle", "import", folder, "--keep")["parcels"][0]["fresh"] == 0
    assert (stick.folder / name).exists()


def test_an_export_with_a_missing_part_is_reported(
    shoal: Cli, stick: OfflineBundle, press: Device
) -> None:
    press.write(stick, 1, part=1, parts=0)
    press.write(stick, 3, part=3, parts=3)
    told = shoal.json("bundle", "import", str(stick.folder))
    assert told["incomplete"] == [f"{press.name} 0badcafe"]


def test_a_bundle_folder_holds_one_export_and_what_devices_wrote(
    shoal: Cli, stick: OfflineBundle, press: Device
) -> None:
    written = press.write(stick, 1)
    stick.write("down/of-before.parcel", b"x")
    stick.write("blobs/of-before", b"x")
    told = shoal.json("bundle", "export", str(stick.folder), "--device", press.name)
    assert (told["devices"], told["releases"], told["bytes"]) == ([press.name], [], 0)
    assert stick.names("down", "") == [f"down/{press.name}.parcel"]
    assert stick.names("blobs", "") == []
    assert "metadata/timestamp.json" in stick.names("metadata", "")
    assert stick.label().devices == [press.name]
    assert (stick.folder / written).exists()
    shown = shoal("bundle", "export", str(stick.folder), "--site", "south").output
    assert f"shoal-agent import {stick.folder}" in shown


def test_an_export_deletes_nothing_behind_a_link_in_the_bundle(
    shoal: Cli, stick: OfflineBundle, press: Device, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (stick.folder / "blobs").symlink_to(tmp_path)
    result = shoal("bundle", "export", str(stick.folder), "--device", press.name)
    assert result.exit_code == FAILED, result.output
    assert "is a link" in result.output
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["export", "{}", "--device", "nobody"], ABSENT, "nobody"),
        (["export", "{}"], USAGE, "--device NAME, or --site SITE"),
        (["export", "{}/nope", "--site", "south"], USAGE, "is the USB stick mounted?"),
        (["import", "{}"], USAGE, "not an offline bundle"),
    ],
)
def test_mistakes_are_reported_with_a_hint(
    shoal: Cli, stick: OfflineBundle, words: list[str], code: int, said: str
) -> None:
    result = shoal("bundle", *[word.format(stick.folder) for word in words])
    assert result.exit_code == code, result.output
    assert said in " ".join(result.output.split())
    assert not list(stick.folder.iterdir())
