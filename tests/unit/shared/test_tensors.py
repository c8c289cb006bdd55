"""Tensors of every datatype of the protocol: their bytes, storage, and tolerance between CPUs."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from shoal.errors import InputError
from shoal.tensors import DTYPES, StoredTensor, datatype_of, from_bytes, to_bytes

NUMERIC = [dtype for name, dtype in DTYPES.items() if name != "BYTES"]


@given(st.sampled_from(NUMERIC).flatmap(lambda d: nps.arrays(d, nps.array_shapes(min_dims=0))))
def test_a_tensor_of_any_number_type_survives_its_bytes(array: np.ndarray) -> None:
    again = from_bytes(datatype_of(array), array.shape, to_bytes(array))
    assert again.dtype == array.dtype
    assert again.tobytes() == array.tobytes()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_texts_survive_their_bytes(texts: list[str]) -> None:
    array = np.array(texts, object)
    assert from_bytes("BYTES", [len(texts)], to_bytes(array)).tolist() == texts


def test_a_big_endian_array_is_sent_little_endian() -> None:
    assert to_bytes(np.array([1], ">i4")) == b"\x01\x00\x00\x00"


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", [2], b"\0" * 7),
        ("INT8", [2, 2], b"\0" * 5),
        ("BOOL", [1], b"\x02"),
        ("BYTES", [1], b"\x05\0\0\0ab"),
        ("BYTES", [1], b"\x01\0\0\0\xff"),
        ("BYTES", [1], b"\x01\0\0\0a-"),
        ("BYTES", [1 << 40], b"\0" * 8),
    ],
)
def test_bytes_that_do_not_fit_are_refused_with_the_name(
    datatype: str, shape: list[int], data: bytes
) -> None:
    with pytest.raises(InputError, match="'x'"):
        from_bytes(datatype, shape, data, "x")


def test_a_dtype_that_the_protocol_lacks_is_named() -> None:
    with pytest.raises(InputError, match="complex64"):
        datatype_of(np.zeros(1, np.complex64))


@pytest.mark.parametrize(("dtype", "step"), [("<f4", 1e-5), ("<f8", 1e-10), ("<f2", 1e-3)])
def test_rounding_of_another_cpu_is_within_the_tolerance(dtype: str, step: float) -> None:
    want = np.linspace(-1, 1, 101).astype(dtype)
    stored = StoredTensor.of(want)
    assert stored.deviation((want * (1 + step)).astype(dtype)) <= 1
    assert stored.deviation((want * 1.05).astype(dtype)) > 1


def test_another_shape_or_datatype_deviates_without_limit() -> None:
    stored = StoredTensor.of(np.zeros((2, 3), np.float32))
    assert math.isinf(stored.deviation(np.zeros((3, 2), np.float32)))
    assert math.isinf(stored.deviation(np.zeros((2, 3), np.float64)))


def test_missing_and_infinite_values_count_by_their_place() -> None:
    want = np.array([np.nan, np.inf, 1.0], np.float32)
    stored = StoredTensor.of(want)
    assert stored.deviation(want) == 0
    assert math.isinf(stored.deviation(np.array([np.nan, 1.0, 1.0], np.float32)))
    assert math.isinf(stored.deviation(np.array([np.nan, np.inf, np.nan], np.float32)))


def test_few_other_labels_are_allowed_and_many_are_not() -> None:
    want = np.zeros(1_000, np.int64)
    few, many = want.copy(), want.copy()
    few[:5], many[:50] = 1, 1
    assert StoredTensor.of(want).deviation(few) <= 1 < StoredTensor.of(want).deviation(many)


def test_a_large_tensor_is_kept_as_a_sample_that_still_finds_a_change() -> None:
    want = np.random.default_rng(0).normal(size=(300, 400)).astype(np.float32)
    stored = StoredTensor.of(want, most=1_024)
    assert len(stored.data) == 4_096
    assert stored.deviation(want) == 0
    assert stored.deviation(want[::-1].copy()) > 1


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_no_elements_in_a_shape_that_no_array_has_are_refused(datatype: str) -> None:
    with pytest.raises(InputError, match="no array has shape"):
        from_bytes(datatype, [0, 1 << 62, 1 << 62], b"")


def test_a_stored_tensor_may_have_a_tolerance_of_its_own_and_without_one_its_bytes_stay() -> None:
    want = np.float32([[0.2, 1.0]])
    usual, wide = StoredTensor.of(want), StoredTensor.of(want, tolerance=0.1)
    assert usual.deviation(want + np.float32(0.05)) > 1 > wide.deviation(want + np.float32(0.05))
    assert wide.deviation(want + np.float32(0.2)) > 1
    assert b"tolerance" not in msgspec.msgpack.encode(usual)
    labels = np.arange(20)
    few = np.where(labels == 3, 0, labels)
    assert StoredTensor.of(labels, tolerance=0.1).deviation(few) == pytest.approx(0.5)
