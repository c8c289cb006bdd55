"""Features sketched of a model's outputs: the same on a device and for the training reference."""

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

#: Names of the two features of a bundle's output reference; regression has the first alone.
SCORE, PREDICTION = "score", "prediction"


def score(outputs: F32) -> F32:
    """One number per row, shape (n,), from outputs (n, C).

    The value for regression (C = 1), the second class's probability where there are two, the
    winner's probability where there are more.
    """
    return outputs[:, -1] if outputs.shape[1] <= 2 else outputs.max(1)


def predicted(outputs: F32, threshold: float | None = None) -> F32:
    """Class index of each row of probabilities (n, C); two classes are split at `threshold`.

    >>> predicted(np.array([[0.6, 0.4]], np.float32), 0.3).tolist()
    [1.0]
    """
    if threshold is not None and outputs.shape[1] == 2:
        return (outputs[:, 1] >= threshold).astype(np.float32)
    return outputs.argmax(1).astype(np.float32)
