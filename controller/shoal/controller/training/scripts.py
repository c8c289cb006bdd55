"""Training with an operator's own script: who may, and what is checked before it is queued."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from shoal.controller.access.roles import Actor, require
from shoal.controller.data import datasets
from shoal.controller.host.context import Context
from shoal.controller.operations.operations import Operation
from shoal.controller.training import training
from shoal.controller.training.label_task import task_of
from shoal.errors import DeniedError, InputError
from shoal.estimators import SCRIPT, Params
from shoal.manifest import check_model

#: Bytes of a script.
SCRIPT_LIMIT = 1 << 20
_COMMON = frozenset(Params.__struct_fields__)


class ScriptRequest(NamedTuple):
    """What a person gives.

    path, filename   the script, and the client's name for it
    entry    "" to run it as a program, "function" of it, or "module:function"
    task     "classification" or "regression"; "" for what the label says
    params   "seed", "holdout", "sites", "missing" as for every training, all others for the script
    revision  of the script, such as a Git commit; "" for none
    """

    path: Path
    filename: str
    dataset: str
    entry: str
    task: str
    params: Mapping[str, Any]
    sites: Sequence[str] = ()
    revision: str = ""


def start(ctx: Context, actor: Actor, *, model: str, request: ScriptRequest) -> Operation:
    """Store the script and enqueue the training.

    DeniedError where the controller lets nobody of this role run scripts; InputError, with the
    line, for a script that is no Python.
    """
    check_role(ctx, actor)
    check_model(model)
    name = _check(request)
    version = datasets.get_dataset(ctx, request.dataset)
    common = {key: request.params[key] for key in _COMMON if key in request.params}
    own = {key: value for key, value in request.params.items() if key not in _COMMON}
    task_of(version, request.task)  # asks where the label leaves that open
    params = common | {
        "task": request.task,
        "name": name,
        "entry": request.entry,
        "values": own,
    }
    return training.start_training(
        ctx,
        actor=actor.name,
        model=model,
        dataset=version.ref,
        estimator=SCRIPT,
        params=params,
        sites=request.sites,
        revision=request.revision,
        script=ctx.blobs.put_file(request.path).sha256,
    )


def read_params(text: str) -> dict[str, Any]:
    """Parameters of a form, as a JSON object; InputError for anything else."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise InputError(f"params: {error}", 'send a JSON object: {"depth": 3}') from error


def check_role(ctx: Context, actor: Actor) -> None:
    """DeniedError unless the controller's setting `scripts` lets this actor run scripts."""
    if ctx.settings.operations.scripts == training.NOBODY:
        raise DeniedError(*training.SWITCHED_OFF)
    require(actor, ctx.settings.operations.scripts)


def _check(request: ScriptRequest) -> str:
    """The script's name as a module; InputError for what cannot be one."""
    called = request.filename.replace("\\", "/").rpartition("/")[2] or "train.py"
    if request.path.stat().st_size > SCRIPT_LIMIT:
        raise InputError(f"{called[:80]} is larger than 1 MiB", "keep data out of the script")
    try:
        compile(request.path.read_bytes(), called, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise InputError(
            f"{called[:80]}, line {error.lineno}: {error.msg}", "it has to be Python 3.11"
        ) from error
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise InputError(f"{called[:80]} is no Python: {error!s:.200}", "look at it") from error
    stem = re.sub(r"\W", "_", called.removesuffix(".py"), flags=re.ASCII)[:63]
    return stem if re.match(r"[A-Za-z_]", stem) else f"_{stem}"[:63]
