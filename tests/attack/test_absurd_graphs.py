"""Attack: a model of 300 bytes that asks for gigabytes, or for the network, when it is imported."""

import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from controllers import csv, numbers
from fakes import memory_folder
from shoal.controller.data import datasets
from shoal.controller.host.context import Context
from shoal.controller.initialization import InitOptions, make_folder
from shoal.controller.operations import operations
from shoal.controller.operations.io.runner import OperationRunner
from shoal.controller.operations.operations import Operation
from shoal.controller.training import training
from shoal.controller.wiring import open_context
from waiting import eventually

ALLOWED_MB = 700


@pytest.fixture
def ctx() -> Iterator[Context]:
    with memory_folder() as folder:
        make_folder(folder, InitOptions(), time.time())
        settings = folder / "controller.toml"
        text = settings.read_text()
        assert "memory_mb = 0 " in text
        settings.write_text(text.replace("memory_mb = 0 ", f"memory_mb = {ALLOWED_MB} ", 1))
        made = open_context(folder)
        yield made
        made.store.close()


def absurd() -> bytes:
    """A valid classifier of 4 features that fills 400 million floats on its way."""
    shape = numpy_helper.from_array(np.array([400_000_000], np.int64), "shape")
    weights = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    zero = numpy_helper.from_array(np.array([0.0], np.float32))
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["zeros"], value=zero),
            helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
            helper.make_node("MatMul", ["input", "w"], ["scores"]),
            helper.make_node("Add", ["scores", "zero"], ["sum"]),
            helper.make_node("Softmax", ["sum"], ["output"]),
        ],
        "absurd",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 3])],
        [shape, weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made: bytes = model.SerializeToString()
    return made


def ended(ctx: Context, ident: str) -> Operation:
    """The operation as the engine's runner leaves it."""
    runner = OperationRunner(ctx)

    def step() -> bool:
        runner.step()
        return operations.get_operation(ctx, ident).state in operations.ENDED

    eventually(step, within_s=120.0)
    return operations.get_operation(ctx, ident)


def test_it_ends_with_the_limit_and_its_setting_and_the_controller_goes_on(ctx: Context) -> None:
    columns = {name: numbers(seed=i) for i, name in enumerate("abcd")}
    path = csv(ctx.folder / "parts.csv", columns | {"kind": ["x", "y", "z"] * 20})
    datasets.add_dataset(
        ctx, actor="ana", path=path, filename="parts.csv", name="parts", label="kind", site=""
    )
    asked = training.start_import(
        ctx, actor="eve", model="absurd", onnx=ctx.blobs.put_bytes(absurd()).sha256, variants={},
        dataset="parts",
    )  # fmt: skip
    done = ended(ctx, asked.id)
    assert done.state == "failed"
    assert f"needed more than {ALLOWED_MB} MB of memory" in done.error
    assert "raise memory_mb under [operations] in controller.toml" in done.error
    assert "Traceback" not in done.error
    assert operations.claim_next(ctx) is None


def test_a_process_that_left_the_network_reaches_nobody() -> None:
    code = """
import socket
from shoal.controller.host.io.process_limits import leave_network
with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
    if not leave_network():
        print("not allowed here")
    else:
        try:
            socket.create_connection(("127.0.0.1", port), 2)
            print("connected")
        except OSError:
            print("nobody")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if done.stdout.strip() == "not allowed here":
        pytest.skip("this system allows no network namespace")
    assert done.stdout.strip() == "nobody"
