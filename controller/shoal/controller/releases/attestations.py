"""Attestations of a release: its ML-BOM and the provenance of its files, packed into its bundle."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec

from shoal import bundle, provenance
from shoal.controller.host.context import Context
from shoal.controller.operations.operations import Operation
from shoal.controller.releases import ml_bom
from shoal.controller.releases.records import Built
from shoal.errors import AbsentError
from shoal.manifest import File, Manifest
from shoal.provenance import ResourceDescriptor

BOM, PROVENANCE = "bom.cdx.json", "provenance.json"
#: Bytes of JSON of an operation's parameters above which their hash stands for them.
_MOST_PARAMETERS = 16_384
#: Files that an operation was given -> parameter with their SHA-256.
_INPUTS = {"script": "script", "model": "onnx", "sample": "sample", "steps": "steps"}
#: Facts of an environment that are no package.
_MACHINE = ("python", "machine", "cpus", "packages")


def attach(
    ctx: Context,
    manifest: Manifest,
    built: Built,
    operation: Operation,
    environment: Mapping[str, str],
) -> Manifest:
    """Store the ML-BOM and the provenance of a release; its manifest that names both.

    environment   of the run that built it, name -> version
    """
    replace, now = msgspec.structs.replace, ctx.clock()
    estimator = str(operation.params.get("estimator", ""))
    bom = ml_bom.bom_of(manifest, built, operation.id, estimator, environment, _time(now))
    manifest = replace(manifest, bom=_store(ctx, BOM, bom))
    statement = _statement(ctx, manifest, built, operation, environment, now)
    return replace(manifest, provenance=_store(ctx, PROVENANCE, provenance.encode(statement)))


def read(ctx: Context, manifest: Manifest, kind: str) -> bytes:
    """JSON bytes of "bom" or "provenance"; AbsentError for a release packed before there were."""
    file = manifest.bom if kind == "bom" else manifest.provenance
    if file is msgspec.UNSET:
        raise AbsentError(kind, manifest.release, "it was packed before there were any: train anew")
    return ctx.blobs.read(file.sha256)


def _store(ctx: Context, name: str, data: bytes) -> File:
    ctx.blobs.put_bytes(data)
    return bundle.describe(name, data)


def _statement(
    ctx: Context,
    manifest: Manifest,
    built: Built,
    operation: Operation,
    environment: Mapping[str, str],
    now: float,
) -> provenance.Statement:
    root = ctx.signer.metadata_folder / "1.root.json"
    return provenance.Statement(
        type=provenance.STATEMENT,
        subject=provenance.subjects_of(manifest),
        predicate_type=provenance.PREDICATE,
        predicate=provenance.Predicate(
            build_definition=provenance.BuildDefinition(
                build_type=provenance.BUILD_TYPE,
                external_parameters=_asked_for(operation),
                internal_parameters=provenance.internal_parameters(manifest),
                resolved_dependencies=_inputs(manifest, operation, environment),
            ),
            run_details=provenance.RunDetails(
                builder=provenance.Builder(
                    id=f"urn:shoal:controller:{hashlib.sha256(root.read_bytes()).hexdigest()}",
                    version={"shoal": environment.get("shoal", "unknown")},
                ),
                metadata=provenance.BuildMetadata(
                    invocation_id=f"urn:shoal:operation:{operation.id}",
                    started_on=_time(operation.started_at or operation.created_at),
                    finished_on=_time(now),
                ),
                byproducts=[_gates(built, operation)],
            ),
        ),
    )


def _asked_for(operation: Operation) -> dict[str, Any]:
    """What a person or an alert asked for, and the revision of the code that asked."""
    given = operation.params
    named = ("dataset", "estimator", "trigger", "task", "revision")
    asked = {name: given[name] for name in named if given.get(name)}
    asked |= {"kind": operation.kind, "model": operation.subject, "by": operation.created_by}
    params = msgspec.json.encode(given.get("params") or {}, order="sorted")
    if len(params) <= _MOST_PARAMETERS:
        return asked | {"params": given.get("params") or {}}
    return asked | {"paramsSha256": hashlib.sha256(params).hexdigest()}


def _inputs(
    manifest: Manifest, operation: Operation, environment: Mapping[str, str]
) -> list[ResourceDescriptor]:
    """The dataset, the files that were given, the rounds that trained it, and the packages."""
    given = operation.params
    found = [_resource(name, given[key]) for name, key in _INPUTS.items() if given.get(key)]
    for name, sha256 in {**given.get("data", {}), **given.get("variants", {})}.items():
        found.append(_resource(f"model: {name}", sha256))
    if manifest.dataset_sha256:
        uri = f"urn:shoal:dataset:{quote(manifest.dataset, safe='@')}"
        dataset = _resource(provenance.DATASET, manifest.dataset_sha256)
        found.insert(0, msgspec.structs.replace(dataset, uri=uri))
    if manifest.taught is not None:
        taught = manifest.taught
        uri = f"urn:shoal:round:{quote(taught.task)}:{taught.round}"
        facts = msgspec.to_builtins(taught)
        found.append(ResourceDescriptor(name="federated rounds", uri=uri, annotations=facts))
    return found + _environment(environment)


def _environment(environment: Mapping[str, str]) -> list[ResourceDescriptor]:
    """The Python environment: hash of all its packages, and those that can change what is built."""
    machine = {name: environment[name] for name in _MACHINE if name in environment}
    if not machine:
        return []
    packages = machine.pop("packages", "").removeprefix("sha256:")
    digest = {"sha256": packages} if packages else {}
    uri = f"pkg:generic/python@{quote(machine.get('python', 'unknown'))}"
    python = ResourceDescriptor(name="environment", uri=uri, digest=digest, annotations=machine)
    libraries = {k: v for k, v in environment.items() if k not in _MACHINE}
    return [
        python,
        *(ResourceDescriptor(name=k, uri=ml_bom.purl(k, v)) for k, v in libraries.items()),
    ]


def _gates(built: Built, operation: Operation) -> ResourceDescriptor:
    """Results of the gates: the release's, and of each profile's variants."""
    profiles: dict[str, dict[str, str]] = {}
    for one in built.verdicts:
        outcome = "passed" if one.passed else f"refused: {one.why}"
        profiles.setdefault(one.profile, {})[one.variant or "all"] = outcome
    release = f"refused: {built.why_refused}" if built.why_refused else "passed"
    results = {"release": release, "profiles": profiles, "metrics": built.metrics}
    return ResourceDescriptor(
        name="gates", uri=f"urn:shoal:operation:{operation.id}#gates", annotations=results
    )


def _resource(name: str, sha256: str) -> ResourceDescriptor:
    return ResourceDescriptor(name=name, digest={"sha256": sha256})


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
