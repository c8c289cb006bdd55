"""What every strategy promises, and what each one is for."""

from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest

from shelves import file_shelf
from shoal.agent.federated.trainer import control_after
from shoal.controller.federated.io.round_files import RoundFiles
from shoal.controller.federated.strategy import Strategy, names, strategy_of
from shoal.controller.federated.updates import Server, Update
from shoal.errors import ConflictError, InputError, SettingError, StorageError
from shoal.params import F32
from unit.federated.updates import gathered, some

ROOT = Path(__file__).parents[3]
SETTINGS: dict[str, dict] = {
    "krum": {"malicious": 2},
    "multi-krum": {"malicious": 2, "keep": 4},
    "bulyan": {"malicious": 2},
    "norm-clipping": {"bound": 0.5},
    "scaffold": {"population": 20},
}
ROBUST = ("bulyan", "krum", "median", "multi-krum", "trimmed-mean")


def strategy(name: str) -> Strategy:
    return strategy_of(name, SETTINGS.get(name))


def advanced(name: str, updates: list[Update], rounds: int = 2) -> Server:
    server = Server(theta=np.linspace(-1, 1, 50, dtype=np.float32))
    for _ in range(rounds):
        server = strategy(name).advance(server, gathered(strategy(name), updates))
    return server


@pytest.mark.parametrize("name", names())
def test_in_whatever_order_updates_arrive_the_model_has_the_same_bits(name: str) -> None:
    updates = some(13, control=name == "scaffold")
    expected = advanced(name, updates)
    random = np.random.default_rng(5)
    for _ in range(5):
        shuffled = [updates[i] for i in random.permutation(13)]
        found = advanced(name, shuffled)
        assert found.theta.tobytes() == expected.theta.tobytes()
        assert {k: v.tobytes() for k, v in found.memory.items()} == {
            k: v.tobytes() for k, v in expected.memory.items()
        }


@pytest.mark.parametrize("name", names())
def test_a_second_update_of_a_device_is_refused_and_the_first_one_counts(name: str) -> None:
    updates = some(13, control=name == "scaffold")
    gathering = strategy(name).gather(50, file_shelf(50))
    for update in updates:
        gathering.add(update)
    again = msgspec.structs.replace(updates[3], delta=updates[3].delta * 100)
    with pytest.raises(ConflictError, match="d03"):
        gathering.add(again)
    assert np.array_equal(gathering.result().delta, gathered(strategy(name), updates).delta)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(
    "spoiled",
    [
        {"delta": np.zeros(49, np.float32)},
        {"delta": np.zeros(50, np.float64)},
        {"delta": np.full(50, np.nan, np.float32)},
        {"examples": 0},
        {"loss": float("nan")},
        {"loss": -1.0},
    ],
    ids=["length", "type", "nan", "no-examples", "loss-nan", "loss-negative"],
)
def test_an_invalid_update_is_refused_with_the_name_of_its_device(name, spoiled) -> None:
    [update] = some(1, control=name == "scaffold")
    gathering = strategy(name).gather(50, file_shelf(50))
    with pytest.raises(InputError, match="d00"):
        gathering.add(msgspec.structs.replace(update, **spoiled))


@pytest.mark.parametrize("name", names())
def test_a_round_without_updates_has_no_result(name: str) -> None:
    with pytest.raises(ConflictError, match="needs"):
        strategy(name).gather(50, file_shelf(50)).result()


@pytest.mark.parametrize("name", ROBUST)
def test_updates_in_a_file_give_the_bits_that_updates_in_memory_give(name) -> None:
    class Stacked:
        def __init__(self) -> None:
            self.rows: list[F32] = []
            self.put = self.rows.append

        def columns(self, start: int, stop: int) -> F32:
            return np.stack([row[start:stop] for row in self.rows])

    updates = some(13, size=300)
    gathering = strategy(name).gather(300, Stacked())
    for update in updates:
        gathering.add(update)
    assert np.array_equal(gathering.result().delta, gathered(strategy(name), updates).delta)


def test_a_shelf_on_a_full_disk_names_the_disk(tmp_path: Path) -> None:
    (tmp_path / "digits.1").mkdir()
    (tmp_path / "digits.1" / "shelf").symlink_to("/dev/full")
    files = RoundFiles(tmp_path)
    with pytest.raises(StorageError, match="disk"), files.shelf("digits.1", 3) as shelf:
        shelf.put(np.zeros(3, np.float32))


@pytest.mark.parametrize("name", ROBUST)
def test_two_malicious_devices_of_eleven_do_not_move_a_robust_model_far(name: str) -> None:
    random = np.random.default_rng(0)
    honest = [
        Update(
            device=f"d{i:02}",
            delta=(1 + 0.1 * random.normal(size=50)).astype(np.float32),
            examples=100,
        )
        for i in range(9)
    ]
    liars = [
        Update(device=f"liar{i}", delta=np.full(50, -1000, np.float32), examples=100)
        for i in range(2)
    ]
    found = gathered(strategy(name), honest + liars)
    assert np.abs(found.delta - 1).max() < 0.5
    assert np.abs(gathered(strategy("fedavg"), honest + liars).delta - 1).max() > 100
    if name in ("krum", "multi-krum"):
        assert not {"liar0", "liar1"} & set(found.chosen)


def test_a_claim_of_a_billion_examples_counts_up_to_the_bound() -> None:
    updates = [
        msgspec.structs.replace(u, examples=10**9 if i else 100) for i, u in enumerate(some(2))
    ]
    found = gathered(strategy_of("fedavg", {"most_examples": 100}), updates)
    assert np.allclose(found.delta, (updates[0].delta + updates[1].delta) / 2.0)


def test_no_clipped_update_is_longer_than_the_bound() -> None:
    for update in some(9):
        found = gathered(strategy_of("norm-clipping", {"bound": 0.05}), [update])
        norm = np.linalg.norm(update.delta.astype(np.float64))
        assert np.linalg.norm(found.delta) == pytest.approx(min(norm, 0.05))


def test_krum_separates_updates_that_are_tiny_beside_theta() -> None:
    random = np.random.default_rng(2)
    deltas = (random.normal(size=(12, 1000)) * 1e-9).astype(np.float32)
    exact = [
        [
            sum(
                (Fraction(float(x)) - Fraction(float(y))) ** 2
                for x, y in zip(a[:40], b[:40], strict=True)
            )
            for b in deltas
        ]
        for a in deltas
    ]
    best = min(range(12), key=lambda i: sum(sorted(exact[i])[1 : 12 - 2 - 2 + 1]))
    updates = [Update(device=f"d{i:02}", delta=d[:40], examples=1) for i, d in enumerate(deltas)]
    assert gathered(strategy("krum"), updates).chosen == (f"d{best:02}",)


def test_q_fedavg_listens_to_the_device_with_the_larger_loss() -> None:
    up = Update(device="well", delta=np.ones(4, np.float32), examples=9, loss=0.1)
    down = Update(device="badly", delta=-np.ones(4, np.float32), examples=9, loss=3.0)
    assert (gathered(strategy_of("q-fedavg", {"q": 1.0}), [up, down]).delta < 0).all()


def test_scaffold_corrects_the_drift_of_devices_whose_data_differ() -> None:
    """Two quadratics with other curvature: FedAvg stops beside the optimum, SCAFFOLD at it."""
    optima, bends, steps, lr = np.array([0.0, 10.0]), np.array([1.0, 4.0]), 20, 0.05
    best = (optima * bends).sum() / bends.sum()

    def rounds(corrected: bool) -> float:
        name = "scaffold" if corrected else "fedavg"
        chosen = strategy_of(name, {"population": 2} if corrected else {})
        server, own = Server(theta=np.zeros(1, np.float32)), [np.zeros(1, np.float32)] * 2
        for _ in range(200):
            updates = []
            shared = server.recall("c").astype(np.float32)
            for i in range(2):
                theta, shift = server.theta, shared - own[i]
                for _ in range(steps):
                    gradient = bends[i] * (theta - optima[i]) + (shift if corrected else 0)
                    theta = (theta - lr * gradient).astype(np.float32)
                delta = theta - server.theta
                after = control_after(own[i], shared, delta, steps, lr)
                control, own[i] = after - own[i], after
                updates.append(
                    Update(
                        device=f"d{i}",
                        delta=delta,
                        examples=1,
                        control=control if corrected else None,
                    )
                )
            server = chosen.advance(server, gathered(chosen, updates))
        return float(server.theta[0])

    assert abs(rounds(corrected=True) - best) < 1e-3
    assert abs(rounds(corrected=False) - best) > 0.5


def test_scaffold_refuses_an_update_without_a_control_variate() -> None:
    with pytest.raises(InputError, match="control variate"):
        gathered(strategy("scaffold"), some(1))


def test_a_model_that_would_not_be_finite_is_not_made() -> None:
    server = Server(theta=np.full(50, 3e38, np.float32))
    found = msgspec.structs.replace(gathered(strategy("fedavg"), some(2)), delta=np.full(50, 3e38))
    with pytest.raises(InputError, match="not finite"):
        strategy("fedavg").advance(server, found)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("krumm", {}, "there are: bulyan"),
        ("krum", {}, "malicious"),
        ("krum", {"malicious": -1}, "malicious"),
        ("fedavgm", {"momentum": 1.0}, "momentum"),
        ("trimmed-mean", {"cut": 0.5}, "cut"),
        ("fedavg", {"momentum": 0.9}, "momentum"),
    ],
)
def test_a_wrong_setting_is_named(name: str, settings: dict, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        strategy_of(name, settings)


def test_every_strategy_and_setting_is_in_the_documents() -> None:
    page = (ROOT / "docs/federated/strategies.md").read_text()
    for name in names():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        for setting in strategy(name).__struct_fields__:
            assert f"`{setting}`" in row, (name, setting)


def test_each_strategy_declares_whether_secure_aggregation_can_serve_it() -> None:
    assert {name for name in names() if not strategy(name).sums} == set(ROBUST)
