"""What many devices said at about the same time, in one file: synced once for all of them.

4 bytes    length of the head, little-endian
head       msgpack: [kind, device, length] of every part, in order
parts      one after the other
"""

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from shoal.durable import SECRET, write_durable
from shoal.errors import StorageError

_log = logging.getLogger(__name__)
#: (kind, device)
Key = tuple[str, str]
_LENGTH = 4
_NAME = "batch.{:08}"


class Place(NamedTuple):
    """Where a part is: bytes `start` to `start + length` of a file."""

    path: Path
    start: int
    length: int

    def read(self) -> bytes:
        """OSError when it is gone."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.length)


def write(folder: Path, parts: Mapping[Key, bytes]) -> dict[Key, Place]:
    """A new file with all the parts, whole or not there at all; its name wants `sync`.

    StorageError when the disk refuses.
    """
    number = int(_files(folder)[-1].suffix[1:]) + 1 if _files(folder) else 0
    path = folder / _NAME.format(number)
    head = msgspec.msgpack.encode([(*key, len(data)) for key, data in parts.items()])
    whole = b"".join([len(head).to_bytes(_LENGTH, "little"), head, *parts.values()])
    write_durable(path, whole, SECRET, sync_parent=False)
    return _places(path, head)


def places(folder: Path) -> dict[Key, Place]:
    """Of everything in the folder's batches; the newest where something came twice.

    A damaged file is as if it were not there: what is missed is asked for again. StorageError when
    the disk refuses.
    """
    found: dict[Key, Place] = {}
    for path in _files(folder):
        try:
            with path.open("rb") as file:
                head = file.read(int.from_bytes(file.read(_LENGTH), "little"))
            found |= _places(path, head)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}", "look at the disk") from error
        except msgspec.MsgspecError as error:
            _log.error("%s is damaged, nothing of it is used: %s", path, error)
    return found


def _places(path: Path, head: bytes) -> dict[Key, Place]:
    parts = msgspec.msgpack.decode(head, type=list[tuple[str, str, int]])
    starts = itertools.accumulate((one[2] for one in parts), initial=_LENGTH + len(head))
    return {
        (kind, device): Place(path, start, length)
        for (kind, device, length), start in zip(parts, starts, strict=False)
    }


def _files(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob("batch.*"))
