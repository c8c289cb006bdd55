"""A manifest and a bundle, as an attacker or a bad disk might serve them."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from devices import FEATURES, MODEL, PROFILE, Cloud
from shoal import bundle
from shoal import manifest as manifests
from shoal.errors import BundleError
from shoal.golden import GoldenTensors, Vector
from shoal.manifest import File, Manifest
from shoal.signature import Signature, Tensor
from shoal.tasks import Classification, Embedding, Task, Tensors, labels_of
from shoal.tensors import StoredTensor


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def manifest(cloud: Cloud) -> Manifest:
    return cloud.manifest(1, 1, MODEL, b"")


@pytest.fixture
def folder(cloud: Cloud, manifest: Manifest, tmp_path: Path) -> Path:
    for file in manifest.files_for(PROFILE):
        (tmp_path / file.name).write_bytes(cloud.blobs[file.sha256])
    (tmp_path / bundle.MANIFEST).write_bytes(manifests.encode(manifest))
    return tmp_path


def test_a_manifest_survives_its_bytes(manifest: Manifest) -> None:
    assert manifests.parse(manifests.encode(manifest)) == manifest


class LastWeeksManifest(msgspec.Struct):
    """What agents before `meaning` read of a release of tensors."""

    schema: int
    signature: Signature


def of_tensors(manifest: Manifest) -> Manifest:
    signature = Signature(
        inputs=[Tensor(name="x", datatype="UINT8", shape=["N", 8], batch=0)],
        outputs=[Tensor(name="y", datatype="BYTES", shape=["N"], batch=0)],
        together="batch",
    )
    return msgspec.structs.replace(
        manifest, schema=2, task="tensors", input="", output="", features=[], labels=[],
        signature=signature,
    )  # fmt: skip


def test_a_manifest_says_what_its_outputs_mean_and_an_older_agent_serves_tensors(
    manifest: Manifest,
) -> None:
    meaning = Classification(output="y", labels=["a", "b"], form="label")
    claimed = msgspec.structs.replace(of_tensors(manifest), task="classification", meaning=meaning)
    data = manifests.encode(claimed)
    assert manifests.parse(data) == claimed
    assert claimed.answers == meaning
    older = msgspec.json.decode(data, type=LastWeeksManifest)
    assert older.signature.outputs[0].name == "y"


def test_what_rows_mean_is_said_by_the_manifest_s_first_schema(manifest: Manifest) -> None:
    assert labels_of(manifest.answers) == manifest.labels
    assert b"meaning" not in manifests.encode(manifest)
    assert b"meaning" not in manifests.encode(of_tensors(manifest))
    assert of_tensors(manifest).answers == Tensors()


@pytest.mark.parametrize(
    ("meaning", "task", "why"),
    [
        (Classification(output="z", labels=["a", "b"]), "classification", "no output 'z'"),
        (Embedding(output="y"), "classification", "its outputs mean embedding"),
    ],
)
def test_a_manifest_whose_outputs_cannot_mean_that_is_refused(
    manifest: Manifest, meaning: Task, task: str, why: str
) -> None:
    claimed = msgspec.structs.replace(of_tensors(manifest), task=task, meaning=meaning)
    with pytest.raises(BundleError, match=why):
        manifests.parse(manifests.encode(claimed))
    with pytest.raises(BundleError, match="schema 1"):
        manifests.parse(manifests.encode(msgspec.structs.replace(manifest, meaning=Tensors())))


def test_a_manifest_of_tensors_survives_its_bytes(manifest: Manifest) -> None:
    tensors = of_tensors(manifest)
    assert manifests.parse(manifests.encode(tensors)) == tensors
    assert not tensors.takes_rows
    assert tensors.tensors.inputs[0].datatype == "UINT8"


def test_a_manifest_of_rows_has_the_bytes_that_it_had_before_there_were_tensors(
    manifest: Manifest,
) -> None:
    assert b"signature" not in manifests.encode(manifest)
    assert manifest.takes_rows
    assert manifest.tensors.inputs[0].dims == [-1, len(FEATURES)]


def test_a_large_file_is_described_in_pieces_that_make_it_up() -> None:
    data = np.random.default_rng(0).bytes((2 << 20) + 5)
    file = bundle.describe("model.onnx", data)
    pieces = file.pieces()
    assert [(p.start, p.stop) for p in pieces] == [
        (0, 1 << 20),
        (1 << 20, 2 << 20),
        (2 << 20, len(data)),
    ]
    assert all(hashlib.sha256(data[p.start : p.stop]).hexdigest() == p.sha256 for p in pieces)
    assert msgspec.json.decode(msgspec.json.encode(file), type=File) == file


def test_a_small_file_has_no_pieces_in_its_description() -> None:
    file = bundle.describe("a", b"abc")
    assert set(msgspec.to_builtins(file)) == {"name", "size", "sha256"}


def changed(**fields: object) -> Callable[[bytes], bytes]:
    return lambda data: msgspec.json.encode(msgspec.json.decode(data) | fields)


def with_file(**fields: object) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        raw = msgspec.json.decode(data)
        raw["golden"] |= fields
        return msgspec.json.encode(raw)

    return change


def with_data(**fields: object) -> Callable[[bytes], bytes]:
    """The first variant with a data file."""

    def change(data: bytes) -> bytes:
        raw = msgspec.json.decode(data)
        raw["variants"][0]["data"] = [{"name": "w.bin", "size": 3, "sha256": "0" * 64} | fields]
        return msgspec.json.encode(raw)

    return change


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-10],
    "no JSON": lambda data: b"\xff\xfe",
    "not UTF-8": lambda data: b'{"model":"\xc3\x28"}',
    "nested without end": lambda data: b"[" * 100_000,
    "with pieces that cannot be": with_file(chunks=["0" * 64, "1" * 64]),
    "endless": lambda data: data + b" " * 300_000,
    "of a newer schema": changed(schema=3),
    "of tensors without a signature": changed(schema=2),
    "of rows with a signature": changed(
        signature={"inputs": [], "outputs": [{"name": "y", "datatype": "FP32", "shape": []}]}
    ),
    "naming a model that is a path": changed(model="../etc"),
    "naming a file that is a path": with_file(name="../../etc/passwd"),
    "naming a hidden file": with_file(name=".bashrc"),
    "naming a file with a folder": with_file(name="a/b"),
    "naming a data file that is a path": with_data(name="../w.bin"),
    "naming a data file as another file": with_data(name="golden.npz"),
    "naming a data file as the agent's own": with_data(name="slot.json"),
    "naming two files alike": with_file(name="reference.json"),
    "naming a hash that is none": with_file(sha256="zz"),
    "naming a negative size": with_file(size=-1),
    "preferring a variant it lacks": changed(profiles={"generic": ["int2"]}),
    "with features that are none": changed(features=[1, 2]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_manifest_is_refused_that_is(kind: str, manifest: Manifest) -> None:
    with pytest.raises(BundleError):
        manifests.parse(HOSTILE[kind](manifests.encode(manifest)))


def test_data_files_are_files_of_their_variant(manifest: Manifest) -> None:
    with_one = manifests.parse(with_data()(manifests.encode(manifest)))
    variant = with_one.variants[0]
    assert [file.name for file in variant.files] == [variant.file.name, "w.bin"]
    assert variant.size == variant.file.size + 3
    [profile] = [name for name, preferred in manifest.profiles.items() if preferred][:1]
    for files, before in (
        (with_one.files(), manifest.files()),
        (with_one.files_for(profile), manifest.files_for(profile)),
    ):
        assert [f.name for f in files if f not in before] == ["w.bin"]


def test_a_refused_profile_gets_a_reason(manifest: Manifest) -> None:
    refused = msgspec.structs.replace(manifest, profiles={}, refused={"rpi4": "lost 4 %"})
    with pytest.raises(BundleError, match="lost 4 %"):
        refused.files_for("rpi4")
    with pytest.raises(BundleError, match="not built for it"):
        refused.files_for("rpi5")


def test_a_sound_bundle_is_verified_and_read(folder: Path, manifest: Manifest) -> None:
    assert bundle.verify(folder, PROFILE) == manifest
    assert [f.name for f in bundle.read_references(folder, manifest).inputs.features] == [*FEATURES]
    golden = bundle.read_golden(folder, manifest)
    assert golden.inputs.shape == (8, 2)


def test_a_bundle_with_one_wrong_bit_is_not_verified(folder: Path, manifest: Manifest) -> None:
    for file in manifest.files_for(PROFILE):
        path = folder / file.name
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(BundleError, match="signed hash"):
            bundle.verify(folder, PROFILE)
        path.unlink()
        with pytest.raises(BundleError, match="missing"):
            bundle.verify(folder, PROFILE)
        path.write_bytes(good)


def test_golden_vectors_never_unpickle(folder: Path, manifest: Manifest) -> None:
    np.savez(folder / manifest.golden.name, inputs=np.array([{"a": 1}], object))
    with pytest.raises(BundleError):
        bundle.read_golden(folder, manifest)


def test_a_large_golden_file_is_not_even_opened(folder: Path, manifest: Manifest) -> None:
    with (folder / manifest.golden.name).open("wb") as file:
        file.truncate(9 << 20)
    with pytest.raises(BundleError, match="allowed"):
        bundle.read_golden(folder, manifest)


def test_golden_tensors_of_any_type_are_read_back(folder: Path, manifest: Manifest) -> None:
    texts = {"x": StoredTensor.of(np.array(["a", "ü"], object))}
    answers = {"fp32": {"y": StoredTensor.of(np.array([True, False]))}}
    written = GoldenTensors(vectors=[Vector(inputs=texts, outputs=answers)])
    (folder / manifest.golden.name).write_bytes(written.to_bytes())
    read = bundle.read_golden_tensors(folder, manifest)
    assert read.vectors[0].arrays()["x"].tolist() == ["a", "ü"]
    assert read == written


@pytest.mark.parametrize("data", [b"", b"\x81", b"\x81\xa7vectors\x90", b"\xc1" * 50])
def test_golden_tensors_that_cannot_be_are_refused(
    folder: Path, manifest: Manifest, data: bytes
) -> None:
    (folder / manifest.golden.name).write_bytes(data)
    with pytest.raises(BundleError, match=manifest.golden.name):
        bundle.read_golden_tensors(folder, manifest)


def test_a_variant_that_is_not_there_is_named(manifest: Manifest) -> None:
    with pytest.raises(BundleError, match="int2"):
        manifest.variant("int2")
    assert isinstance(manifest.variants[0].file, File)
