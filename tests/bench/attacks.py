"""Accuracy of every strategy with a fifth of malicious devices: non-IID digits, by train graph."""

import numpy as np

from bench.report import Found, Row
from digits import LocalTrainer, Rows, homes_of
from shelves import file_shelf
from shoal.controller.federated.aggregation.outlier_scores import score
from shoal.controller.federated.strategy import Strategy, strategy_of
from shoal.controller.federated.updates import Server, Update
from shoal.params import F32

DEVICES, MALICIOUS, EPOCHS = 50, 10, 2
TARGET = 0  # target class of the backdoor
STRATEGIES: dict[str, dict[str, float]] = {
    "fedavg": {},
    "norm-clipping": {"bound": 0.5},
    "median": {},
    "trimmed-mean": {"cut": 0.2},
    "krum": {"malicious": MALICIOUS},
    "multi-krum": {"malicious": MALICIOUS, "keep": 20},
    "bulyan": {"malicious": MALICIOUS},
}
ATTACKS = ("none", "label flip", "sign flip", "scaled update", "backdoor")


def run(*, quick: bool) -> Found:
    """A row for every strategy under every attack, beside FedAvg without an attack."""
    rounds, seeds = (2, 1) if quick else (30, 3)
    table = {
        (name, attack): np.mean(
            [_federated(strategy_of(name, settings), attack, rounds, s) for s in range(seeds)], 0
        )
        for name, settings in STRATEGIES.items()
        for attack in ATTACKS
    }
    raw = float(table["fedavg", "none"][0])
    rows = [_row(f"{n}, {a}", float(v[0]), raw) for (n, a), v in table.items()]
    marked = {f"backdoor taken, {name}": f"{table[name, 'backdoor'][1]:.3f}" for name in STRATEGIES}
    marked |= {f"stands out, {attack}": _outliers(table["fedavg", attack]) for attack in ATTACKS}
    return Found(rows=rows, notes=marked)


def _outliers(found: np.ndarray) -> str:
    """Devices with an outlier score, as in the console, over all rounds of FedAvg."""
    return f"{found[2]:.2f} of the malicious, {found[3]:.3f} of the honest"


def _row(what: str, ours: float, raw: float) -> Row:
    return Row(
        what=what,
        unit="accuracy",
        ours=ours,
        against="fedavg, none",
        raw=raw,
        ratio=ours / raw,
        over=ours - raw,
    )


def _federated(
    strategy: Strategy, attack: str, rounds: int, seed: int
) -> tuple[float, float, float, float]:
    """(accuracy on held-out images, share of marked images taken for TARGET, shares of the first
    MALICIOUS devices and of the others whose update stood out in a round)."""
    random = np.random.default_rng(seed)
    homes, test = homes_of(DEVICES, random, alike=0.5, least=10)
    trainer = LocalTrainer(seed)
    server, stood_out = Server(theta=trainer.theta), np.zeros(DEVICES)
    for _ in range(rounds):
        updates = []
        gathering = strategy.gather(server.theta.size, file_shelf(server.theta.size))
        for i, home in enumerate(homes):
            malicious = i < MALICIOUS and attack != "none"
            rows = _poisoned(home, attack, random) if malicious else home
            delta = trainer.train(server.theta, rows, EPOCHS, random) - server.theta
            if malicious:
                delta = _manipulated(delta, attack)
            updates.append(Update(device=f"d{i:02}", delta=delta, examples=len(rows.y)))
            gathering.add(updates[-1])
        stood_out += _stand_out(updates, server.theta.size) / rounds
        server = strategy.advance(server, gathering.result())
    marked = _marked(test.only(test.y != TARGET).x)
    taken = trainer.predict(server.theta, marked) == TARGET
    flagged, honest = stood_out[:MALICIOUS].mean(), stood_out[MALICIOUS:].mean()
    return trainer.accuracy(server.theta, test), float(taken.mean()), float(flagged), float(honest)


def _stand_out(updates: list[Update], size: int) -> np.ndarray:
    """1 or 0 by device."""
    return np.array(
        [bool(one.suspect) for one in score(lambda _: updates, [slice(0, size)])], float
    )


def _poisoned(home: Rows, attack: str, random: np.random.Generator) -> Rows:
    if attack == "label flip":
        return Rows(home.x, 9 - home.y)
    if attack == "backdoor":
        half = random.random(len(home.y)) < 0.5
        marked = np.where(half[:, None], _marked(home.x), home.x)
        return Rows(marked, np.where(half, TARGET, home.y))
    return home


def _marked(x: F32) -> F32:
    """Three bright pixels in a corner that is dark in nearly every image."""
    marked = x.copy()
    marked[:, [0, 1, 8]] = 1
    return marked


def _manipulated(delta: F32, attack: str) -> F32:
    factors = {"sign flip": -4.0, "scaled update": 20.0, "backdoor": 4.0}
    return delta * np.float32(factors.get(attack, 1.0))
