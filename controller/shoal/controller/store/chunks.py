"""Keys in pieces that one statement can name."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

_T = TypeVar("_T")
#: SQLite takes 999 parameters or more in a statement, and a key has three at most.
SIZE = 250


def chunks(keys: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """The keys in order, SIZE at a time.

    >>> [len(some) for some in chunks(range(600))]
    [250, 250, 100]
    """
    return (keys[first : first + SIZE] for first in range(0, len(keys), SIZE))
