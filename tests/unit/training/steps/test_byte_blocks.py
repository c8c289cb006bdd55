"""Head and tail of files against Magika's rule in Python."""

from typing import Any

import numpy as np
import pytest

from shoal.errors import SettingError
from training_steps import prepared

INT32 = 6


def features(data: bytes, head: int, tail: int, pad: int, block: int) -> list[int]:
    """What Magika's extraction makes of a file."""
    first, last = list(data[:block].lstrip()[:head]), list(data[-block:].rstrip()[-tail:])
    return first + [pad] * (head - len(first)) + [pad] * (tail - len(last)) + last


FILES = {
    "nothing": b"",
    "blanks": b" \n\t\r\x0b\x0c  ",
    "one byte": b"x",
    "short": b"\n\n  hello \t",
    "as long as the head": b"x" * 12,
    "long": bytes(range(256)) * 3,
    "longer than a block of blanks": b" " * 70 + b"content" + b"\n" * 70,
    "zeros and no-break spaces": b"\0\xa0 \x85abc\xa0\0",
}


@pytest.mark.parametrize("file", FILES)
def test_head_and_tail_are_stripped_and_padded_as_magika_does(file: str) -> None:
    steps: list[dict[str, Any]] = [
        {"step": "bytes"},
        {"step": "head-tail", "head": 12, "tail": 9, "pad": 256, "strip": True, "block": 64},
    ]
    raw = np.frombuffer(FILES[file], np.uint8)[None]
    assert prepared(steps, raw, ["N", 21], INT32)[0].tolist() == features(
        FILES[file], 12, 9, 256, 64
    )


def test_files_of_one_length_are_each_stripped_by_themselves() -> None:
    files = [b"  abc", b"abc  ", b"     ", b"abcde"]
    steps: list[dict[str, Any]] = [
        {"step": "bytes"},
        {"step": "head-tail", "head": 4, "tail": 4, "pad": -1, "strip": True, "block": 64},
    ]
    raw = np.stack([np.frombuffer(file, np.uint8) for file in files])
    found = prepared(steps, raw, ["N", 8], INT32).tolist()
    assert found == [features(file, 4, 4, -1, 64) for file in files]


def test_without_stripping_blanks_are_bytes() -> None:
    steps: list[dict[str, Any]] = [{"step": "bytes"}, {"step": "head-tail", "head": 3, "pad": 7}]
    raw = np.frombuffer(b" a", np.uint8)[None]
    assert prepared(steps, raw, ["N", 3], INT32).tolist() == [[32, 97, 7]]


def test_neither_head_nor_tail_is_refused() -> None:
    with pytest.raises(SettingError, match="head and tail are both 0"):
        prepared([{"step": "bytes"}, {"step": "head-tail", "head": 0}], np.zeros((1, 1)), ["N", 1])
