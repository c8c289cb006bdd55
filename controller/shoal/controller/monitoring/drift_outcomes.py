"""What the drift decision said of some windows, as the tests and findings that are stored."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.controller.monitoring import (
    change_words,
    channels,
    effect_sizes,
    histograms,
    sequential,
    surprises,
)
from shoal.controller.monitoring.drift_state import State, hours_covered
from shoal.controller.monitoring.findings import DriftTest, Found, Subject
from shoal.controller.monitoring.surprises import Outcome, Rules
from shoal.sketch import References

Array = npt.NDArray[Any]


class Known(NamedTuple):
    """What is known of a release: F features, W bins.

    names      of the features, and of the rows; counts (F, W + 1): training rows in the bins, the
               missing ones last; training (F, W): shares of those with a value
    """

    references: References
    names: list[str]
    counts: Array
    training: npt.NDArray[np.float64]

    @classmethod
    def of(cls, references: References) -> "Known":
        """From a release's references."""
        counts = histograms.training_of(references)
        names = [*histograms.names_of(references), change_words.ROWS]
        return cls(references, names, counts, channels.shares(counts[:, :-1]))


def tests_of(
    known: Known,
    outcome: Outcome,
    states: Sequence[State],
    log_a: float,
    rules: Rules,
    *,
    subjects: Sequence[Subject],
    sites: Sequence[str],
    at: Array,
    counts: Array,
    rows: Array,
) -> list[DriftTest]:
    """One test for each subject. log_a: the threshold before it is raised by near misses.

    at, rows (B,); counts (B, F, W + 1): of the windows, the missing ones last
    """
    with np.errstate(invalid="ignore"):
        evidence = outcome.log_e * (log_a / outcome.threshold)
    evidence = surprises.groups(np.nan_to_num(evidence, neginf=0.0))
    log10_p = -np.maximum(evidence, 0) / np.log(10)
    moved = surprises.groups(sequential.severity(outcome))
    alarmed = surprises.groups(outcome.alarmed)
    found = {
        i: _found(known, outcome, i, subjects[i].scope == "device", counts[i], rows[i])
        for i in np.flatnonzero(outcome.began.any(1)).tolist()
    }
    return [
        DriftTest(
            subject, sites[i], float(at[i]), states[i].seen, hours_covered(states[i]),
            states[i].seen <= rules.first, states[i].seen == rules.first + 1, log10_p[i],
            moved[i], alarmed[i], found.get(i, []), float(-log_a / np.log(10)), known.names,
        )
        for i, subject in enumerate(subjects)
    ]  # fmt: skip


def _found(
    known: Known, outcome: Outcome, i: int, device: bool, counts: Array, rows: float
) -> list[Found]:
    """Features of window `i` that begin to alarm, each with its strongest channel."""
    strength = np.where(outcome.hit[i], outcome.log_e[i] / outcome.threshold[i], -np.inf)
    severity, kinds = sequential.severity(outcome)[i], surprises.channel_of(len(strength))
    psi = np.append(effect_sizes.psi(counts, known.counts), 0.0)
    found = []
    for group in np.flatnonzero(outcome.began[i]):
        start = int(group) * channels.CHANNELS
        mine = slice(start, min(start + channels.CHANNELS, len(strength)))
        best = start + int(np.argmax(strength[mine]))
        kind = int(kinds[best])
        channel = (*channels.NAMES, channels.ROWS)[kind]
        expected = float(outcome.expected[i, best]) if device else None
        if channel == channels.ROWS:
            expected = None
        what = change_words.in_words(channel, float(outcome.change[i, best]), expected, rows)
        found.append(
            Found(
                known.names[group], channel, what, float(-outcome.log_e[i, best] / np.log(10)),
                float(severity[mine].max()), float(psi[group]), int(rows),
            )
        )  # fmt: skip
    return found
