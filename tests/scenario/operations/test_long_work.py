"""Long work as the engine does it, with real processes: it ends when it shall, whatever it runs."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from controllers import add_digits
from fakes import memory_folder
from shoal.controller.access import audit
from shoal.controller.host.context import Context
from shoal.controller.host.settings import Operations as Limits
from shoal.controller.initialization import InitOptions, make_folder
from shoal.controller.operations import operations
from shoal.controller.operations.io.runner import OperationRunner
from shoal.controller.operations.operations import Operation
from shoal.controller.training import training
from shoal.controller.wiring import open_context
from shoal.errors import AbsentError, ConflictError

pytestmark = pytest.mark.scenario


@pytest.fixture
def ctx() -> Iterator[Context]:
    with memory_folder() as folder:
        make_folder(folder, InitOptions(), time.time())
        made = open_context(folder)
        yield made
        made.store.close()


def endless() -> bytes:
    """A valid classifier of 64 pixels whose Loop has no bound and never says that it is over."""
    true = numpy_helper.from_array(np.array(True), "true")
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Identity", ["seen"], ["same"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("seen", TensorProto.FLOAT, ["N", 10]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("same", TensorProto.FLOAT, ["N", 10]),
        ],
    )
    weights = numpy_helper.from_array(np.ones((64, 10), np.float32), "w")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
            helper.make_node("Loop", ["", "true", "scores"], ["probabilities"], body=body),
        ],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10])],
        [weights, true],
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())


def import_endless(ctx: Context) -> str:
    blob = ctx.blobs.put_bytes(endless())
    dataset = add_digits(ctx).ref
    asked = training.start_import(
        ctx, actor="eve", model="lot-codes", onnx=blob.sha256, variants={}, dataset=dataset
    )
    return asked.id


def train(ctx: Context) -> str:
    asked = training.start_training(
        ctx, actor="ana", model="others", dataset="stations", estimator="logistic"
    )
    return asked.id


def until(work: OperationRunner, true: Callable[[], Any], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not in time"
        work.step()
        time.sleep(0.02)


def state(ctx: Context, ident: str) -> Operation:
    return operations.get_operation(ctx, ident)


def burning(work: OperationRunner) -> Callable[[], bool]:
    """Whether the work, or what it runs the model in, is in native code for two seconds of CPU."""
    begun: dict[str, float] = {}

    def looks() -> bool:
        if work._process is None:
            return False
        used = cpu_of_group(work._process.pid)
        begun.update((pid, seconds) for pid, seconds in used.items() if pid not in begun)
        return any(seconds > begun[pid] + 2.0 for pid, seconds in used.items())

    return looks


def cpu_of_group(group: int) -> dict[str, float]:
    """Process -> its CPU seconds, of a process group."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                used = int(fields[11]) + int(fields[12])
                found[path.parent.name] = used / os.sysconf("SC_CLK_TCK")
    return found


def test_a_model_that_never_ends_is_canceled_and_the_next_work_is_done(ctx: Context) -> None:
    endless_, work = import_endless(ctx), OperationRunner(ctx)
    waiting = train(ctx)
    try:
        until(work, lambda: state(ctx, endless_).step not in ("waiting", "starting", ""))
        until(work, burning(work))
        pid = work._process.pid  # type: ignore[union-attr]
        assert operations.cancel(ctx, actor="ana", ident=endless_).state == operations.RUNNING
        until(work, lambda: state(ctx, endless_).state == operations.CANCELED, 10)
        assert state(ctx, endless_).error == "canceled by ana"
        assert not Path(f"/proc/{pid}").exists()
        until(work, lambda: state(ctx, waiting).state in operations.ENDED)
        assert state(ctx, waiting).state == operations.SUCCEEDED, state(ctx, waiting).error
    finally:
        work.stop()
    assert list((ctx.folder / "work").iterdir()) == []


def test_a_model_that_never_ends_is_ended_by_the_limit_with_a_hint(ctx: Context) -> None:
    settings = msgspec.structs.replace(ctx.settings, operations=Limits(limit_s=4.0))
    hasty = ctx._replace(settings=settings)
    endless_, work = import_endless(hasty), OperationRunner(hasty)
    try:
        until(work, lambda: state(ctx, endless_).state in operations.ENDED)
    finally:
        work.stop()
    ended = state(ctx, endless_)
    assert ended.state == operations.FAILED
    assert "ended after 4 s" in ended.error
    assert "limit_s under [operations]" in ended.error


def test_what_was_canceled_when_the_controller_went_away_stays_canceled(ctx: Context) -> None:
    add_digits(ctx)
    ident = train(ctx)
    operations.claim_next(ctx)
    operations.cancel(ctx, actor="ana", ident=ident)
    OperationRunner(ctx).step()
    assert state(ctx, ident).state == operations.CANCELED


def test_what_waits_is_over_at_once_and_never_begins(ctx: Context) -> None:
    add_digits(ctx)
    ident = train(ctx)
    assert operations.cancel(ctx, actor="ana", ident=ident).state == operations.CANCELED
    assert operations.claim_next(ctx) is None
    entry = audit.list_audit(ctx)[0][0]
    assert (entry.actor, entry.verb, entry.subject) == ("ana", "train.cancel", "others")


def test_what_has_ended_cannot_be_canceled_nor_what_never_was(ctx: Context) -> None:
    add_digits(ctx)
    ident = train(ctx)
    operations.finish(ctx, ident, error="no rows")
    with pytest.raises(ConflictError, match="has failed"):
        operations.cancel(ctx, actor="ana", ident=ident)
    with pytest.raises(AbsentError):
        operations.cancel(ctx, actor="ana", ident="op-0")


def test_canceling_twice_at_once_is_one_cancel(ctx: Context) -> None:
    add_digits(ctx)
    ident = train(ctx)
    operations.claim_next(ctx)

    def cancel(who: str) -> None:
        operations.cancel(ctx, actor=who, ident=ident)

    both = [threading.Thread(target=cancel, args=(who,)) for who in ("ana", "bo")]
    for one in both:
        one.start()
    for one in both:
        one.join()
    verbs = [entry.verb for entry in audit.list_audit(ctx)[0]]
    assert verbs.count("train.cancel") == 1
