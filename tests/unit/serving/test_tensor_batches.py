"""Which requests run as one, and that each gets its own part of the outputs."""

import numpy as np
import pytest

from shoal.agent.serving.tensor_batches import items_of, joins, split, stack
from shoal.agent.serving.tensor_requests import BATCH_BYTES, of_arrays
from shoal.errors import ModelError
from shoal.signature import Signature
from shoal.tensors import Array
from tensor_models import engine_of, tensor

SIGNATURE = Signature(
    inputs=[
        tensor("x", "FP32", [2, "N", "T"]),
        tensor("ids", "INT64", ["N"]),
        tensor("rate", "FP32", [1]),
        tensor("text", "BYTES", [1], default=["a"]),
    ],
    outputs=[tensor("y", "FP32", ["N", 2]), tensor("z", "INT64", [3, "N"])],
    together="batch",
    item_bytes=100,
)


def feeds(items: int, length: int = 5, rate: float = np.nan, text: str = "a") -> dict[str, Array]:
    return {
        "x": np.full((2, items, length), items, np.float32),
        "ids": np.full(items, items),
        "rate": np.float32([rate]),
        "text": np.array([text], object),
    }


def test_requests_of_one_form_join_whatever_their_number_of_items() -> None:
    one, other = feeds(1), feeds(3)
    assert (items_of(SIGNATURE, one), items_of(SIGNATURE, other)) == (1, 3)
    assert joins(SIGNATURE, one, other)
    found = stack(SIGNATURE, [one, other])
    assert {name: array.shape for name, array in found.items()} == {
        "x": (2, 4, 5), "ids": (4,), "rate": (1,), "text": (1,),
    }  # fmt: skip
    assert found["ids"].tolist() == [1, 3, 3, 3]


@pytest.mark.parametrize(
    "other",
    [feeds(3, length=6), feeds(3, rate=1.0), feeds(3, text="b"), feeds(0),
     {**feeds(3), "ids": np.zeros(2, np.int64)},
     {name: array for name, array in feeds(3).items() if name != "rate"}],
    ids=["another-length", "another-rate", "another-text", "no-items", "inputs-that-disagree",
         "an-input-less"],
)  # fmt: skip
def test_requests_do_not_join_that_have(other: dict[str, Array]) -> None:
    assert not joins(SIGNATURE, feeds(1), other)
    assert not joins(SIGNATURE, other, feeds(1))


def test_a_model_whose_items_are_not_independent_runs_alone() -> None:
    alone = Signature(inputs=SIGNATURE.inputs, outputs=SIGNATURE.outputs)
    assert not joins(alone, feeds(1), feeds(1))


def test_outputs_are_split_along_their_own_axes() -> None:
    y, z = np.arange(8.0).reshape(4, 2), np.arange(12).reshape(3, 4)
    first, second = split(SIGNATURE, {"y": y, "z": z}, [1, 3])
    np.testing.assert_array_equal(first["y"], y[:1])
    np.testing.assert_array_equal(second["y"], y[1:])
    np.testing.assert_array_equal(first["z"], z[:, :1])
    np.testing.assert_array_equal(second["z"], z[:, 1:])


@pytest.mark.parametrize("y", [np.zeros((3, 2)), np.zeros(())])
def test_an_output_of_another_number_of_items_is_an_error(y: Array) -> None:
    with pytest.raises(ModelError, match="for 4 items"):
        split(SIGNATURE, {"y": y}, [1, 3])


def test_a_batch_is_sized_by_bytes() -> None:
    engine = engine_of(SIGNATURE)
    small = of_arrays(engine, feeds(4))
    assert (small.weight, small.most) == (400, BATCH_BYTES)
    long = of_arrays(engine, feeds(1, length=100_000))
    assert long.weight == 800_000 + 8 + 4 + 8  # more than was measured for an item
