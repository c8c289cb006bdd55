"""Gradients of convolutions: 1-D and 2-D, stride, padding, dilation, groups down to depthwise.

A transposed convolution is the adjoint of a convolution, so each is the other's gradient, and one
formula gives the weights' gradient of both: correlate the larger tensor with the smaller one,
batch and channels swapped, strides and dilations swapped.
"""

from collections.abc import Sequence
from typing import NamedTuple

from shoal.controller.training.gradient.elementwise import Gradients
from shoal.controller.training.gradient.graph import Builder, Node


class Window(NamedTuple):
    """Kernel window: one number per spatial axis; pads are all begins, then all ends."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]

    def left_over(self, large: Sequence[int], small: Sequence[int]) -> list[int]:
        """Elements of the large side, per axis, after the last window."""
        rank = len(self.kernel)
        return [
            large[i] + self.pads[i] + self.pads[rank + i]
            - (self.dilations[i] * (self.kernel[i] - 1) + 1)
            - (small[i] - 1) * self.strides[i]
            for i in range(rank)
        ]  # fmt: skip


def window_of(node: Node, large: Sequence[int], kernel: Sequence[int]) -> Window:
    """The node's window, with automatic pads as numbers."""
    rank = len(large)
    strides = list(node.get("strides", None) or [1] * rank)
    dilations = list(node.get("dilations", None) or [1] * rank)
    pads = list(node.get("pads", None) or [0] * 2 * rank)
    auto = node.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same_pads(large, kernel, strides, dilations, lower=auto == "SAME_LOWER")
    return Window(list(kernel), strides, dilations, pads)


def _same_pads(
    large: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    lower: bool,
) -> list[int]:
    begins, ends = [], []
    for size, k, s, d in zip(large, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        begins.append(total - total // 2 if lower else total // 2)
        ends.append(total - begins[-1])
    return begins + ends


def conv(b: Builder, node: Node, dy: str) -> Gradients:
    x, weight = node.inputs[:2]
    spatial = _spatial(b, node, weight)
    large, small = b.sizes(x, spatial), b.sizes(node.outputs[0], spatial)
    window = window_of(node, large, b.sizes(weight, spatial))
    groups = node.get("group", 1)
    dx = b.op(
        "ConvTranspose", dy, weight, group=groups, strides=window.strides,
        dilations=window.dilations, pads=window.pads,
        output_padding=window.left_over(large, small),
    )  # fmt: skip
    dw = weight_gradient(b, x, dy, window, groups, [*b.sizes(x, [1]), *large], small)
    return [dx, dw, b.sum(dy, [0, *spatial])][: len(node.inputs)]


def conv_transpose(b: Builder, node: Node, dy: str) -> Gradients:
    x, weight = node.inputs[:2]
    spatial = _spatial(b, node, weight)
    if node.get("output_shape", None) or node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise node.refuse("its padding is automatic", "export it with explicit pads")
    y = node.outputs[0]
    large, small = b.sizes(y, spatial), b.sizes(x, spatial)
    window = window_of(node, large, b.sizes(weight, spatial))
    groups = node.get("group", 1)
    dx = b.op(
        "Conv", dy, weight, group=groups, strides=window.strides, dilations=window.dilations,
        pads=window.pads,
    )  # fmt: skip
    dw = weight_gradient(b, dy, x, window, groups, [*b.sizes(y, [1]), *large], small)
    return [dx, dw, b.sum(dy, [0, *spatial])][: len(node.inputs)]


def weight_gradient(
    b: Builder,
    large: str,
    small: str,
    window: Window,
    groups: int,
    large_size: Sequence[int],
    small_size: Sequence[int],
) -> str:
    """Shape (channels of small, channels of large / groups, *kernel).

    large, small   (N, C, *large_size[1:]) and (N, M, *small_size): input and output's gradient of
                   a convolution, the other way round for a transposed one
    large_size     C, then the spatial sizes
    """
    rank = len(window.kernel)
    swap = [1, 0, *range(2, 2 + rank)]
    image = _batch_as_channels(b, large, groups, large_size, swap)
    out = b.op(
        "Conv", image, b.op("Transpose", small, perm=swap), group=groups,
        strides=window.dilations, dilations=window.strides, pads=window.pads,
    )  # fmt: skip
    if any(window.left_over(large_size[1:], small_size)):  # it slid on beyond the last window
        axes = list(range(2, 2 + rank))
        out = b.op("Slice", out, b.ints([0] * rank), b.ints(window.kernel), b.ints(axes))
    return b.op("Transpose", out, perm=swap)


def _batch_as_channels(
    b: Builder, x: str, groups: int, size: Sequence[int], swap: Sequence[int]
) -> str:
    """(N, G·c, ...) as (c, G·N, ...): one image per channel of a group, group by group."""
    if groups == 1:
        return b.op("Transpose", x, perm=list(swap))
    channels, *spatial = size
    each = channels // groups
    split = b.op("Reshape", x, b.ints([-1, groups, each, *spatial]))
    turned = b.op("Transpose", split, perm=[2, 1, 0, *range(3, 3 + len(spatial))])
    return b.op("Reshape", turned, b.ints([each, -1, *spatial]))


def _spatial(b: Builder, node: Node, weight: str) -> range:
    rank = len(b.shape(weight)) - 2
    if rank not in (1, 2):
        raise node.refuse(f"it is {rank}-dimensional", "only 1-D and 2-D have a gradient")
    return range(2, 2 + rank)


RULES = {"Conv": conv, "ConvTranspose": conv_transpose}
