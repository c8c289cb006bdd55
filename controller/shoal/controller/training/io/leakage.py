"""The note of a release about columns that give its label away (data.label_leaks)."""

from shoal.controller.data.label_leaks import Sample, leaks_of
from shoal.controller.training.io.rows import Data


def notes_on_leaks(data: Data, label: str, task: str, seed: int) -> list[str]:
    """A sentence when few columns each predict the label of held-back rows alone, and the others
    together do not; else nothing."""
    sides = [Sample(side.x, side.y) for side in (data.train, data.held)]
    leaks = leaks_of(*sides, quantity=task == "regression", seed=seed)
    if leaks is None:
        return []
    names = ", ".join(repr(data.features[i]) for i in leaks.columns[:5])
    subject = f"column {names}" if len(leaks.columns) == 1 else f"each of {names}"
    note = (
        f"warning: {subject} alone predicts {label!r} on held-back rows, "
        f"and the other columns reach {leaks.rest:.2f}: "
        "is it known before the label is? If not, drop it"
    )
    return [note]
