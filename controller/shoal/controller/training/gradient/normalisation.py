"""Gradients of normalisation layers.

Batch normalisation is frozen: its mean and variance are constants of the model. A device has few
batches, unlike other devices', and federated averages of their statistics are misleading
(Hsieh et al. 2020); scale and bias are trained.
"""

from collections.abc import Sequence

import numpy as np

from shoal.controller.training.gradient.elementwise import Gradients
from shoal.controller.training.gradient.graph import Builder, Node


def layer_normalization(b: Builder, node: Node, dy: str) -> Gradients:
    """Scale and bias have the shape of the normalised axes, or broadcast to it."""
    x, scale = node.inputs[:2]
    dims = b.shape(x)
    axes = list(range(node.get("axis", -1) % len(dims), len(dims)))
    hat, inverse = _normalised(b, x, axes, node.get("epsilon", 1e-5))
    dx = _through(b, b.op("Mul", dy, scale), hat, inverse, axes, b.sizes(x, axes))
    dscale = b.reduce_to(b.op("Mul", dy, hat), dims, b.shape(scale))
    if not node.optional(2):
        return [dx, dscale]
    return [dx, dscale, b.reduce_to(dy, dims, b.shape(node.inputs[2]))]


def instance_normalization(b: Builder, node: Node, dy: str) -> Gradients:
    """Each channel of each row over its spatial axes; scale and bias per channel."""
    x, scale, _ = node.inputs
    dims = b.shape(x)
    axes = list(range(2, len(dims)))
    hat, inverse = _normalised(b, x, axes, node.get("epsilon", 1e-5))
    wide = _per_channel(b, scale, len(dims))
    dx = _through(b, b.op("Mul", dy, wide), hat, inverse, axes, b.sizes(x, axes))
    return [dx, b.sum(b.op("Mul", dy, hat), [0, *axes]), b.sum(dy, [0, *axes])]


def batch_normalization(b: Builder, node: Node, dy: str) -> Gradients:
    if node.get("training_mode", 0):
        raise node.refuse("it is in training mode", "export the model in inference mode (eval)")
    x, scale, _, mean, variance = node.inputs
    rank = len(b.shape(x))
    axes = [0, *range(2, rank)]
    spread = b.op("Sqrt", b.op("Add", variance, b.floats(node.get("epsilon", 1e-5))))
    inverse = b.op("Reciprocal", spread)
    dx = b.op("Mul", dy, _per_channel(b, b.op("Mul", scale, inverse), rank))
    centred = b.op("Sub", x, _per_channel(b, mean, rank))
    hat = b.op("Mul", centred, _per_channel(b, inverse, rank))
    return [dx, b.sum(b.op("Mul", dy, hat), axes), b.sum(dy, axes), None, None]


def _normalised(b: Builder, x: str, axes: Sequence[int], epsilon: float) -> tuple[str, str]:
    """(x - mean)/σ and 1/σ, both over axes."""
    count = b.floats(float(np.prod(b.sizes(x, axes))))
    centred = b.op("Sub", x, b.op("Div", b.sum(x, axes, keep=True), count))
    squares = b.sum(b.op("Mul", centred, centred), axes, keep=True)
    variance = b.op("Add", b.op("Div", squares, count), b.floats(epsilon))
    inverse = b.op("Reciprocal", b.op("Sqrt", variance))
    return b.op("Mul", centred, inverse), inverse


def _through(
    b: Builder, dhat: str, hat: str, inverse: str, axes: Sequence[int], sizes: Sequence[int]
) -> str:
    """dx = (dx̂ - mean(dx̂) - x̂·mean(dx̂·x̂))/σ."""
    count = b.floats(float(np.prod(sizes)))
    mean = b.op("Div", b.sum(dhat, axes, keep=True), count)
    along = b.op("Div", b.sum(b.op("Mul", dhat, hat), axes, keep=True), count)
    rest = b.op("Sub", b.op("Sub", dhat, mean), b.op("Mul", hat, along))
    return b.op("Mul", rest, inverse)


def _per_channel(b: Builder, vector: str, rank: int) -> str:
    """(C,) as (1, C, 1, ...)."""
    return b.op("Reshape", vector, b.ints([1, -1, *[1] * (rank - 2)]))


RULES = {
    "LayerNormalization": layer_normalization,
    "InstanceNormalization": instance_normalization,
    "BatchNormalization": batch_normalization,
}
