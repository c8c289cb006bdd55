"""A release of tensors: what is signed, what its records say, and what does not apply to it."""

import hashlib
from pathlib import Path

import msgspec
import pytest

import tensor_releases
from controllers import make_context
from shoal import bundle
from shoal import manifest as manifests
from shoal.controller.federated.planning import tasks
from shoal.controller.federated.records import Pace, TaskPlan
from shoal.controller.host.context import Context
from shoal.controller.releases import models, releases, verdicts
from shoal.errors import ConflictError
from shoal.profile import load_profiles


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return make_context(tmp_path)


def test_its_manifest_is_of_schema_2_with_the_signature_and_the_file_of_its_author(
    ctx: Context, tmp_path: Path
) -> None:
    ref = tensor_releases.packed(ctx)
    manifest, data = releases.manifest_of(ctx, ref)
    assert (manifest.schema, manifest.task, manifest.takes_rows) == (2, "tensors", False)
    assert (manifest.input, manifest.output, manifest.dataset, manifest.labels) == ("", "", "", [])
    assert manifest.tensors == tensor_releases.built().signature
    [variant] = manifest.variants
    assert variant.file.sha256 == hashlib.sha256(tensor_releases.doubler()).hexdigest()

    folder = tmp_path / "device"
    folder.mkdir()
    (folder / bundle.MANIFEST).write_bytes(data)
    for file in manifest.files_for("rpi4"):
        (folder / file.name).write_bytes(ctx.blobs.read(file.sha256))
    assert bundle.verify(folder, "rpi4") == manifest
    assert bundle.read_references(folder, manifest).features == 0
    [vector] = bundle.read_golden_tensors(folder, manifest).vectors
    assert vector.arrays()["x"].shape == (2, 3)


def test_its_record_has_no_metrics_and_the_report_of_the_import(ctx: Context) -> None:
    found = releases.get_release(ctx, tensor_releases.released(ctx))
    assert (found.state, found.metrics, found.dataset, found.features) == ("released", {}, "", [])
    assert found.tensors is not None
    assert found.tensors.inputs[0].shape_text == "[N (items), 3]"
    assert found.tensors.notes == ["its shapes were tried"]
    assert releases.list_releases(ctx) == [found]


def test_a_file_of_the_author_is_stored_byte_for_byte_and_described_in_pieces(
    ctx: Context, tmp_path: Path
) -> None:
    whole = b"0123456789" * 210_000
    path = tmp_path / "own.onnx"
    path.write_bytes(whole)
    made = msgspec.structs.replace(tensor_releases.built(), files={"fp32": path})
    manifest, _ = releases.manifest_of(ctx, tensor_releases.packed(ctx, made))
    assert manifest.variant("fp32").file == bundle.describe("fp32.onnx", whole)
    assert len(manifest.variant("fp32").file.chunks) == 3
    assert ctx.blobs.read(manifest.variant("fp32").file.sha256) == whole


def test_a_manifest_of_rows_does_not_mention_a_signature() -> None:
    rows = manifests.Manifest(
        model="m", version=1, release_counter=1, task="regression", input="input", output="output",
        features=[], labels=[], variants=[], profiles={}, opset=17, ort="", created_s=0.0,
        dataset="d@1", dataset_sha256="", reference=bundle.describe("reference.json", b""),
        golden=bundle.describe("golden.npz", b""),
    )  # fmt: skip
    data = manifests.encode(rows)
    assert b"signature" not in data
    assert msgspec.json.decode(data)["schema"] == 1


def why(profile: str, size: int, memory_mb: float) -> str:
    return verdicts.why_too_large(size, memory_mb, load_profiles()[profile])


@pytest.mark.parametrize(
    ("profile", "size", "memory_mb", "words"),
    [
        ("rpi4", 1 << 20, 9.0, ""),
        ("rpi3-aarch64", 21 << 20, 9.0, "21.0 MB, the profile's budget is 20"),
        ("rpi3-aarch64", 18 << 20, 60.0, "about 113 MB resident with onnxruntime"),
        ("rpi4", 18 << 20, 60.0, ""),
    ],
)
def test_a_board_carries_it_by_size_and_memory(
    profile: str, size: int, memory_mb: float, words: str
) -> None:
    assert words in why(profile, size, memory_mb)
    assert bool(why(profile, size, memory_mb)) == bool(words)


def test_only_the_file_as_it_is_may_be_served(ctx: Context) -> None:
    manifest, _ = releases.manifest_of(ctx, tensor_releases.packed(ctx))
    assert manifest.profiles["rpi5"] == ["fp32"]
    assert "reflash" in manifest.refused["rpi3-armv7"]


def test_what_no_board_can_carry_is_refused_and_a_person_may_override_that(ctx: Context) -> None:
    ref = tensor_releases.packed(ctx, tensor_releases.built(memory_mb=9_000.0))
    with pytest.raises(ConflictError, match="no profile can carry it"):
        releases.publish(ctx, actor="boss", ref=ref)
    releases.publish(ctx, actor="boss", ref=ref, override="boards with swap")
    manifest, _ = releases.manifest_of(ctx, ref)
    assert manifest.profiles["rpi4"] == ["fp32"]


def test_a_federated_task_cannot_begin_with_it(ctx: Context) -> None:
    ref, pace = tensor_releases.released(ctx), Pace(goal=4, least=2, recruit_s=5, train_s=100)
    with pytest.raises(ConflictError, match="takes tensors, rounds need rows"):
        tasks.plan(ctx, actor="ana", task_plan=TaskPlan(name="t", release=ref, pace=pace))


def test_a_policy_on_drift_is_refused_for_it(ctx: Context) -> None:
    ref = tensor_releases.released(ctx)
    with pytest.raises(ConflictError, match=f"{ref} takes tensors, and is not trained here"):
        models.set_policy(
            ctx, actor="ana", model=tensor_releases.MODEL, retrain_on_drift=True, dataset=""
        )
    models.set_policy(
        ctx, actor="ana", model=tensor_releases.MODEL, retrain_on_drift=False, dataset=""
    )


def test_a_variant_whose_answers_depend_on_company_runs_alone_and_others_do_not_mention_it(
    ctx: Context,
) -> None:
    made = tensor_releases.built()
    dynamic = msgspec.structs.replace(made.variants[0], name="int8-dynamic", in_company=True)
    made = msgspec.structs.replace(
        made,
        files={**made.files, "int8-dynamic": tensor_releases.doubler()},
        variants=[*made.variants, dynamic],
    )
    manifest, data = releases.manifest_of(ctx, tensor_releases.packed(ctx, made))
    assert data.count(b'"alone":true') == data.count(b'"alone"') == 1
    assert manifest.signature_of("fp32").together == "batch"
    assert manifest.signature_of("int8-dynamic").together == "alone"


def test_a_candidate_that_was_dropped_is_in_the_record_and_not_in_the_manifest(
    ctx: Context,
) -> None:
    made = tensor_releases.built()
    lost = msgspec.structs.replace(made.variants[0], name="fp16-weights", dropped="too slow")
    made = msgspec.structs.replace(made, variants=[*made.variants, lost])
    ref = tensor_releases.packed(ctx, made)
    assert [v.name for v in releases.manifest_of(ctx, ref)[0].variants] == ["fp32"]
    assert releases.get_release(ctx, ref).variants[1].dropped == "too slow"
