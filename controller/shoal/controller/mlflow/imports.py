"""Imports of versions from an MLflow registry: fetched, compared with their signature, queued."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy.dialects.sqlite import insert as upsert

from shoal.controller.host.context import Context
from shoal.controller.mlflow import registry
from shoal.controller.mlflow.registry import MLmodel, Registry, Version
from shoal.controller.operations.operations import Operation
from shoal.controller.releases.records import ModelFacts
from shoal.controller.runs.records import Source
from shoal.controller.store.mlflow_tables import mlflow_import
from shoal.controller.training import imports
from shoal.controller.training.imports import ImportFile, ImportRequest, ReadFacts
from shoal.errors import ModelError
from shoal.onnx_outline import data_locations

MLMODEL, MLMODEL_LIMIT = "MLmodel", 1 << 20
#: Characters of a signature that are remembered, for each side.
_SIGNATURE = 4_000
_COMMIT, _CODE = "mlflow.source.git.commit", "mlflow.source.name"


def start(
    ctx: Context,
    server: Registry,
    read_facts: ReadFacts,
    *,
    actor: str,
    model: str,
    reference: str,
    request: ImportRequest,
) -> Operation:
    """Fetch the ONNX files of a version and enqueue their import as the next release of `model`.

    reference   "mlflow:NAME/VERSION" or "mlflow:NAME@alias"
    request     what else a person gives; its model file and source are set here

    AbsentError for a version that MLflow does not have; ModelError for one without an ONNX flavour,
    one whose files MLflow does not serve or that are too large, and one whose signature is not
    that of its graph; LinkError; and what training.imports.start raises.
    """
    asked = registry.parse_reference(reference)
    version = server.version_of(asked)
    at = registry.artifact_path(version.source, version.ref)
    files = server.list_files(at)
    if MLMODEL not in files:
        raise ModelError(
            f"mlflow:{version.ref} has no file MLmodel at {version.source[:200]}",
            "register a model that mlflow.onnx.log_model wrote",
        )
    described = registry.read_mlmodel(server.read_file(at, MLMODEL, MLMODEL_LIMIT), version.ref)
    source = _source(server.url, version, str(asked), described)

    def checked(
        path: Path, name: str, data: Mapping[str, Path] = {}, steps: Path | None = None
    ) -> ModelFacts:
        facts = read_facts(path, name, data, steps)
        registry.check_signature(described, facts, version.ref)
        return facts

    with _fetched(ctx, server, at, version, described.file, files) as fetched:
        whole = request._replace(
            files={**request.files, **fetched}, source=msgspec.to_builtins(source)
        )
        started = imports.start(ctx, checked, actor=actor, model=model, request=whole)
    with ctx.store.write() as db:
        row = upsert(mlflow_import).values(operation=started.id, name=version.ref)
        db.execute(row.on_conflict_do_nothing())
    return started


@contextmanager
def _fetched(
    ctx: Context, server: Registry, at: str, version: Version, file: str, files: Mapping[str, int]
) -> Iterator[dict[str, ImportFile]]:
    """The ONNX file and the files that it keeps weights in, below the controller's folder."""
    uploads = ctx.folder / "uploads"
    uploads.mkdir(mode=0o700, exist_ok=True)
    left = imports.UPLOAD_LIMIT
    with tempfile.TemporaryDirectory(dir=uploads, prefix="mlflow-") as folder:

        def fetch(name: str, place: str) -> Path:
            nonlocal left
            if name not in files:
                raise ModelError(
                    f"mlflow:{version.ref} has no file {name[:200]}, which its model names",
                    f"its files are: {', '.join(sorted(files))[:300]}; log it again",
                )
            if files[name] > left:
                raise ModelError(
                    f"mlflow:{version.ref}: {name[:200]} has {files[name]} bytes, in all more "
                    f"than {imports.UPLOAD_LIMIT >> 30} GiB",
                    "that is more than a device can load; log a smaller model",
                )
            path = Path(folder) / place
            with path.open("wb") as to:
                left -= server.download(at, name, to, left)
            return path

        label = f"mlflow:{version.ref}"
        onnx = fetch(file, "model.onnx")
        found = {"onnx": ImportFile(onnx, file.rpartition("/")[2])}
        beside = file.rpartition("/")[0]
        for place, name in enumerate(data_locations(onnx, label)):
            imports.data_of({f"{imports.DATA}{name}": ImportFile(onnx, name)})  # a name that can be
            path = fetch("/".join(filter(None, (beside, name))), f"data-{place}")
            found[f"{imports.DATA}{name}"] = ImportFile(path, name)
        yield found


def _source(url: str, version: Version, asked: str, described: MLmodel) -> Source:
    return Source(
        system="mlflow",
        name=version.ref,
        asked=asked,
        url=registry.page_of(url, version.name, version.version),
        artifacts=version.source[: registry.TEXT],
        run=version.run_id[:64],
        code=version.run_tags.get(_CODE, ""),
        revision=version.run_tags.get(_COMMIT, "")[:200],
        tags=_own(version.run_tags) | _own(version.tags),
        signature={side: text[:_SIGNATURE] for side, text in described.signature.items()},
    )


def _own(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags of people, without MLflow's, and without those that Shoal has written."""
    return {name: text for name, text in tags.items() if not name.startswith(("mlflow.", "shoal."))}
