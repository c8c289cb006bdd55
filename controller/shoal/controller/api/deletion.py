"""Routes that delete releases, models and dataset versions, and say what depends on them."""

from shoal.controller.api.routing import Call, Listing, RequestModel, all_of, route
from shoal.controller.deletion import deletion, forgetting
from shoal.controller.deletion.dependents import DATASET, MODEL, RELEASE, Item
from shoal.controller.deletion.records import Deleted, Dependent, Forgotten

TAG = "models"


class Deletion(RequestModel, frozen=True, kw_only=True):
    """with_dependents: also what is safe to delete with it; never what is on devices."""

    with_dependents: bool = False


@route("GET", "/api/v1/releases/<ref>/dependents", role="viewer", tag=TAG)
def list_release_dependents(call: Call, ref: str) -> Listing[Dependent]:
    """What depends on a release, each with the next step."""
    return all_of(deletion.list_dependents(call.ctx, Item(RELEASE, ref)))


@route("DELETE", "/api/v1/releases/<ref>", role="approver", tag=TAG)
def delete_release(call: Call, ref: str, query: Deletion) -> Deleted:
    """Delete a release that nothing depends on."""
    return deletion.delete_release(
        call.ctx, actor=call.by, ref=ref, with_dependents=query.with_dependents
    )


@route("GET", "/api/v1/models/<model>/dependents", role="viewer", tag=TAG)
def list_model_dependents(call: Call, model: str) -> Listing[Dependent]:
    """What depends on a model, each with the next step."""
    return all_of(deletion.list_dependents(call.ctx, Item(MODEL, model)))


@route("DELETE", "/api/v1/models/<model>", role="approver", tag=TAG)
def delete_model(call: Call, model: str) -> Deleted:
    """Delete a model that nothing depends on, with all of its releases."""
    return deletion.delete_model(call.ctx, actor=call.by, name=model)


@route("GET", "/api/v1/datasets/<ref>/dependents", role="viewer", tag=TAG)
def list_dataset_dependents(call: Call, ref: str) -> Listing[Dependent]:
    """What depends on a version of a dataset, each with the next step."""
    return all_of(deletion.list_dependents(call.ctx, Item(DATASET, ref)))


@route("DELETE", "/api/v1/datasets/<ref>", role="approver", tag=TAG)
def delete_dataset(call: Call, ref: str, query: Deletion) -> Deleted:
    """Delete a version of a dataset, "name@2", that nothing depends on."""
    return deletion.delete_dataset(
        call.ctx, actor=call.by, ref=ref, with_dependents=query.with_dependents
    )


class Erasure(RequestModel, frozen=True, kw_only=True):
    """Whose rows are erased: those with `value` in `column`. It is never logged."""

    column: str
    value: str


@route("POST", "/api/v1/datasets/<name>/forget", role="approver", tag=TAG)
def forget_subject(call: Call, name: str, body: Erasure) -> Forgotten:
    """Erase a subject's rows from all versions of a table; what was trained on them is named."""
    return forgetting.forget(
        call.ctx, call.services.masking_keys, actor=call.by, name=name, column=body.column,
        value=body.value,
    )  # fmt: skip
