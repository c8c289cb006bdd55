"""Routes for models and releases."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from shoal import estimators
from shoal.controller.api.routing import (
    Call,
    Limit,
    Listing,
    RequestModel,
    Uploads,
    all_of,
    listed,
    route,
)  # fmt: skip
from shoal.controller.operations.operations import Operation
from shoal.controller.releases import (
    attestations,
    export,
    models,
    releases,
    retirement,
    verdicts,
)
from shoal.controller.releases.records import Model, ModelInspection, Release
from shoal.controller.rollouts import release_revocation
from shoal.controller.store.records import Record
from shoal.controller.training import imports, scripts, training
from shoal.estimators import EstimatorFacts
from shoal.profile import load_profiles

TAG = "models"
CYCLONEDX = "application/vnd.cyclonedx+json; version=1.6"
IN_TOTO, ZIP = "application/vnd.in-toto+json", "application/zip"
OPERATION = "/api/v1/operations/{id}"
#: Text that names a state of code.
Revision = Annotated[str, msgspec.Meta(max_length=200)]
#: What a model's outputs mean; "" for what its dataset says.
TaskWord = Literal[
    "", "classification", "multi-label", "regression", "anomaly", "embedding", "detection",
    "segmentation", "sequence", "tensors",
]  # fmt: skip
_DATA = "a file that the model keeps weights in, by the name that it calls it"


class Training(RequestModel, frozen=True, kw_only=True):
    """A training job.

    dataset  "name@version", or "name" for its newest version
    estimator  "" for a small network of the task
    task     "" for what the estimator or the dataset's label says
    sites    only rows of these sites; empty for all
    params   of the estimator, and "holdout", the share held back
    revision  of the code or configuration that asks for it, such as a Git commit; kept with the run
    """

    dataset: str
    estimator: str = ""
    task: Literal["", "classification", "regression"] = ""
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    sites: list[str] = msgspec.field(default_factory=list)
    revision: Revision = ""


class ScriptTraining(RequestModel, frozen=True, kw_only=True):
    """A training by a script of one's own.

    dataset  "name@version", or "name" for its newest version
    entry    "" to run the script as a program, "function" of it, or "module:function"
    task     "" for what the dataset's label says
    params   JSON object: "seed", "holdout", "missing" as for every training, all others for the
             script
    sites    only rows of these sites, separated by commas; "" for all
    revision  of the script, such as a Git commit; kept with the run
    """

    dataset: str
    entry: str = ""
    task: Literal["", "classification", "regression"] = ""
    params: str = "{}"
    sites: str = ""
    revision: Revision = ""


class Import(RequestModel, frozen=True, kw_only=True):
    """An import. labels: class names by output column, comma-separated, or a JSON array.

    dataset    a labelled table, on which a model of rows is measured; for one of named tensors a
               dataset of images, audio or tensors, in place of a sample, or ""
    task       "classification" or "regression" of rows, "" for what the dataset's label says; any
               for named tensors, measured on the sample's label; "tensors": nothing is claimed
    settings   JSON of other fields of a task for named tensors; docs/models/tasks.md
    kinds      of tensors with a sample, what inputs are: "x=image,y=tokens" of image, audio,
               tokens, text, numbers, nothing; inferred where it is not said
    pipeline   JSON, from the dataset's columns to the model's inputs; docs/sources-and-sinks.md
    """

    dataset: str = ""
    labels: str = ""
    kinds: str = ""
    pipeline: str = ""
    settings: str = ""
    task: TaskWord = ""


class Inspecting(RequestModel, frozen=True, kw_only=True):
    """No fields."""


class Policy(RequestModel, frozen=True, kw_only=True):
    """Automatic retraining, on the newest version of a dataset.

    task         federated task of this model whose `rounds` a drift alert starts; "" for none
    cooldown_s   minimum seconds between two starts
    """

    retrain_on_drift: bool
    dataset: str = ""
    task: str = ""
    rounds: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 10
    cooldown_s: Annotated[float, msgspec.Meta(ge=0, le=366 * 86_400)] = 86_400.0


class ReleaseQuery(RequestModel, frozen=True, kw_only=True):
    """Filters of releases; empty ones match all.

    state   validated, refused, candidate or released
    all     with those that are retired
    q       part of "model@version", of the dataset or of who made it
    sort    created, model or state; "-" before it: falling
    """

    model: str = ""
    state: str = ""
    q: str = ""
    all: bool = False
    sort: str = "-created"
    cursor: str = ""
    limit: Limit = 50


class ModelQuery(RequestModel, frozen=True, kw_only=True):
    """Filters of models.

    q      part of the name
    all    with the models that are retired
    sort   name or created; "-" before it: falling
    """

    q: str = ""
    all: bool = False
    sort: str = "name"
    cursor: str = ""
    limit: Limit = 50


class Retirement(RequestModel, frozen=True, kw_only=True):
    """reason: for the audit log."""

    reason: str = ""


class RevocationRequest(RequestModel, frozen=True, kw_only=True):
    """reason: stored, shown and audited; it must not be empty."""

    reason: str


class Revoked(Record, frozen=True, kw_only=True):
    """A revoked release.

    epoch       security epoch of the model now
    rollouts    of the release that were ended -> state
    groups      what groups that ran it run now, as sentences
    serving     devices that serve it by their last report
    next_step   what a person is to do; "" for nothing
    """

    release: str
    epoch: int
    rollouts: dict[str, str]
    groups: list[str]
    serving: int
    next_step: str


class Publishing(RequestModel, frozen=True, kw_only=True):
    """override: reason for publishing a release that a gate refused; audited."""

    override: str = ""


@route("GET", "/api/v1/models", role="viewer", tag=TAG)
def list_models(call: Call, query: ModelQuery) -> Listing[Model]:
    """Models that are not retired, by name."""
    asked = msgspec.structs.asdict(query)
    return Listing(*models.page(call.ctx, retired=asked.pop("all"), **asked))


@route("GET", "/api/v1/models/<model>", role="viewer", tag=TAG)
def get_model(call: Call, model: str) -> Model:
    """One model."""
    return models.get_model(call.ctx, model)


@route("GET", "/api/v1/estimators", role="viewer", tag=TAG)
def list_estimators(call: Call) -> Listing[EstimatorFacts]:
    """Estimators that a training job may name, with parameters, defaults and bounds."""
    return all_of(estimators.list_estimators())


@route("POST", "/api/v1/models/<model>/train", role="operator", tag=TAG, status=202,
       location=OPERATION, repeatable=True)  # fmt: skip
def train(call: Call, model: str, body: Training) -> Operation:
    """Train the next release of a model; the operation has its progress."""
    job = msgspec.structs.asdict(body)
    return training.start_training(call.ctx, actor=call.by, model=model, **job)


@route("POST", "/api/v1/models/<model>/script", role="operator", tag=TAG, status=202,
       location=OPERATION, limit=2 * scripts.SCRIPT_LIMIT,
       files={"script": "Python, as docs/training.md says"})  # fmt: skip
def train_with_script(call: Call, model: str, form: ScriptTraining, files: Uploads) -> Operation:
    """Train the next release with a script; refused unless `[operations] scripts` allows it."""
    assert call.actor is not None
    request = scripts.ScriptRequest(
        files["script"].path, files["script"].filename, form.dataset, form.entry, form.task,
        scripts.read_params(form.params), listed(form.sites), form.revision,
    )  # fmt: skip
    return scripts.start(call.ctx, call.actor, model=model, request=request)


@route("POST", "/api/v1/models/<model>/import", role="operator", tag=TAG, status=202,
       location=OPERATION, limit=imports.UPLOAD_LIMIT,
       files={"onnx": "the model", "data:*": _DATA,
              "variant:*": "your own file for that variant",
              "sample?": "named tensors: .npz of inputs, stacked on a first axis, and label",
              "steps?": "named tensors: TOML or JSON, made part of the graph"})  # fmt: skip
def import_model(call: Call, model: str, form: Import, files: Uploads) -> Operation:
    """Import ONNX files as the next release of a model.

    A file that cannot be imported is refused at once; the rest is measured in the operation.
    """
    request = imports.ImportRequest(
        form.task, form.dataset, imports.parse_labels(form.labels), form.pipeline,
        _import_files(files), form.kinds, form.settings,
    )  # fmt: skip
    return imports.start(
        call.ctx, call.services.read_facts, actor=call.by, model=model, request=request
    )


@route("POST", "/api/v1/models/inspect", role="operator", tag=TAG, limit=imports.UPLOAD_LIMIT,
       files={"onnx": "the model", "data:*": _DATA,
              "steps?": "of an import, made part of it"})  # fmt: skip
def inspect_model(call: Call, form: Inspecting, files: Uploads) -> ModelInspection:
    """Read an ONNX file without storing it: its tensors, operators, memory, and who can carry it.

    A file that could not be imported is refused, with the reason; so are steps that do not fit it.
    """
    steps = files["steps"].path if "steps" in files else None
    given = _import_files(files)
    file, data = given["onnx"], imports.data_of(given)
    facts = call.services.read_facts(file.path, imports.called(file, "onnx"), data, steps)
    size = sum(path.stat().st_size for path in (file.path, *data.values()))
    carried = verdicts.carriers(size, facts.memory_mb, load_profiles())
    return ModelInspection(size=size, facts=facts, verdicts=carried)


@route("PUT", "/api/v1/models/<model>/policy", role="operator", tag=TAG)
def set_policy(call: Call, model: str, body: Policy) -> Model:
    """Set the retraining policy of a model."""
    policy = msgspec.structs.asdict(body)
    return models.set_policy(call.ctx, actor=call.by, model=model, **policy)


@route("GET", "/api/v1/releases", role="viewer", tag=TAG)
def list_releases(call: Call, query: ReleaseQuery) -> Listing[Release]:
    """Releases that are not retired, newest first."""
    asked = msgspec.structs.asdict(query)
    return Listing(*releases.page(call.ctx, retired=asked.pop("all"), **asked))


@route("GET", "/api/v1/releases/<ref>", role="viewer", tag=TAG)
def get_release(call: Call, ref: str) -> Release:
    """One release, "model@version"."""
    return releases.get_release(call.ctx, ref)


@route("GET", "/api/v1/releases/<ref>/bom", role="viewer", tag=TAG, media=CYCLONEDX)
def release_bom(call: Call, ref: str) -> bytes:
    """ML-BOM of a release: CycloneDX 1.6 with model card, data, files and packages."""
    return _attestation(call, ref, "bom")


@route("GET", "/api/v1/releases/<ref>/provenance", role="viewer", tag=TAG, media=IN_TOTO)
def release_provenance(call: Call, ref: str) -> bytes:
    """Provenance of a release: in-toto statement v1 with SLSA provenance v1."""
    return _attestation(call, ref, "provenance")


@route("GET", "/api/v1/releases/<ref>/archive", role="operator", tag=TAG, media=ZIP)
def release_archive(call: Call, ref: str) -> Iterator[bytes]:
    """A signed release in one file, with the metadata that proves it: `shoal release verify`."""
    call.headers["Content-Disposition"] = f"attachment; filename={ref.replace('@', '-')}.zip"
    return export.archive(call.ctx, ref)


@route("POST", "/api/v1/releases/<ref>/publish", role="approver", tag=TAG)
def publish(call: Call, ref: str, body: Publishing) -> Release:
    """Sign a release for the stable ring."""
    return releases.publish(call.ctx, actor=call.by, ref=ref, override=body.override)


@route("POST", "/api/v1/releases/<ref>/retire", role="operator", tag=TAG)
def retire_release(call: Call, ref: str, body: Retirement) -> Release:
    """Retire a release: it is kept, and cannot be published or rolled out any more."""
    retirement.retire_release(call.ctx, actor=call.by, ref=ref, reason=body.reason)
    return releases.get_release(call.ctx, ref)


@route("POST", "/api/v1/releases/<ref>/unretire", role="operator", tag=TAG)
def unretire_release(call: Call, ref: str) -> Release:
    """Take a retired release back."""
    retirement.unretire_release(call.ctx, actor=call.by, ref=ref)
    return releases.get_release(call.ctx, ref)


@route("POST", "/api/v1/releases/<ref>/revoke", role="admin", tag=TAG)
def revoke_release(call: Call, ref: str, body: RevocationRequest) -> Revoked:
    """Revoke a release for good: devices leave it, and refuse every later order of it."""
    done = release_revocation.revoke(call.ctx, actor=call.by, ref=ref, reason=body.reason)
    return Revoked(**done._asdict())


@route("POST", "/api/v1/models/<model>/retire", role="operator", tag=TAG)
def retire_model(call: Call, model: str, body: Retirement) -> Model:
    """Retire a model with all of its releases."""
    retirement.retire_model(call.ctx, actor=call.by, name=model, reason=body.reason)
    return models.get_model(call.ctx, model)


@route("POST", "/api/v1/models/<model>/unretire", role="operator", tag=TAG)
def unretire_model(call: Call, model: str) -> Model:
    """Take a retired model back."""
    retirement.unretire_model(call.ctx, actor=call.by, name=model)
    return models.get_model(call.ctx, model)


def _attestation(call: Call, ref: str, kind: str) -> bytes:
    manifest, _ = releases.manifest_of(call.ctx, ref)
    return attestations.read(call.ctx, manifest, kind)


def _import_files(files: Uploads) -> dict[str, imports.ImportFile]:
    return {name: imports.ImportFile(*file) for name, file in files.items()}
