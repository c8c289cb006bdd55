"""Gradients of pooling."""

import numpy as np
import numpy.typing as npt

from shoal.controller.training.gradient.convolution import Window, window_of
from shoal.controller.training.gradient.elementwise import Gradients
from shoal.controller.training.gradient.graph import Builder, Node


def max_pool(b: Builder, node: Node, dy: str) -> Gradients:
    """Gradient to the maxima: the forward node gets an output with their indices."""
    x = node.inputs[0]
    if len(node.outputs) < 2:
        node.proto.output.append(b.name("indices"))
    flat = b.ints(-1)
    zeros = b.op("Reshape", b.zeros_like(x), flat)
    index, values = b.op("Reshape", node.outputs[1], flat), b.op("Reshape", dy, flat)
    gradient = b.op("ScatterElements", zeros, index, values, axis=0, reduction="add")
    return [b.reshape(gradient, b.shape(x), like=x)]


def average_pool(b: Builder, node: Node, dy: str) -> Gradients:
    """Each output's gradient spread evenly over its window: a depthwise transposed convolution."""
    x, y = node.inputs[0], node.outputs[0]
    spatial = range(2, len(b.shape(x)))
    large, small = b.sizes(x, spatial), b.sizes(y, spatial)
    [channels] = b.sizes(x, [1])
    window = window_of(node, large, node.attributes["kernel_shape"])
    left = window.left_over(large, small)
    if min(left) < 0:
        raise node.refuse("ceil_mode reaches past the end", "pad the input and use ceil_mode=0")
    if any(window.pads) and not node.get("count_include_pad", 0):
        dy = b.op("Mul", dy, b.floats(_shares(window, large, small)))
        kernel = np.ones([channels, 1, *window.kernel])
    else:
        kernel = np.full([channels, 1, *window.kernel], 1 / np.prod(window.kernel))
    dx = b.op(
        "ConvTranspose", dy, b.floats(kernel), group=channels, strides=window.strides,
        dilations=window.dilations, pads=window.pads, output_padding=left,
    )  # fmt: skip
    return [dx]


def _shares(window: Window, large: list[int], small: list[int]) -> npt.NDArray:
    """1 / elements in each window that are not padding; shape `small`."""
    share = np.ones([])
    for i, size in enumerate(large):
        start = np.arange(small[i])[:, None] * window.strides[i] - window.pads[i]
        place = start + np.arange(window.kernel[i]) * window.dilations[i]
        inside = ((place >= 0) & (place < size)).sum(1)
        share = share[..., None] / inside
    return share


def global_average_pool(b: Builder, node: Node, dy: str) -> Gradients:
    x = node.inputs[0]
    count = np.prod(b.sizes(x, range(2, len(b.shape(x)))))
    return [b.op("Expand", b.op("Div", dy, b.floats(float(count))), b.op("Shape", x))]


def global_max_pool(b: Builder, node: Node, dy: str) -> Gradients:
    """Tied maxima share the gradient."""
    x = node.inputs[0]
    share = b.op("Cast", b.op("Equal", x, node.outputs[0]), to=b.onnx_type)
    ties = b.sum(share, range(2, len(b.shape(x))), keep=True)
    return [b.op("Mul", share, b.op("Div", dy, ties))]


RULES = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
}
