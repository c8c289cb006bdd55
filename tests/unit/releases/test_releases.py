"""From an asked-for training to a signed release that a device would take."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from onnx import helper, numpy_helper

from controllers import add_digits, make_context, repository_fetch, run
from shoal import bundle, provenance
from shoal.controller.access import audit
from shoal.controller.host.context import Context
from shoal.controller.operations import operations
from shoal.controller.operations.operations import Operation
from shoal.controller.releases import attestations, models, releases
from shoal.controller.training import training
from shoal.errors import (
    AbsentError,
    BundleError,
    ConflictError,
    DatasetError,
    SettingError,
    UntrustedError,
)
from shoal.orders import Order
from shoal.trust import ImageRepository


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """One controller for the module: its releases are made in the order of the tests."""
    made = make_context(tmp_path_factory.mktemp("controller"))
    add_digits(made)
    return made


@pytest.fixture(scope="module")
def trained(ctx: Context) -> Operation:
    return run(
        ctx, training.start_training(ctx, actor="ana", model="lot-codes", dataset="stations")
    )


def installed(ctx: Context, ref: str, profile: str, folder: Path) -> bundle.Golden:
    """Fetch a release as a device does, and verify it; its golden vectors."""
    manifest, data = releases.manifest_of(ctx, ref)
    (folder / bundle.MANIFEST).write_bytes(data)
    for file in manifest.files_for(profile):
        (folder / file.name).write_bytes(ctx.blobs.read(file.sha256))
    assert bundle.verify(folder, profile) == manifest
    bundle.read_references(folder, manifest)
    return bundle.read_golden(folder, manifest)


def accepted(ctx: Context, ref: str, role: str, cache: Path) -> bool:
    """Whether a device finds exactly this release in the image repository."""
    manifest, data = releases.manifest_of(ctx, ref)
    order = Order(
        model=manifest.model, version=manifest.version,
        path=f"{role}/{manifest.model}/{manifest.version}/manifest.json",
        length=len(data), sha256=bundle.describe("", data).sha256, rollout="r", attempt=1,
    )  # fmt: skip
    device = ImageRepository(cache, ctx.signer.root, repository_fetch(ctx.folder))
    device.refresh(ctx.clock())
    try:
        device.check(order)
    except UntrustedError:
        return False
    return True


def test_a_training_ends_in_a_validated_release(ctx: Context, trained: Operation) -> None:
    assert (trained.state, trained.error) == ("succeeded", "")
    found = releases.get_release(ctx, trained.result["release"])
    assert (found.ref, found.state, found.parent) == ("lot-codes@1", "validated", "")
    assert (found.dataset, found.estimator, found.trigger) == ("stations@1", "mlp", "manual")
    assert found.metrics["accuracy"] > 0.95
    assert found.params["hidden"] == [64, 32]
    assert found.signatures == []


def test_its_bundle_is_what_a_device_needs(
    ctx: Context, trained: Operation, tmp_path: Path
) -> None:
    golden = installed(ctx, "lot-codes@1", "rpi5", tmp_path)
    manifest, _ = releases.manifest_of(ctx, "lot-codes@1")
    kept = [v for v in releases.get_release(ctx, "lot-codes@1").variants if not v.dropped]
    assert list(golden.outputs) == [v.name for v in manifest.variants] == [v.name for v in kept]
    assert manifest.profiles["rpi5"][:2] == ["int8-u8s8-pc", "int8-s8s8-pc"]
    assert manifest.profiles["rpi5"][-1] == "fp32"
    assert "64-bit" in manifest.refused["rpi3-armv7"]
    assert manifest.release_counter == 1
    with pytest.raises(BundleError, match="reflash"):
        manifest.files_for("rpi3-armv7")


def test_its_ml_bom_is_valid_cyclonedx_and_says_what_it_is_made_of(
    ctx: Context, trained: Operation
) -> None:
    manifest, _ = releases.manifest_of(ctx, "lot-codes@1")
    data = attestations.read(ctx, manifest, "bom")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.decode()) is None
    bom = msgspec.json.decode(data)
    card = bom["metadata"]["component"]["modelCard"]
    assert card["modelParameters"]["datasets"] == [{"ref": "dataset:stations@1"}]
    assert "accuracy" in [one["type"] for one in card["quantitativeAnalysis"]["performanceMetrics"]]
    files = {one["name"]: one["hashes"][0]["content"] for one in bom["components"][:-2]}
    attached = (manifest.bom, manifest.provenance)
    assert files == {f.name: f.sha256 for f in manifest.files() if f not in attached}
    tools = {tool["name"] for tool in bom["metadata"]["tools"]["components"]}
    assert {"shoal", "onnx", "scikit-learn", "python"} <= tools


def test_its_provenance_is_an_in_toto_statement_of_what_it_was_made_from(
    ctx: Context, trained: Operation
) -> None:
    manifest, _ = releases.manifest_of(ctx, "lot-codes@1")
    data = attestations.read(ctx, manifest, "provenance")
    read = json_format.Parse(data, statement_pb2.Statement())
    Statement.copy_from_pb(read).validate()
    slsa = json_format.ParseDict(
        msgspec.json.decode(data)["predicate"], provenance_pb2.Provenance()
    )
    assert slsa.run_details.metadata.invocation_id == f"urn:shoal:operation:{trained.id}"
    needed = {one.name: one.digest["sha256"] for one in slsa.build_definition.resolved_dependencies}
    assert needed["dataset"] == manifest.dataset_sha256
    assert len(needed["environment"]) == 64
    gates = slsa.run_details.byproducts[0].annotations
    assert gates["release"] == "passed"
    assert gates["profiles"]["rpi5"]["fp32"] == "passed"
    assert provenance.verify(data, manifest).subject


def test_until_it_is_published_no_device_takes_it(
    ctx: Context, trained: Operation, tmp_path: Path
) -> None:
    assert not accepted(ctx, "lot-codes@1", "release", tmp_path)
    published = releases.publish(ctx, actor="boss", ref="lot-codes@1")
    assert (published.state, published.override) == ("released", "")
    assert [(s.role, s.by) for s in published.signatures] == [("release", "boss")]
    assert accepted(ctx, "lot-codes@1", "release", tmp_path)
    assert releases.publish(ctx, actor="boss", ref="lot-codes@1") == published
    assert models.get_model(ctx, "lot-codes").released == "lot-codes@1"


def test_what_an_alert_trained_is_a_candidate_and_its_parent_is_what_serves(
    ctx: Context, trained: Operation, tmp_path: Path
) -> None:
    ctx.clock.now += 60  # type: ignore[attr-defined]
    asked = training.start_training(
        ctx, actor="automation", model="lot-codes", dataset="stations", estimator="logistic",
        sites=["s0", "s1"], trigger="alert:7",
    )  # fmt: skip
    found = releases.get_release(ctx, run(ctx, asked).result["release"])
    assert (found.state, found.parent, found.trigger) == ("candidate", "lot-codes@1", "alert:7")
    assert set(found.by_site) == {"s0", "s1", "s2"}
    assert accepted(ctx, found.ref, "candidate", tmp_path)
    assert not accepted(ctx, found.ref, "release", tmp_path / "again")
    before = releases.manifest_of(ctx, found.ref)[1]
    published = releases.publish(ctx, actor="boss", ref=found.ref)
    assert [s.role for s in published.signatures] == ["candidate", "release"]
    assert releases.manifest_of(ctx, found.ref)[1] == before


def confused(model: bytes) -> bytes:
    """The same model with its classes reversed: it loads, and is wrong."""
    made = onnx.load_from_string(model)
    for node in made.graph.node:
        node.output[:] = ["right" if name == "output" else name for name in node.output]
    made.graph.node.append(helper.make_node("Gather", ["right", "order"], ["output"], axis=1))
    made.graph.initializer.append(numpy_helper.from_array(np.arange(9, -1, -1), "order"))
    return made.SerializeToString()


@pytest.fixture(scope="module")
def broken(ctx: Context, trained: Operation) -> str:
    """A release with a broken int8 variant from a third party."""
    manifest, _ = releases.manifest_of(ctx, "lot-codes@1")
    files = {v.name: ctx.blobs.read(v.file.sha256) for v in manifest.variants}
    asked = training.start_import(
        ctx,
        actor="ana",
        model="lot-codes",
        onnx=ctx.blobs.put_bytes(files["fp32"]).sha256,
        variants={"int8-u8s8-pc": ctx.blobs.put_bytes(confused(files["int8-u8s8-pc"])).sha256},
        dataset="stations",
    )
    done = run(ctx, asked)
    assert done.error == ""
    return str(done.result["release"])


def test_a_broken_imported_variant_is_refused_by_the_controller(ctx: Context, broken: str) -> None:
    found = releases.get_release(ctx, broken)
    assert found.state == "refused"
    bad = {(v.profile, v.variant) for v in found.verdicts if v.why.endswith("0.02 allowed")}
    assert bad == {(p, "int8-u8s8-pc") for p in ("rpi3-aarch64", "rpi4", "rpi5", "x86-vnni")}
    with pytest.raises(ConflictError, match=r"imported variant int8-u8s8-pc: .* lost"):
        releases.publish(ctx, actor="boss", ref=broken)
    with pytest.raises(ConflictError, match="refused"):
        releases.sign_candidate(ctx, broken)


def test_an_override_puts_it_out_with_a_name_and_a_reason_and_the_device_can_tell(
    ctx: Context, broken: str, tmp_path: Path
) -> None:
    assert releases.manifest_of(ctx, broken)[0].profiles["rpi4"] == ["int8-weights", "fp32"]
    published = releases.publish(ctx, actor="boss", ref=broken, override="vendor insists")
    assert (published.state, published.override) == ("released", "vendor insists")
    manifest, _ = releases.manifest_of(ctx, broken)
    assert manifest.profiles["rpi4"] == ["int8-u8s8-pc", "int8-weights", "fp32"]
    assert accepted(ctx, broken, "release", tmp_path / "cache")
    entry = audit.list_audit(ctx, subject=broken)[0][0]
    assert (entry.actor, entry.detail) == ("boss", {"override": "vendor insists"})
    golden = installed(ctx, broken, "rpi4", tmp_path)
    np.testing.assert_array_equal(golden.outputs["int8-u8s8-pc"], golden.outputs["fp32"])


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"model": "Lot Codes"}, SettingError, "model name"),
        ({"dataset": "nothing"}, AbsentError, "nothing"),
        ({"estimator": "magic"}, SettingError, "there are"),
        ({"params": {"depth": 3}}, SettingError, "its parameters are"),
        ({"sites": ["moon"]}, DatasetError, "its sites are: s0, s1, s2"),
    ],
)
def test_training_that_cannot_work_is_refused_at_once(
    ctx: Context, wrong: dict[str, object], error: type[Exception], words: str
) -> None:
    asked = {"model": "lot-codes", "dataset": "stations"} | wrong
    before = len(operations.list_operations(ctx))
    with pytest.raises(error, match=words):
        training.start_training(ctx, actor="ana", **asked)  # type: ignore[arg-type]
    assert len(operations.list_operations(ctx)) == before


def test_a_model_that_cannot_run_fails_its_operation_with_a_hint(ctx: Context) -> None:
    nonsense = ctx.blobs.put_bytes(b"not a model").sha256
    done = run(
        ctx,
        training.start_import(
            ctx, actor="ana", model="own", onnx=nonsense, variants={}, dataset="stations"
        ),
    )
    assert done.state == "failed"
    assert "is not an ONNX file; export it" in done.error
    with pytest.raises(AbsentError):
        training.start_import(
            ctx, actor="ana", model="own", onnx="0" * 64, variants={}, dataset="stations"
        )


def test_a_models_policy_names_a_dataset_that_is_there(ctx: Context, trained: Operation) -> None:
    kept = models.set_policy(
        ctx, actor="ana", model="lot-codes", retrain_on_drift=True, dataset="stations"
    )
    assert (kept.retrain_on_drift, kept.dataset) == (True, "stations")
    with pytest.raises(AbsentError):
        models.set_policy(
            ctx, actor="ana", model="lot-codes", retrain_on_drift=True, dataset="none"
        )
    with pytest.raises(AbsentError):
        models.get_model(ctx, "none")


def test_every_release_is_listed_newest_first_and_the_trail_is_whole(
    ctx: Context, broken: str
) -> None:
    listed = [r.version for r in releases.list_releases(ctx, "lot-codes")]
    assert listed == sorted(listed, reverse=True)
    assert audit.verify(ctx) > 5
    with pytest.raises(AbsentError):
        releases.get_release(ctx, "lot-codes@99")
