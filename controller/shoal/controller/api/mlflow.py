"""Routes for MLflow: versions of its registry as releases."""

import msgspec

from shoal.controller.api.models import OPERATION, TaskWord
from shoal.controller.api.routing import Call, RequestModel, route
from shoal.controller.mlflow import imports
from shoal.controller.operations.operations import Operation
from shoal.controller.training.imports import ImportRequest

TAG = "mlflow"


class RegistryImport(RequestModel, frozen=True, kw_only=True):
    """An import from MLflow; it is measured like an import of a file.

    source     "mlflow:NAME/VERSION" or "mlflow:NAME@alias"
    dataset    a labelled table, for a model of rows; for one of named tensors a dataset of images,
               audio or tensors, or ""
    task       as of an import of a file; "tensors": nothing is claimed
    labels     class names by output column
    settings, kinds, pipeline   as of an import of a file
    """

    source: str
    dataset: str = ""
    task: TaskWord = ""
    labels: list[str] = msgspec.field(default_factory=list)
    kinds: str = ""
    settings: str = ""
    pipeline: str = ""


@route("POST", "/api/v1/models/<model>/import-mlflow", role="operator", tag=TAG, status=202,
       location=OPERATION, repeatable=True)  # fmt: skip
def import_from_mlflow(call: Call, model: str, body: RegistryImport) -> Operation:
    """Fetch a version from MLflow's registry and import its ONNX flavour.

    A version that cannot be imported is refused at once; the rest is measured in the operation.
    """
    request = ImportRequest(
        body.task, body.dataset, body.labels, body.pipeline, {}, body.kinds, body.settings
    )
    return imports.start(
        call.ctx, call.services.mlflow, call.services.read_facts,
        actor=call.by, model=model, reference=body.source, request=request,
    )  # fmt: skip
