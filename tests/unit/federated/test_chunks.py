"""Pieces are put together whatever arrives twice, late, broken or made up."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConflictError, InputError
from shoal.federated.chunks import LARGEST, Assembly, Chunk, cut
from shoal.wire import LIMIT


@given(st.binary(max_size=400), st.integers(1, 50), st.randoms())
def test_in_any_order_with_any_repeats_the_payload_is_whole(payload, size, shuffle) -> None:
    pieces = cut(payload, size)
    arriving = pieces + shuffle.choices(pieces, k=3)
    shuffle.shuffle(arriving)
    whole = Assembly(most=400)
    assert sum(whole.take(piece) == "" for piece in arriving) == len(pieces)
    assert whole.complete()
    assert whole.payload() == payload


def test_broken_and_foreign_pieces_are_ignored_and_what_is_missing_is_known() -> None:
    payload = random.Random(0).randbytes(100)
    pieces, other = cut(payload, 30), cut(payload[::-1], 30)
    whole = Assembly(most=100)
    assert whole.missing() == []
    assert whole.take(pieces[1]) == ""
    broken = msgspec.structs.replace(pieces[0], data=b"x" + pieces[0].data[1:])
    assert whole.take(broken) == "corrupt"
    assert whole.take(other[0]) == "foreign"
    assert whole.take(pieces[1]) == "twice"
    assert whole.missing() == [0, 2, 3]
    with pytest.raises(ConflictError, match=r"\[0, 2, 3\]"):
        whole.payload()
    for piece in pieces:
        whole.take(piece)
    assert whole.payload() == payload


def test_a_payload_larger_than_the_model_is_refused_before_it_is_kept() -> None:
    with pytest.raises(InputError, match="100 allowed"):
        Assembly(most=100).take(cut(bytes(101), 50)[0])


def test_pieces_that_claim_to_be_countless_are_refused() -> None:
    [piece] = cut(b"abc")
    with pytest.raises(InputError):
        Assembly(most=100).take(msgspec.structs.replace(piece, total=2**31))


def test_chunks_longer_than_declared_are_ignored() -> None:
    first, second = cut(bytes(60), 30)
    whole = Assembly(most=100)
    whole.take(first)
    longer = cut(bytes(100), 50)[1]
    forged = msgspec.structs.replace(longer, digest=first.digest, length=60)
    assert whole.take(forged) == "corrupt"
    assert whole.take(second) == ""


def test_a_piece_fits_into_a_message() -> None:
    piece = cut(bytes(3 * LARGEST))[0]
    packed = msgspec.msgpack.encode(piece)
    assert len(packed) < LIMIT["round"] - 4096
    assert msgspec.msgpack.decode(packed, type=Chunk) == piece
