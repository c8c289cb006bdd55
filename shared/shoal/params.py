"""Model parameters as one flat vector (theta), and the description of a train graph.

The description is in the graph's metadata, which onnxruntime reads: a device needs no other file
and no onnx package.

    >>> spec = TrainSpec(
    ...     parameters=(Parameter(name="w", shape=(2, 3), offset=0),
    ...                 Parameter(name="b", shape=(3,), offset=6)),
    ...     state=18, optimiser="adam", betas=(0.9, 0.999), loss="cross-entropy")
    >>> spec.size
    9
    >>> float(spec.scalars(lr=0.001, step=1)["lr"]).__round__(4)
    0.01
"""

import math
from collections.abc import Mapping

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.errors import ModelError

F32 = npt.NDArray[np.float32]
#: Name of the metadata entry.
METADATA = "shoal.train"
#: Margin of a clipped norm, so that float32 rounding does not exceed the bound.
_SAFE = 1 - 1e-6


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One of the model's arrays: its elements, row by row, are theta[offset : offset + size]."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs and outputs of a train graph.

    parameters    back to back, in order: together theta
    state         elements of the optimiser's state; zeros before the first step
    optimiser     "sgd", "momentum" or "adam"
    betas         of Adam, for the bias corrections that the host computes
    loss          "cross-entropy" (y: class index, int64), "bce", "mse" or "huber" (y: float)
    classes       number of classes for cross-entropy (the graph does not check y); otherwise 0
    proximal      has inputs mu and theta0: the proximal term of FedProx
    shift         has input shift, a vector added to every gradient (correction of SCAFFOLD)
    many          reserved, always false
    """

    parameters: tuple[Parameter, ...]
    state: int
    optimiser: str
    loss: str
    classes: int = 0
    betas: tuple[float, float] = (0.0, 0.0)
    proximal: bool = False
    shift: bool = False
    many: bool = False

    @property
    def size(self) -> int:
        """Elements of theta."""
        return sum(parameter.size for parameter in self.parameters)

    def scalars(self, lr: float, step: int) -> dict[str, F32]:
        """Scalar inputs of a step, counted from 1.

        Powers of Adam's betas are computed here in float64: in float32 they would drift.
        """
        if self.optimiser != "adam":
            return {"lr": np.array(lr, np.float32)}
        first, second = self.betas
        return {
            "lr": np.array(lr / (1 - first**step), np.float32),
            "correction": np.array((1 - second**step) ** -0.5, np.float32),
        }

    def split(self, theta: F32) -> dict[str, F32]:
        """Views of theta by parameter; ModelError when its length does not match."""
        if theta.shape != (self.size,):
            raise ModelError(
                f"theta has shape {theta.shape}, ({self.size},) is needed",
                "use the theta of this model's train graph",
            )
        return {
            p.name: theta[p.offset : p.offset + p.size].reshape(p.shape) for p in self.parameters
        }


def spec_of(metadata: Mapping[str, str]) -> TrainSpec:
    """Read the description from a graph's metadata; ModelError when it is not a train graph."""
    try:
        return msgspec.json.decode(metadata[METADATA].encode(), type=TrainSpec)
    except (KeyError, msgspec.DecodeError) as error:
        raise ModelError(
            "this is no train graph: it has no training metadata",
            "make it with Shoal's controller",
        ) from error


def square_of(delta: F32) -> float:
    """Squared L2 norm in float64, independent of the number of threads."""
    return float(np.einsum("i,i->", delta, delta, dtype=np.float64))


def norm_of(delta: F32) -> float:
    """L2 norm in float64, independent of the number of threads."""
    return math.sqrt(square_of(delta))


def clipped(delta: F32, bound: float, norm: float | None = None) -> F32:
    """Scale delta to the norm `bound` if it is longer; float32 (P,).

    norm   of the whole, where delta is a slice of it

    >>> clipped(np.array([3, 4], np.float32), 1.0).round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    norm = norm_of(delta) if norm is None else norm
    return delta if norm <= bound else (delta * (bound * _SAFE / norm)).astype(np.float32)
