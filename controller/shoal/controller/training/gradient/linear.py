"""Gradients of matrix products, and of sums and means over axes."""

from shoal.controller.training.gradient.elementwise import Gradients
from shoal.controller.training.gradient.graph import Builder, Dims, Node


def gemm(b: Builder, node: Node, dy: str) -> Gradients:
    """Y = α·A'·B' + β·C, A' and B' transposed or not."""
    A, B = node.inputs[:2]
    ta, tb, alpha = node.get("transA", 0), node.get("transB", 0), node.get("alpha", 1.0)
    if ta:
        dA = b.op("Gemm", B, dy, transA=tb, transB=1, alpha=alpha)
    else:
        dA = b.op("Gemm", dy, B, transB=1 - tb, alpha=alpha)
    if tb:
        dB = b.op("Gemm", dy, A, transA=1, transB=ta, alpha=alpha)
    else:
        dB = b.op("Gemm", A, dy, transA=1 - ta, alpha=alpha)
    if not node.optional(2):
        return [dA, dB]
    beta = node.get("beta", 1.0)
    dC = dy if beta == 1 else b.op("Mul", dy, b.floats(beta))
    return [dA, dB, b.unbroadcast(dC, node.outputs[0], node.inputs[2])]


def matmul(b: Builder, node: Node, dy: str) -> Gradients:
    """Stacks of matrices with broadcasting; a plain matrix on the right is one big Gemm."""
    A, B = node.inputs
    shape_a, shape_b, shape_y = b.shape(A), b.shape(B), b.shape(node.outputs[0])
    if len(shape_a) < 2 or len(shape_b) < 2:
        raise node.refuse("an operand is a vector", "give it two axes: unsqueeze it first")
    dA = b.op("MatMul", dy, transposed(b, B))
    stack = (*shape_y[:-2], *shape_a[-2:])
    dA = b.reduce_to(dA, stack, shape_a)
    if len(shape_b) == 2:
        return [dA, _rows_product(b, node, dy)]
    dB = b.op("MatMul", transposed(b, A), dy)
    return [dA, b.reduce_to(dB, (*shape_y[:-2], *shape_b[-2:]), shape_b)]


def _rows_product(b: Builder, node: Node, dy: str) -> str:
    """dB of A·B for a matrix B: Aᵀ·dY with all leading axes of A as rows."""
    A, B = node.inputs
    if len(b.shape(A)) > 2:
        inner, width = b.sizes(B, [0, 1])
        A = b.op("Reshape", A, b.ints([-1, inner]))
        dy = b.op("Reshape", dy, b.ints([-1, width]))
    return b.op("Gemm", A, dy, transA=1)


def transposed(b: Builder, x: str) -> str:
    """x with its last two axes swapped."""
    order = list(range(len(b.shape(x))))
    order[-1], order[-2] = order[-2], order[-1]
    return b.op("Transpose", x, perm=order)


def reduced_axes(b: Builder, node: Node) -> list[int]:
    """Axes of a reduction, none negative: an attribute before opset 18, an input after."""
    rank = len(b.shape(node.inputs[0]))
    axes = node.get("axes", None)
    if axes is None and node.optional(1):
        if node.inputs[1] not in b.constants:
            raise node.refuse("its axes are computed", "export the model with fixed axes")
        axes = b.constants[node.inputs[1]].ravel().tolist()
    if not axes:
        axes = [] if node.get("noop_with_empty_axes", 0) else range(rank)
    return [int(axis) % rank for axis in axes]


def stretched(b: Builder, node: Node, y: str) -> str:
    """A reduction's result, or its gradient, with the reduced axes restored as 1."""
    if node.get("keepdims", 1):
        return y
    return b.op("Unsqueeze", y, b.ints(reduced_axes(b, node)))


def reduce_sum(b: Builder, node: Node, dy: str) -> Gradients:
    x = node.inputs[0]
    return [b.op("Expand", stretched(b, node, dy), b.op("Shape", x)), None]


def reduce_mean(b: Builder, node: Node, dy: str) -> Gradients:
    x = node.inputs[0]
    count = count_of(b, x, reduced_axes(b, node))
    return [b.op("Expand", b.op("Div", stretched(b, node, dy), count), b.op("Shape", x)), None]


def reduce_extreme(b: Builder, node: Node, dy: str) -> Gradients:
    """ReduceMax and ReduceMin: elements equal to the extreme share the gradient."""
    x = node.inputs[0]
    hit = b.op("Equal", x, stretched(b, node, node.outputs[0]))
    share = b.op("Cast", hit, to=b.onnx_type)
    ties = b.sum(share, reduced_axes(b, node), keep=True)
    return [b.op("Mul", share, b.op("Div", stretched(b, node, dy), ties)), None]


def reduce_l2(b: Builder, node: Node, dy: str) -> Gradients:
    x = node.inputs[0]
    slope = b.op("Div", stretched(b, node, dy), stretched(b, node, node.outputs[0]))
    return [b.op("Mul", x, slope), None]


def reduce_sum_square(b: Builder, node: Node, dy: str) -> Gradients:
    twice = b.op("Mul", stretched(b, node, dy), b.floats(2.0))
    return [b.op("Mul", node.inputs[0], twice), None]


def count_of(b: Builder, x: str, axes: list[int]) -> str:
    """How many elements a mean over these axes of x is of, as a float."""
    dims: Dims = b.shape(x)
    if all(isinstance(dims[axis], int) for axis in axes):
        product = 1
        for size in b.sizes(x, axes):
            product *= size
        return b.floats(float(product))
    sizes = b.op("Gather", b.op("Shape", x), b.ints(axes), axis=0)
    return b.op("Cast", b.op("ReduceProd", sizes, keepdims=0), to=b.onnx_type)


RULES = {
    "Gemm": gemm,
    "MatMul": matmul,
    "ReduceSum": reduce_sum,
    "ReduceMean": reduce_mean,
    "ReduceMax": reduce_extreme,
    "ReduceMin": reduce_extreme,
    "ReduceL2": reduce_l2,
    "ReduceSumSquare": reduce_sum_square,
}
