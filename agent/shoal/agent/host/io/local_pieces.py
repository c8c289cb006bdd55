"""Pieces of a new file that older versions of it on this device have: only the others are fetched.

A version that changes few weights differs in few pieces. They are found by the signed hashes of the
new file, so nothing is computed for a pair of versions, and memory is that of one piece.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from shoal.manifest import File, Piece


class LocalPieces:
    """Pieces of `file` in older versions: at the same place, counted from the beginning or the end.

    bases   paths of the older versions, the likeliest first
    """

    def __init__(self, file: File, bases: Sequence[Path]) -> None:
        self._size, self._bases = file.size, bases if file.chunks else ()

    def read(self, piece: Piece) -> bytes | None:
        """The verified bytes of a piece; None when no older version has it."""
        for base in self._bases:
            with contextlib.suppress(OSError), base.open("rb") as old:
                longer = os.fstat(old.fileno()).st_size - self._size
                for start in dict.fromkeys((piece.start, piece.start + longer)):
                    if start < 0:
                        continue
                    old.seek(start)
                    data = old.read(piece.stop - piece.start)
                    if hashlib.sha256(data).hexdigest() == piece.sha256:
                        return data
        return None
