"""Attack: somebody with the release key signs a bundle whose provenance is another release's."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from devices import MODEL, Cloud, Device
from shoal import provenance
from shoal.manifest import Manifest
from shoal.orders import Order
from shoal.provenance import ResourceDescriptor, Statement


def statement_of(manifest: Manifest) -> Statement:
    """The provenance that a controller would have packed."""
    dataset = ResourceDescriptor(
        name=provenance.DATASET, digest={"sha256": manifest.dataset_sha256}
    )
    return Statement(
        type=provenance.STATEMENT,
        subject=provenance.subjects_of(manifest),
        predicate_type=provenance.PREDICATE,
        predicate=provenance.Predicate(
            build_definition=provenance.BuildDefinition(
                build_type=provenance.BUILD_TYPE,
                external_parameters={},
                internal_parameters=provenance.internal_parameters(manifest),
                resolved_dependencies=[dataset],
            ),
            run_details=provenance.RunDetails(builder=provenance.Builder(id="urn:x")),
        ),
    )


def signed(cloud: Cloud, change: Callable[[dict[str, Any]], object]) -> Order:
    """Release 2, signed, with its own provenance as `change` leaves it."""
    plain = cloud.manifest(2, 1, MODEL, b"")
    said = msgspec.json.decode(provenance.encode(statement_of(plain)))
    change(said)
    return cloud.release(2, provenance=cloud.file("provenance.json", msgspec.json.encode(said)))


def test_a_release_with_its_own_provenance_is_installed(device: Device, cloud: Cloud) -> None:
    device.assign(signed(cloud, lambda said: None))
    device.run(40)
    assert device.serves() == "lot-codes@2"


def build(said: dict[str, Any]) -> Any:
    return said["predicate"]["buildDefinition"]


CONTRADICTIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another file": (
        lambda said: said["subject"][0]["digest"].update(sha256="0" * 64),
        "its provenance is of int8-u8s8-pc.onnx 000000000000, its manifest of int8-u8s8-pc.onnx",
    ),
    "a file less": (lambda said: said["subject"].pop(), "its provenance is of no such file"),
    "another version": (
        lambda said: build(said)["internalParameters"].update(version=1),
        "its provenance is of lot-codes@1, its manifest of lot-codes@2",
    ),
    "another dataset": (
        lambda said: build(said)["resolvedDependencies"][0]["digest"].update(sha256="1" * 64),
        "its provenance is of dataset 111111111111, its manifest of 000000000000",
    ),
    "another kind of statement": (
        lambda said: said.update(predicateType="https://example.org/x"), "of an unknown type",
    ),
    "not a statement": (lambda said: said.pop("subject"), "missing required field `subject`"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_what_contradicts_its_manifest_is_refused_by_name(
    kind: str, device: Device, cloud: Cloud
) -> None:
    change, why = CONTRADICTIONS[kind]
    device.assign(signed(cloud, change))
    device.run(15)
    assert (device.state, device.record.cause) == ("FAILED", "provenance-mismatch")
    assert device.record.detail.startswith("lot-codes@2: ")
    assert why in device.record.detail
    [fault] = [one for one in device.faults() if one.cause == "provenance-mismatch"]
    assert fault.severity == "critical"
    assert device.serves() == "lot-codes@1"
