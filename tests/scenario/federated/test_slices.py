"""A large model is aggregated a slice at a time: the same bits, in the memory of a slice."""

import msgspec
import numpy as np
import pytest
from sqlalchemy import update

from fake_clients import SIZE, FakeFederation
from fakes import memory_folder
from shoal.controller.federated.aggregation import checkpoint_files, kept_updates
from shoal.controller.federated.rounds import rounds

pytestmark = pytest.mark.scenario

STRATEGIES = {
    "fedavg": {"compression": {"kind": "none", "zstd": True}},
    "fedadam": {"settings": {"lr": 0.05}},
    "norm-clipping": {"settings": {"bound": 0.5}},
    "q-fedavg": {"settings": {"q": 1.0}},
    "scaffold": {"settings": {"population": 6}},
    "krum": {"settings": {"malicious": 1}},
}


def outcome(monkeypatch, slice_, strategy, wishes):
    """theta, vectors of the strategy's state, and scores after two rounds."""
    monkeypatch.setattr(kept_updates, "SLICE", slice_)
    with memory_folder() as folder:
        federation = FakeFederation(folder, count=6)
        federation.start(2, strategy=strategy, **wishes)
        federation.run(120, until=lambda: federation.done(2))
        walk, ctx = federation.walk, federation.fleet.ctx
        assert rounds.get_round(ctx, "walk.2").state == "DONE"
        state = checkpoint_files.load_state(ctx, walk.memory)
        vectors = {name: vector.tolist() for name, vector in state.vectors.items()}
        scores = {name: (one.norm, one.cosine) for name, one in federation.parts(2).items()}
        return federation.theta(walk.checkpoint).tolist(), vectors, scores


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_model_in_slices_becomes_the_same_checkpoint(monkeypatch, strategy):
    theta, vectors, scores = outcome(monkeypatch, SIZE, strategy, STRATEGIES[strategy])
    found = outcome(monkeypatch, 7, strategy, STRATEGIES[strategy])
    if strategy in ("norm-clipping", "q-fedavg"):  # their weights are norms, whose sum is rounded
        assert found[0] == pytest.approx(theta, rel=1e-6)
    else:
        assert found[0] == theta
    assert found[1] == vectors
    assert np.any(theta)
    for device, (norm, cosine) in scores.items():
        assert found[2][device] == pytest.approx((norm, cosine), rel=1e-9)


def test_personal_layers_stay_in_every_slice(monkeypatch):
    monkeypatch.setattr(kept_updates, "SLICE", 7)
    with memory_folder() as folder:
        federation = FakeFederation(folder, count=4)
        federation.task()
        prepared = federation.walk.prepared
        with federation.fleet.ctx.store.write() as db:
            personal = msgspec.structs.replace(prepared, personal=[(5, 9), (20, 36)])
            db.execute(update(rounds.federated_task).values(prepared=msgspec.to_builtins(personal)))
        federation.more()
        federation.run(60, until=federation.done)
        theta = federation.theta(federation.walk.checkpoint)
    kept = np.r_[5:9, 20:36]
    assert not theta[kept].any()
    assert np.delete(theta, kept).all()
