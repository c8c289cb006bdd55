"""Provenance of a release: an in-toto statement of how its files were made, kept in its bundle.

The controller writes it when it packs a release; the signed manifest has its hash. A device, and
`shoal release verify`, refuse a release whose provenance is about other files, another release or
another dataset than its manifest.

Sources: in-toto Attestation Framework, Statement v1; SLSA 1.0, Provenance v1 predicate.
"""

from typing import Any

import msgspec

from shoal.errors import ProvenanceError
from shoal.manifest import File, Manifest
from shoal.validation_errors import decode_errors_as

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
#: How the fields of `externalParameters` and `internalParameters` are to be read: docs/security.md.
BUILD_TYPE = "https://shoal.dev/build/release/v1"
#: Name of the dependency that is the training data.
DATASET = "dataset"
#: Bytes of a statement at most.
LIMIT = 262_144


class ResourceDescriptor(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"
):
    """A file, dataset or package. digest: algorithm -> hex."""

    name: str = ""
    uri: str = ""
    digest: dict[str, str] = {}
    media_type: str = ""
    annotations: dict[str, Any] = {}


class BuildDefinition(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What was asked for, what the controller decided, and what went in."""

    build_type: str
    external_parameters: dict[str, Any]
    internal_parameters: dict[str, Any] = {}
    resolved_dependencies: list[ResourceDescriptor] = []


class Builder(msgspec.Struct, frozen=True, kw_only=True):
    """The controller. id: of its root of trust; version: of its software."""

    id: str
    version: dict[str, str] = {}


class BuildMetadata(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Times are RFC 3339, UTC."""

    invocation_id: str = ""
    started_on: str = ""
    finished_on: str = ""


class RunDetails(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who built, when, and what came out beside the files: the gates' results."""

    builder: Builder
    metadata: BuildMetadata = BuildMetadata()
    byproducts: list[ResourceDescriptor] = []


class Predicate(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """SLSA provenance."""

    build_definition: BuildDefinition
    run_details: RunDetails


class Statement(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """in-toto statement about `subject`: every file of the release but the statement itself."""

    type: str = msgspec.field(name="_type")
    subject: list[ResourceDescriptor]
    predicate_type: str
    predicate: Predicate


def encode(statement: Statement) -> bytes:
    """Canonical JSON bytes."""
    return msgspec.json.encode(statement, order="sorted")


def subjects_of(manifest: Manifest) -> list[ResourceDescriptor]:
    """Every file of a release but its provenance, as the subject of a statement."""
    return [_described(file) for file in _files(manifest)]


def internal_parameters(manifest: Manifest) -> dict[str, Any]:
    """What the controller decided about a release."""
    return {
        "model": manifest.model,
        "version": manifest.version,
        "securityEpoch": manifest.release_counter,
    }


def verify(data: bytes, manifest: Manifest) -> Statement:
    """Read the provenance of a release; ProvenanceError unless it agrees with its manifest.

    Held against it: the SHA-256 of every file, the model's name, the version, the dataset's hash.
    """
    release = manifest.release
    if len(data) > LIMIT:
        raise ProvenanceError(f"{release}: provenance of {len(data)} bytes, {LIMIT} allowed")
    with decode_errors_as(lambda cause: ProvenanceError(f"{release}: provenance: {cause}")):
        found = msgspec.json.decode(data, type=Statement)
    if (found.type, found.predicate_type) != (STATEMENT, PREDICATE):
        raise ProvenanceError(f"{release}: provenance of an unknown type {found.type!r:.100}")
    for says, contradicts in (_release(found, manifest), _files_of(found, manifest)):
        if says != contradicts:
            raise ProvenanceError(
                f"{release}: its provenance is of {says:.300}, its manifest of {contradicts:.300}"
            )
    _check_dataset(found, manifest)
    return found


def _release(found: Statement, manifest: Manifest) -> tuple[str, str]:
    made = found.predicate.build_definition.internal_parameters
    return f"{made.get('model')}@{made.get('version')}", manifest.release


def _files_of(found: Statement, manifest: Manifest) -> tuple[str, str]:
    """The files that only one of both has, or has with another hash; two equal texts for none."""
    theirs = {(one.name, one.digest.get("sha256", "")) for one in found.subject}
    ours = {(file.name, file.sha256) for file in _files(manifest)}
    return _names(theirs - ours), _names(ours - theirs)


def _names(files: set[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {sha256[:12]}" for name, sha256 in sorted(files)) or "no such file"


def _check_dataset(found: Statement, manifest: Manifest) -> None:
    given = found.predicate.build_definition.resolved_dependencies
    hashes = [one.digest.get("sha256", "") for one in given if one.name == DATASET]
    expected = [manifest.dataset_sha256] if manifest.dataset_sha256 else []
    if hashes != expected:
        says, contradicts = (", ".join(one[:12] for one in all_) for all_ in (hashes, expected))
        raise ProvenanceError(
            f"{manifest.release}: its provenance is of dataset {says or 'none'}, its manifest of "
            f"{contradicts or 'none'}"
        )


def _files(manifest: Manifest) -> list[File]:
    unique = {file.name: file for file in manifest.files() if file != manifest.provenance}
    return [*unique.values()]


def _described(file: File) -> ResourceDescriptor:
    return ResourceDescriptor(name=file.name, digest={"sha256": file.sha256})
