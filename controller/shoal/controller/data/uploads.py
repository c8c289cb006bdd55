"""What an uploaded file is: a table, an archive of items, or a file of arrays; by its content."""

import contextlib
import zipfile
import zlib
from pathlib import Path

from shoal.controller.data import parquet_tensors

_NPY, _ZIP = b"\x93NUMPY", (b"PK\x03\x04", b"PK\x05\x06")
#: Parts of an Excel workbook, which is a zip too.
_WORKBOOK = (b"[Content_Types].xml", b"xl/worksheets/")
_GZIP, _OTHER_COMPRESSED = b"\x1f\x8b", (b"BZh", b"\xfd7zXZ\x00")
#: A header of a tar, and where it says so.
_BLOCK, _MAGIC_AT, _MAGIC = 512, 257, b"ustar"


def is_items(path: Path) -> bool:
    """Whether the file at `path` holds images, sounds or tensors, and is no table.

    Only its first bytes are looked at, and the schema of Parquet.
    """
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if head.startswith(_ZIP) and any(part in head for part in _WORKBOOK):
        return False  # a table, which is refused with what to do instead
    if head.startswith((_NPY, *_ZIP, *_OTHER_COMPRESSED)):
        return True
    if head.startswith(_GZIP):
        with contextlib.suppress(zlib.error):
            head = zlib.decompressobj(wbits=31).decompress(head, _BLOCK)
    return head[_MAGIC_AT:_BLOCK].startswith(_MAGIC) or parquet_tensors.has_tensors(path)


def is_arrays(path: Path) -> bool:
    """Whether it is a .npz, a .npy, or Parquet with columns of lists."""
    with path.open("rb") as file:
        if file.read(len(_NPY)) == _NPY:
            return True
    if parquet_tensors.has_tensors(path):
        return True
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
    return bool(names) and all(name.endswith(".npy") and "/" not in name for name in names)
