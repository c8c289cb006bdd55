"""Split of rows or items into those to learn from and those held back, by group and stratum."""

import numpy as np
import numpy.typing as npt

from shoal.errors import DatasetError

#: Random group splits tried to get each stratum on both sides.
_TRIES = 40
#: Names of parts that a person has made: of groups with these names only, all but train is held.
TRAIN = frozenset({"train", "training"})
HELD = frozenset({"test", "testing", "val", "valid", "validation", "holdout"})


def held_back(
    strata: npt.NDArray, group: npt.NDArray | None, *, holdout: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Mask (n,) of what is held back; a group is held back as a whole or not at all.

    strata    (n,) whole numbers, such as of label and site: each is on both sides where it can be
    group     (n,) names, or None when each stands for itself

    DatasetError for a single group, or too few rows for two sides.
    """
    n = len(strata)
    held = np.zeros(n, bool)
    if group is None:
        held[_free_split(n, strata, holdout, seed)] = True
        return held
    names = np.unique(group)
    if len(names) < 2:
        raise DatasetError("the split column has one value only", "name another, or none")
    from sklearn.model_selection import GroupShuffleSplit

    splitter = GroupShuffleSplit(_TRIES, test_size=holdout, random_state=seed)
    best = min(
        (test for _, test in splitter.split(held, groups=group)),
        key=lambda test: _unbalanced(strata, test),
    )
    held[best] = True
    return held


def parts_of(group: npt.NDArray) -> npt.NDArray[np.bool_] | None:
    """Mask (n,) of what is held back by groups named train, test and alike; None for others.

    >>> parts_of(np.array(["train", "test", "Train", "val"]))
    array([False,  True, False,  True])
    >>> parts_of(np.array(["press 1", "press 2"])) is None
    True
    """
    lower = np.char.lower(group.astype(str))
    names = set(lower.tolist())
    if names <= TRAIN | HELD and names & TRAIN and names & HELD:
        return ~np.isin(lower, list(TRAIN))
    return None


def _unbalanced(strata: npt.NDArray, test: npt.NDArray) -> int:
    """Number of strata that are entirely in the test rows or entirely out of them."""
    everything, inside = np.bincount(strata), np.bincount(strata[test], minlength=strata.max() + 1)
    return int(((everything > 0) & ((inside == 0) | (inside == everything))).sum())


def _free_split(n: int, strata: npt.NDArray, holdout: float, seed: int) -> npt.NDArray:
    from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit

    if n < 2:
        raise DatasetError(f"{n} cannot be split in two", "add more")
    _, counts = np.unique(strata, return_counts=True)
    small = counts.min() < 2 or len(counts) > min(n * holdout, n * (1 - holdout))
    kind = ShuffleSplit if small else StratifiedShuffleSplit
    _, test = next(kind(1, test_size=holdout, random_state=seed).split(np.zeros(n), strata))
    return test
