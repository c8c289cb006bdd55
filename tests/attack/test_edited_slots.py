"""Attack: files of a device are edited: a manifest, a model, the record of a slot, a proof."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from devices import MODEL, Cloud, Device
from real_agents import Process, enrol, put_in_service
from repositories import Repository
from shoal import bundle, proof
from shoal.agent.installed.record import Slot
from shoal.trust import ImageRepository

Edit = Callable[[Device, Path], object]


def edit_manifest(device: Device, slot: Path, **changes: Any) -> None:
    path = slot / bundle.MANIFEST
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | changes))


def edit_record(device: Device, slot: Path, **changes: Any) -> None:
    path = slot / "slot.json"
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | changes))


def put_model(device: Device, slot: Path) -> None:
    """An unsigned model, with a manifest and a record that agree with it."""
    file = device.cloud.file("int8-u8s8-pc.onnx", b"anybody's model" * 50)
    (slot / file.name).write_bytes(b"anybody's model" * 50)
    read = msgspec.json.decode((slot / bundle.MANIFEST).read_bytes())
    read["variants"][0]["file"] = msgspec.to_builtins(file)
    (slot / bundle.MANIFEST).write_bytes(msgspec.json.encode(read))
    sha256 = bundle.sha256_of(slot / bundle.MANIFEST)
    edit_record(device, slot, sha256=sha256, model_sha256=file.sha256)


def forge_proof(device: Device, slot: Path) -> None:
    """The same with a proof by keys of the thief's own."""
    put_model(device, slot)
    forger = Repository(device.clock.now)
    order = forger.add("release", MODEL, 2, (slot / bundle.MANIFEST).read_bytes())
    cache = device.folder / "forged"
    images = ImageRepository(cache, forger.root, forger.fetch)
    images.refresh(device.clock.now)
    images.check(order)
    data = images.proof(order)
    assert data
    (slot / "proof.json").write_bytes(data)


EDITS: dict[str, Edit] = {
    "labels in the other order": lambda d, s: edit_manifest(d, s, labels=["odd", "bad", "good"]),
    "another threshold": lambda d, s: edit_manifest(d, s, threshold=0.999),
    "a manifest that is none": lambda d, s: (s / bundle.MANIFEST).write_bytes(b"{"),
    "a bad sector in the model": lambda d, s: (s / "int8-u8s8-pc.onnx").write_bytes(b"\x00" * 99),
    "no manifest": lambda d, s: (s / bundle.MANIFEST).unlink(),
    "an unsigned model with a manifest that agrees": put_model,
    "an unsigned model with a proof of the thief's own": forge_proof,
}


@pytest.fixture
def updated(device: Device, cloud: Cloud) -> Device:
    """It serves release 2 from slot b; release 1 is in slot a."""
    device.assign(cloud.release(2))
    device.run(40)
    assert device.serves() == "lot-codes@2"
    return device


def slot_of(device: Device) -> Path:
    return device.slots.path(MODEL, device.record.serving.slot)


def lose_journal(device: Device) -> None:
    device.stop()
    for path in device.folder.glob("journal.db*"):
        path.unlink()
    device.start()


@pytest.mark.parametrize("kind", EDITS)
def test_with_the_journal_the_release_before_serves_until_it_is_fetched_again(
    kind: str, updated: Device
) -> None:
    EDITS[kind](updated, slot_of(updated))
    updated.restart()
    assert updated.serves() == "lot-codes@1"
    assert updated.slots.pointed(MODEL) == updated.record.serving.slot
    updated.run(40)
    assert updated.serves() == "lot-codes@2"
    assert "slot-damaged" in [fault.cause for fault in updated.faults()]


@pytest.mark.parametrize("kind", EDITS)
def test_without_the_journal_nothing_serves_that_is_not_proven(kind: str, updated: Device) -> None:
    EDITS[kind](updated, slot_of(updated))
    lose_journal(updated)
    assert updated.serves() == "lot-codes@1", "the release before is proven"
    updated.assign(updated.cloud.release(3))
    updated.run(40)
    assert updated.serves() == "lot-codes@3"
    assert "slot-unproven" in [fault.cause for fault in updated.faults()]


def test_without_the_journal_and_with_both_slots_edited_nothing_serves(updated: Device) -> None:
    for name in ("a", "b"):
        put_model(updated, updated.slots.path(MODEL, name))
    lose_journal(updated)
    assert updated.serves() == ""
    updated.assign(updated.cloud.release(3))
    updated.run(40)
    assert updated.serves() == "lot-codes@3"


@pytest.mark.parametrize(
    "changes",
    [
        {"release": "lot-codes@9", "path": "release/lot-codes/9/manifest.json"},
        {"counter": 0},
        {"variant": "no-such"},
        {"model_sha256": "0" * 64, "sha256": "f" * 64},
    ],
)
def test_what_a_slot_says_of_itself_counts_for_nothing(
    changes: dict[str, Any], updated: Device
) -> None:
    good: Slot = updated.record.serving
    edit_record(updated, slot_of(updated), **changes)
    lose_journal(updated)
    assert updated.serves() == "lot-codes@2"
    kept = updated.record.serving
    assert (kept.release, kept.path, kept.sha256, kept.counter, kept.model_sha256) == (
        good.release, good.path, good.sha256, good.counter, good.model_sha256,
    )  # fmt: skip


@pytest.mark.parametrize("model", ["../../etc", "", 7])
def test_a_record_of_an_impossible_model_does_not_end_the_agent(
    model: Any, updated: Device
) -> None:
    edit_record(updated, slot_of(updated), model=model)
    lose_journal(updated)
    updated.assign(updated.cloud.release(3))
    updated.run(40)
    assert updated.serves() == "lot-codes@3"


def test_a_release_whose_trial_failed_is_not_what_a_lost_journal_leads_back_to(
    updated: Device, cloud: Cloud
) -> None:
    updated.failing.add(3)
    updated.assign(cloud.release(3))
    updated.run(60)
    assert updated.serves() == "lot-codes@2"
    put_model(updated, slot_of(updated))
    updated.failing.clear()
    lose_journal(updated)
    assert updated.serves() == ""


def test_a_candidate_is_proven_to_canaries_only(tmp_path: Path, cloud: Cloud) -> None:
    device = Device(tmp_path / "device", cloud, ring="canary")
    device.assign(cloud.release(1, role="candidate"))
    device.run(40)
    lose_journal(device)
    assert device.serves() == "lot-codes@1"
    device.ring = "stable"
    lose_journal(device)
    assert device.serves() == ""


def test_a_proof_of_keys_that_root_has_replaced_is_none(updated: Device) -> None:
    updated.cloud.repository.rotate("targets")
    updated.assign(updated.cloud.release(3))
    updated.run(40)
    put_model(updated, slot_of(updated))
    lose_journal(updated)
    assert updated.serves() == ""


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b"\xff" * 90, b" " * (5 << 20)])
def test_no_bytes_are_taken_for_a_proof(data: bytes, updated: Device) -> None:
    (slot_of(updated) / "proof.json").write_bytes(data)
    lose_journal(updated)
    assert updated.serves() == "lot-codes@1"
    assert proof.LIMIT == 4 << 20


def test_the_real_agent_does_not_serve_a_manifest_that_was_edited(tmp_path: Path) -> None:
    enrolled = enrol(tmp_path)
    slot = put_in_service(enrolled.folder)
    path = enrolled.folder / "models" / "parts" / slot.slot / bundle.MANIFEST
    read = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(read | {"threshold": 0.999}))
    agent = Process(enrolled.folder)
    try:
        agent.wait_for(lambda: agent.request("GET", "/v2/health/live")[0] == 200)
        assert agent.request("GET", "/v2/models/parts/ready")[0] != 200
    finally:
        os.kill(agent.process.pid, signal.SIGTERM)
        said = agent.process.communicate(timeout=60)[1]
    assert "not the manifest that was signed" in said
    assert time.monotonic() > agent.began
