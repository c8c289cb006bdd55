"""The *lot codes* scenario: inspection stations read stamped digits; one site's cameras foul.

Data: scikit-learn's load_digits, 1797 real 8x8 images with values 0 to 16 (Alpaydin & Kaynak 1998).
"""

import numpy as np
import numpy.typing as npt

from demo.partition import dirichlet_split
from demo.scenario import Scenario, stations
from demo.table import Table

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
SITES = ("north", "south", "east")
#: How far the fouling has gone, at each of its steps.
SEVERITIES = (0.3, 0.65, 1.0)
#: Severities of the newly labelled images: as seen by the site during the fouling.
_LABELLED_AT = (0.5, 0.8, 1.0)
_STREAMED = 0.4
_PIXELS = tuple(f"p{row}{column}" for row in range(8) for column in range(8))
_COLUMNS = (*_PIXELS, "digit", "site")


def lot_codes(seed: int = 7) -> Scenario:
    """The whole scenario, the same for the same seed. Loads scikit-learn."""
    images, digits = _load()
    random = np.random.default_rng(seed)
    fleet = stations(SITES, SITES)
    homes = dirichlet_split([str(digit) for digit in digits], len(fleet), random)
    streamed = random.random(len(digits)) < _STREAMED
    learned: list[Table] = []
    labelled: list[Table] = []
    streams: dict[str, Table] = {}
    change_steps: list[dict[str, Table]] = [{} for _ in SEVERITIES]
    for station, home in zip(fleet, homes, strict=True):
        rows = np.asarray(home)
        learn, stream = rows[~streamed[rows]], rows[streamed[rows]]
        learned.append(_table(images[learn], digits[learn], station.site))
        streams[station.name] = _table(images[stream], digits[stream], station.site)
        if station.site == SITES[-1]:
            for step, severity in zip(change_steps, SEVERITIES, strict=True):
                step[station.name] = _table(
                    foul(images[stream], severity), digits[stream], station.site
                )
            labelled += [
                _table(foul(images[learn], severity), digits[learn], station.site)
                for severity in _LABELLED_AT
            ]
    registered = _join(learned)
    return Scenario(
        title="lot codes",
        model="lot-codes",
        dataset="lot-code-images",
        label="digit",
        site="site",
        split="",
        estimator="mlp",
        stations=fleet,
        registered=registered,
        streams=streams,
        change=f"the cameras of site {SITES[-1]} foul: contrast fades, the image blurs",
        change_steps=change_steps,
        relabelled=registered.and_(_join(labelled)),
        drifting=frozenset(SITES[-1:]),
    )


def foul(images: F64, severity: float) -> F64:
    """Simulate a dirty lens on images (n, 64): 3x3 blur, less contrast, stray light.

    severity   0: unchanged, 1: worst
    """
    square = images.reshape(-1, 8, 8)
    padded = np.pad(square, ((0, 0), (1, 1), (1, 1)), mode="edge")
    nine = [padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    mixed = square + 0.8 * severity * (np.mean(nine, axis=0) - square)
    faded = mixed * (1 - 0.6 * severity) + 2.0 * severity
    return np.clip(faded, 0, 16).reshape(-1, 64)


def _load() -> tuple[F64, I64]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.data.astype(np.float64), found.target.astype(np.int64)


def _table(images: F64, digits: I64, site: str) -> Table:
    rows = [
        (*(f"{pixel:.4g}" for pixel in image), str(digit), site)
        for image, digit in zip(images, digits, strict=True)
    ]
    return Table(_COLUMNS, rows)


def _join(tables: list[Table]) -> Table:
    return Table(_COLUMNS, [row for table in tables for row in table.rows])
