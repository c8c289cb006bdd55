"""Releases of tensors: built by hand, without the libraries that measure a model."""

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper
from sqlalchemy import select

from shoal.controller.host.context import Context
from shoal.controller.operations.operations import Operation
from shoal.controller.releases import models, releases, verdicts
from shoal.controller.releases.records import Built, ModelFacts, TensorsReport, VariantReport
from shoal.controller.store import tables
from shoal.golden import GoldenTensors, Vector
from shoal.pipeline import IDENTITY
from shoal.profile import load_profiles
from shoal.signature import Signature, Tensor
from shoal.sketch import Reference, References
from shoal.tensors import StoredTensor

MODEL = "counts"


def doubler() -> bytes:
    """ONNX of y = x + x, int64 (N, 3)."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.INT64, ["N", 3]) for n in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return model.SerializeToString()


def built(memory_mb: float = 9.0) -> Built:
    """What an import of `doubler` gives."""
    model = doubler()
    signature = Signature(
        inputs=[Tensor(name="x", datatype="INT64", shape=["N", 3], batch=0)],
        outputs=[Tensor(name="y", datatype="INT64", shape=["N", 3], batch=0)],
        together="batch", item_bytes=48,
    )  # fmt: skip
    facts = ModelFacts(
        ir_version=8, opsets={"": 17}, inputs=[], outputs=[], operators={"Add": 1}, nodes=1,
        parameters=0, stored_bytes=0, memory_mb=memory_mb,
    )  # fmt: skip
    report = TensorsReport(
        inputs=signature.inputs, outputs=signature.outputs, states=[], together="batch",
        item_bytes=48, facts=facts, notes=["its shapes were tried"], run_ms=0.1, rss_mb=60.0,
    )  # fmt: skip
    one = np.arange(6, dtype=np.int64).reshape(2, 3)
    vector = Vector(
        inputs={"x": StoredTensor.of(one)}, outputs={"fp32": {"y": StoredTensor.of(one + one)}}
    )
    none = Reference(features=[])
    fp32 = VariantReport(name="fp32", sha256="", size=len(model), metrics={}, cosine=1.0)
    judged = verdicts.judge_tensors({"fp32": fp32}, {}, memory_mb, load_profiles())
    return Built(
        task="tensors", main="", metrics={}, by_site={}, features=[], labels=[],
        files={"fp32": model},
        variants=[VariantReport(name="fp32", sha256="", size=len(model), metrics={}, cosine=1.0)],
        verdicts=judged,
        why_refused="" if any(v.passed for v in judged) else "no profile can carry it",
        references=msgspec.json.encode(References(inputs=none, outputs=none)),
        golden=GoldenTensors(vectors=[vector]).to_bytes(), card="# counts", opset=17,
        ort=">=1.31", threshold=0.5, params={}, pipeline=IDENTITY, signature=signature,
        tensors=report,
    )  # fmt: skip


def packed(ctx: Context, made: Built | None = None, model: str = MODEL) -> str:
    """The release of an import, not signed; its name."""
    params = {
        "task": "tensors", "dataset": "", "dataset_sha256": "", "estimator": "imported",
        "params": {}, "trigger": "manual",
    }  # fmt: skip
    operation = Operation(
        id="op-1", kind="import", state="running", progress=0.0, step="", subject=model,
        created_at=ctx.clock(), created_by="ana", params=params,
    )  # fmt: skip
    with ctx.store.write() as db:
        models.ensure_model(db, ctx, actor="ana", name=model)
        if db.scalar(select(tables.operation.c.id).where(tables.operation.c.id == "op-1")) is None:
            row = msgspec.structs.asdict(operation) | {"state": "succeeded"}
            del row["position"]
            db.execute(tables.operation.insert().values(**row))
    return releases.pack(ctx, operation, made or built(), "").ref


def released(ctx: Context, model: str = MODEL) -> str:
    """A signed release; its name."""
    return releases.publish(ctx, actor="boss", ref=packed(ctx, model=model)).ref
