"""ML-BOM of a release: model card, data, files and packages in the terms of CycloneDX.

Source: CycloneDX 1.6, JSON (bom-1.6.schema.json); ECMA-424. No library writes its model cards
(cyclonedx-python-lib 11 has none), so the document is built here, and tests hold it against the
published schema.
"""

import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from shoal.controller.releases.records import Built
from shoal.manifest import File, Manifest

SPEC = "1.6"
#: Namespace of the serial numbers: the same release of the same operation has the same one.
_SERIALS = uuid.UUID("5a0a1c52-7b1e-5c4c-9d0b-2f1d8f0f5e11")
#: Tasks that are learned from labels.
_SUPERVISED = frozenset(
    {"classification", "multi-label", "regression", "detection", "segmentation", "sequence"}
)
#: Inputs, outputs and limits named at most.
_MOST = 500


def bom_of(
    manifest: Manifest,
    built: Built,
    operation: str,
    estimator: str,
    environment: Mapping[str, str],
    at: str,
) -> bytes:
    """JSON bytes of the ML-BOM.

    operation    id of the run; estimator: its kind of model
    environment  name -> version
    at           RFC 3339
    """
    model, runtime = f"model:{manifest.release}", "pkg:pypi/onnxruntime"
    data = f"dataset:{manifest.dataset}" if manifest.dataset else ""
    files = {f"file:{file.name}": file for file in manifest.files()}
    parts = [_file(ref, file) for ref, file in files.items()]
    parts += [_dataset(data, manifest)] if data else []
    parts += [_runtime(runtime, manifest)]
    needs = [ref for ref in (data, runtime) if ref]
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": uuid.uuid5(_SERIALS, f"{operation} {manifest.release}").urn,
        "version": 1,
        "metadata": {
            "timestamp": at,
            "tools": {"components": [_tool(*one) for one in environment.items()]},
            "component": _model(model, data, manifest, built, operation, estimator),
        },
        "components": parts,
        "dependencies": [
            {"ref": model, "dependsOn": sorted([*files, *needs])},
            *({"ref": ref} for ref in (*files, *needs)),
        ],
    }
    return msgspec.json.encode(document)


def purl(name: str, version: str) -> str:
    """Package URL of a distribution of PyPI.

    >>> purl("scikit-learn", "1.7.2")
    'pkg:pypi/scikit-learn@1.7.2'
    """
    return f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(version, safe='')}"


def _model(
    ref: str, data: str, manifest: Manifest, built: Built, operation: str, estimator: str
) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": manifest.model,
        "version": str(manifest.version),
        "modelCard": {
            "modelParameters": _parameters(data, manifest, estimator),
            "quantitativeAnalysis": {"performanceMetrics": _metrics(manifest, built)},
            "considerations": {"technicalLimitations": built.notes[:_MOST]},
        },
        "properties": [
            _property("opset", str(manifest.opset)),
            _property("security-epoch", str(manifest.release_counter)),
            _property("operation", operation),
            _property("gate", built.why_refused or "passed"),
            *(_property(f"profile:{k}", ", ".join(v)) for k, v in manifest.profiles.items()),
            *(_property(f"refused:{k}", v) for k, v in manifest.refused.items()),
        ],
    }


def _parameters(data: str, manifest: Manifest, estimator: str) -> dict[str, Any]:
    found: dict[str, Any] = {"task": manifest.task}
    if manifest.task in _SUPERVISED:
        found["approach"] = {"type": "supervised"}
    if estimator:
        found["architectureFamily"] = estimator
    if data:
        found["datasets"] = [{"ref": data}]
    signature = manifest.tensors
    inputs = [f"{t.name}: {t.datatype} {t.shape_text}" for t in signature.inputs]
    inputs += [f"feature {one.name} {one.unit}".rstrip() for one in manifest.features]
    outputs = [f"{t.name}: {t.datatype} {t.shape_text}" for t in signature.outputs]
    outputs += [f"label {one}" for one in manifest.labels]
    found["inputs"] = [{"format": one} for one in inputs[:_MOST]]
    return found | {"outputs": [{"format": one} for one in outputs[:_MOST]]}


def _metrics(manifest: Manifest, built: Built) -> list[dict[str, str]]:
    """Of the model, by site, and of each variant."""
    found = [_metric(name, value) for name, value in built.metrics.items()]
    found += [_metric(built.main, value, f"site {site}") for site, value in built.by_site.items()]
    for variant in manifest.variants:
        slice_ = f"variant {variant.name}"
        found += [_metric(name, value, slice_) for name, value in variant.metrics.items()]
    return found


def _metric(name: str, value: float, slice_: str = "") -> dict[str, str]:
    return {"type": name, "value": f"{value:.6g}"} | ({"slice": slice_} if slice_ else {})


def _file(ref: str, file: File) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": ref,
        "name": file.name,
        "hashes": [_sha256(file.sha256)],
        "properties": [_property("bytes", str(file.size))],
    }


def _dataset(ref: str, manifest: Manifest) -> dict[str, Any]:
    name, _, version = manifest.dataset.rpartition("@")
    hashes = {"hashes": [_sha256(manifest.dataset_sha256)]} if manifest.dataset_sha256 else {}
    return {
        "type": "data",
        "bom-ref": ref,
        "name": name,
        "version": version,
        **hashes,
        "data": [{"type": "dataset", "name": manifest.dataset}],
    }


def _runtime(ref: str, manifest: Manifest) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": ref,
        "name": "onnxruntime",
        "purl": ref,
        "properties": [_property("versions", manifest.ort)],
    }


def _tool(name: str, version: str) -> dict[str, Any]:
    """A package or fact of the environment that built it."""
    if name == "packages":
        hashes = [_sha256(version.removeprefix("sha256:"))]
        return {"type": "file", "name": "all Python packages, name==version", "hashes": hashes}
    if name in ("machine", "cpus"):
        return {"type": "device", "name": f"{name}: {version}"}
    if name == "python":
        return {"type": "platform", "name": name, "version": version}
    return {"type": "library", "name": name, "version": version, "purl": purl(name, version)}


def _sha256(value: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": value}


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": f"shoal:{name}", "value": value}
