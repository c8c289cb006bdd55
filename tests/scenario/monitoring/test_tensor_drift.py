"""A device that serves images: its windows hold sketches, and a camera that goes dark is found."""

import contextlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

import tensor_models
import tensor_releases
from fleet import Fleet
from shoal import topics, wire
from shoal.agent.serving.served_model import ServedModel
from shoal.controller.ingest.ingest import ingest
from shoal.controller.monitoring import drift_history, drift_monitor
from shoal.controller.store import drift_tables, tables
from shoal.controller.training.io import reference_sketches
from shoal.controller.training.tensor_references import Sketching, sketching_of
from shoal.signature import Signature
from shoal.tensors import Array, Named
from shoal.wire import Health

RNG = np.random.default_rng(11)
SIGNATURE = Signature(
    inputs=[tensor_models.tensor("picture", "UINT8", ["N", 32, 32, 1])],
    outputs=[tensor_models.tensor("light", "FP32", ["N"])],
    together="batch",
)


class Session:
    """The mean light of each picture, in 20 ms of the fleet's clock."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def run(self, rows: Array) -> Array:
        raise AssertionError("its requests are tensors")

    def run_tensors(self, feeds: Named, outputs: list[str]) -> list[Array]:
        self._fleet.clock.now += 0.020
        return [feeds["picture"].mean((1, 2, 3), dtype=np.float32) for _ in outputs]


def picture(light: float = 1.0) -> Array:
    pixels = RNG.integers(40, 200) + RNG.normal(0, 20, (1, 32, 32, 1))
    return np.clip(pixels * light, 0, 255).astype(np.uint8)


def sketching() -> Sketching:
    items = [{"picture": picture()} for _ in range(200)]
    answers = [{"light": item["picture"].mean((1, 2, 3), dtype=np.float32)} for item in items]
    return sketching_of(SIGNATURE, items, answers, {})


@pytest.mark.scenario
def test_a_camera_that_goes_dark_is_found_by_the_sketches_of_its_device(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, baseline_windows=12)
    fleet.station("cam", start=False)
    made = sketching()
    built = msgspec.structs.replace(
        tensor_releases.built(),
        signature=made.signature,
        references=reference_sketches.to_bytes(made.references),
    )
    ref = tensor_releases.packed(fleet.ctx, built)
    engine = tensor_models.engine_of(made.signature, Session(fleet), 1, made.references)
    serving = ServedModel(
        "any", clock=fleet.clock, timer=fleet.clock, lock=contextlib.nullcontext()
    )
    serving.swap(engine, Health())
    cache = drift_monitor.DriftMemory(64)
    for seq in range(1, 25):
        for _ in range(60):
            serving.infer_tensors({"picture": picture(0.4 if seq > 16 else 1.0)})
        window = serving.collect(Health())
        assert window is not None
        sent = msgspec.structs.replace(
            window, device="cam", boot="b1", seq=seq, model=tensor_releases.MODEL, release=ref,
            sent_s=fleet.clock(),
        )  # fmt: skip
        acks = ingest(fleet.ctx, [(topics.up("cam", "window"), wire.encode(sent))])
        assert [ack.seqs for ack in acks["cam"]] == [[seq]]
        drift_monitor.evaluate_all(fleet.ctx, cache)
        if seq == 16:
            assert fleet.rows_of(drift_tables.finding) == []
    found = {one.feature for one in drift_history.list_findings(fleet.ctx)}
    assert "picture.brightness" in found
    map_ = drift_history.drift_map(fleet.ctx, tensor_releases.MODEL, "device", "cam")
    assert map_.words["picture.brightness"] == "brightness of input picture"
    [alert] = fleet.rows_of(tables.alert)
    assert "of input picture" in alert.detail
    fleet.ctx.store.close()
