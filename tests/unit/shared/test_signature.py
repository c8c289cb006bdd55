"""What a signature may say, and which tensors fit it."""

import msgspec
import numpy as np
import pytest

from shoal.errors import InputError, ModelError
from shoal.signature import Signature, State, Tensor, rows_signature

IMAGE = Tensor(name="x", datatype="UINT8", shape=["N", 3, 8, 8], batch=0)
RATE = Tensor(name="sr", datatype="INT64", shape=[], default=[16_000])
SCORES = Tensor(name="y", datatype="FP32", shape=["N", 2], batch=0)


def test_a_signature_survives_its_json() -> None:
    signature = Signature(inputs=[IMAGE, RATE], outputs=[SCORES], together="batch", item_bytes=200)
    assert msgspec.json.decode(msgspec.json.encode(signature), type=Signature) == signature
    signature.check()


def test_a_default_is_an_array_of_the_tensor_s_type() -> None:
    default = RATE.default_array
    assert default is not None
    assert default.dtype == np.int64
    assert default.shape == ()
    assert default == 16_000


def test_an_image_of_any_count_fits_and_of_another_size_does_not() -> None:
    IMAGE.check(np.zeros((5, 3, 8, 8), np.uint8))
    with pytest.raises(InputError, match=r"\[-1, 3, 8, 8\], got \[5, 3, 8, 9\]"):
        IMAGE.check(np.zeros((5, 3, 8, 9), np.uint8))
    with pytest.raises(InputError, match="UINT8, got FP32"):
        IMAGE.check(np.zeros((5, 3, 8, 8), np.float32))


def test_rows_are_a_signature_too() -> None:
    signature = rows_signature("input", 6, "output", 2)
    signature.check()
    assert signature.inputs[0].dims == [-1, 6]


@pytest.mark.parametrize(
    "signature",
    [
        Signature(inputs=[IMAGE, IMAGE], outputs=[SCORES]),
        Signature(inputs=[Tensor(name="x", datatype="FP32", shape=[3], batch=1)], outputs=[SCORES]),
        Signature(inputs=[Tensor(name="x", datatype="FP32", shape=["N"], default=[1.0])],
                  outputs=[SCORES]),
        Signature(inputs=[Tensor(name="x", datatype="INT8", shape=[1], default=["a"])],
                  outputs=[SCORES]),
        Signature(inputs=[IMAGE], outputs=[Tensor(name="y", datatype="FP32", shape=[2])],
                  together="batch"),
        Signature(inputs=[RATE], outputs=[SCORES], states=[State(taken="h", given="y", shape=[1])]),
        Signature(inputs=[IMAGE], outputs=[SCORES],
                  states=[State(taken="x", given="y", shape=[1])]),
    ],
    ids=["twice", "no-such-axis", "default-of-free-axis", "default-of-wrong-type",
         "batch-without-axis", "state-of-nothing", "state-of-two-types"],
)  # fmt: skip
def test_a_signature_that_contradicts_itself_is_refused(signature: Signature) -> None:
    with pytest.raises(ModelError, match="signature"):
        signature.check()
