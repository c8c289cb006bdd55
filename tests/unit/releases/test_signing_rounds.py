"""A round's config is believed when the role `rounds` signed it, and is never a way into a slot."""

import hashlib
import json
from pathlib import Path

import msgspec
import pytest
from tuf.api.metadata import Metadata

from controllers import NOW, Clock, repository_fetch
from shoal.controller.releases.io.signing import Signer
from shoal.errors import MisdirectedError, StaleError, TrustError, UntrustedError
from shoal.federated.config import HOURS, Config, Content, verify_config
from shoal.federated.plan import Learning, Plan
from shoal.orders import Order
from shoal.trust import RINGS, ImageRepository, check_ring, verify_orders


def content(data: bytes) -> Content:
    return Content(sha256=hashlib.sha256(data).hexdigest(), length=len(data))


CONFIG = Config(
    plan=Plan(
        task="digits", round=4, attempt=bytes(range(16)), strategy="fedavg", least=3,
        deadline_s=NOW + 600.5, learning=Learning(lr=0.05, epochs=2),
    ),
    model="lot-codes", graph=content(b"graph"), theta=content(b"theta"),
)  # fmt: skip


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer.create(tmp_path, Clock())


@pytest.fixture
def device(tmp_path: Path, signer: Signer) -> ImageRepository:
    signer.sign_round(CONFIG, NOW)
    device = ImageRepository(tmp_path / "cache", signer.root, repository_fetch(tmp_path))
    device.refresh(NOW)
    return device


def test_a_device_reads_the_config_that_was_signed(signer: Signer, device: ImageRepository) -> None:
    assert verify_config(signer.sign_round(CONFIG, NOW), device.targets, NOW) == CONFIG


def test_a_changed_config_is_refused(signer: Signer, device: ImageRepository) -> None:
    signed = signer.sign_round(CONFIG, NOW)
    for old, new in ((b"digits", b"digitz"), (CONFIG.theta.sha256.encode(), b"ab" * 32)):
        with pytest.raises(TrustError):
            verify_config(signed.replace(old, new), device.targets, NOW)


def test_no_other_online_key_signs_a_round(signer: Signer, device: ImageRepository) -> None:
    signer.add_target("release", "lot-codes", 1, b"{}")
    metadata = Metadata.from_bytes(signer.sign_round(CONFIG, NOW))
    for name in ("director", "timestamp", "candidate-lot-codes"):
        metadata.signatures.clear()
        metadata.sign(signer.keys.get(name))
        with pytest.raises(UntrustedError):
            verify_config(metadata.to_bytes(), device.targets, NOW)


def test_an_old_config_is_stale(signer: Signer, device: ImageRepository) -> None:
    signed = signer.sign_round(CONFIG, NOW)
    with pytest.raises(StaleError):
        verify_config(signed, device.targets, NOW + HOURS * 3600)


def test_contents_and_targets_have_to_agree(signer: Signer, device: ImageRepository) -> None:
    metadata = Metadata.from_bytes(signer.sign_round(CONFIG, NOW))
    lie = msgspec.structs.replace(CONFIG, theta=content(b"another"))
    metadata.signed.unrecognized_fields["shoal"]["config"] = msgspec.json.encode(lie).decode()
    metadata.signatures.clear()
    metadata.sign(signer.keys.get("rounds"))
    with pytest.raises(MisdirectedError):
        verify_config(metadata.to_bytes(), device.targets, NOW)


@pytest.mark.parametrize("hostile", [b"", b"{}", b"[]", b"\xff", b"x" * 300_000])
def test_what_is_no_config_is_no_more_than_a_trust_error(
    hostile: bytes, device: ImageRepository
) -> None:
    with pytest.raises(TrustError):
        verify_config(hostile, device.targets, NOW)


def test_a_config_without_its_text_is_a_trust_error(
    signer: Signer, device: ImageRepository
) -> None:
    for custom in ({}, {"shoal": 3}, {"shoal": {"config": 3}}, {"shoal": {"config": "{"}}):
        metadata = Metadata.from_bytes(signer.sign_round(CONFIG, NOW))
        metadata.signed.unrecognized_fields = json.loads(json.dumps(custom))
        metadata.signatures.clear()
        metadata.sign(signer.keys.get("rounds"))
        with pytest.raises(TrustError):
            verify_config(metadata.to_bytes(), device.targets, NOW)


@pytest.mark.parametrize("ring", RINGS)
def test_an_order_for_what_a_round_made_is_refused_on_every_ring(
    ring: str, signer: Signer, device: ImageRepository
) -> None:
    """The director's key and the rounds' key together still put nothing into a slot."""
    order = Order(
        model="digits", version=4, path="rounds/digits/4/manifest.json", length=5,
        sha256=CONFIG.theta.sha256, rollout="r1", attempt=1,
    )  # fmt: skip
    signed = signer.sign_orders("cam-1", 1, [order], NOW)
    orders = verify_orders(
        signed, director_root=signer.director_root, device="cam-1", floor=0, now_s=NOW
    )
    with pytest.raises(MisdirectedError):
        check_ring(orders.orders[0], ring)
    with pytest.raises(UntrustedError):
        device.check(orders.orders[0])
