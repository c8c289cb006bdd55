"""Errors of a disk say what to do by their kind."""

import errno
import os

import pytest

from shoal.durable import translated
from shoal.errors import StorageError

KINDS = {
    errno.ENOSPC: "make room on the disk", errno.EROFS: "mount its disk writable",
    errno.EACCES: "let this user write there", errno.EIO: "the disk is failing: replace it",
}  # fmt: skip


@pytest.mark.parametrize("number", KINDS)
def test_an_error_of_a_disk_says_what_to_do_by_its_kind(number: int) -> None:
    with pytest.raises(StorageError) as caught, translated("journal.db"):
        raise OSError(number, os.strerror(number))
    assert caught.value.hint == KINDS[number]
