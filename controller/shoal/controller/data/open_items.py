"""Opens the items of a stored dataset, or of a file of arrays."""

from collections.abc import Sequence
from pathlib import Path

from shoal.controller.data import array_files, packs
from shoal.controller.data.items import Items


def open_items(
    path: Path, source: str = "", wanted: Sequence[str] = (), limit: int = array_files.LIMIT
) -> Items:
    """Items at `path`: a stored dataset, or a .npz or .npy.

    source   what messages call it; "" for the file's name
    wanted   inputs to take of a .npz, other arrays of which do not matter; empty for all
    limit    bytes of arrays once unpacked, at most

    DatasetError, naming `source`, for what cannot be read.
    """
    if packs.is_pack(path):
        return packs.open_pack(path, source or path.name)
    return array_files.open_arrays(path, source or path.name, wanted, limit)
