"""Optimisers, each a step of a flat vector and its state, as torch defines them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from shoal.controller.training.gradient.graph import Builder


class Optimiser(Protocol):
    """slots: state vectors of theta's length; scalars: inputs besides lr."""

    @property
    def name(self) -> str: ...
    @property
    def slots(self) -> int: ...
    @property
    def scalars(self) -> tuple[str, ...]: ...
    @property
    def betas(self) -> tuple[float, float]: ...

    def step(self, b: Builder, gradient: str, state: Sequence[str]) -> tuple[str, list[str]]:
        """The direction, to be multiplied by lr, and the new state."""
        ...


@dataclass(frozen=True)
class Sgd:
    """θ - lr·g."""

    name: ClassVar[str] = "sgd"
    slots: ClassVar[int] = 0
    scalars: ClassVar[tuple[str, ...]] = ()
    betas: ClassVar[tuple[float, float]] = (0.0, 0.0)

    def step(self, b: Builder, gradient: str, state: Sequence[str]) -> tuple[str, list[str]]:
        return gradient, []


@dataclass(frozen=True)
class Momentum:
    """m = μ·m + g; θ - lr·m."""

    momentum: float = 0.9
    name: ClassVar[str] = "momentum"
    slots: ClassVar[int] = 1
    scalars: ClassVar[tuple[str, ...]] = ()
    betas: ClassVar[tuple[float, float]] = (0.0, 0.0)

    def step(self, b: Builder, gradient: str, state: Sequence[str]) -> tuple[str, list[str]]:
        new = b.op("Add", b.op("Mul", state[0], b.floats(self.momentum)), gradient)
        return new, [new]


@dataclass(frozen=True)
class Adam:
    """m, v = running means of g and g²; θ - lr·m/(√v·correction + ε).

    The host gives lr already divided by 1 - β₁ᵗ and correction = 1/√(1 - β₂ᵗ), in float64
    (shoal.params): powers of β in float32 drift.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    name: ClassVar[str] = "adam"
    slots: ClassVar[int] = 2
    scalars: ClassVar[tuple[str, ...]] = ("correction",)

    @property
    def betas(self) -> tuple[float, float]:
        return self.beta1, self.beta2

    def step(self, b: Builder, gradient: str, state: Sequence[str]) -> tuple[str, list[str]]:
        square = b.op("Mul", gradient, gradient)
        mean = _running(b, state[0], gradient, self.beta1)
        spread = _running(b, state[1], square, self.beta2)
        root = b.op("Mul", b.op("Sqrt", spread), "correction")
        return b.op("Div", mean, b.op("Add", root, b.floats(self.epsilon))), [mean, spread]


def _running(b: Builder, old: str, new: str, beta: float) -> str:
    return b.op("Add", b.op("Mul", old, b.floats(beta)), b.op("Mul", new, b.floats(1 - beta)))
