"""The files of a round, as its use cases name them: a port that the engine fills.

kind          of each device                              of the round
advert        its keys, msgpack secure.Advert             roster    names, once training begins
boxes         sealed shares, msgpack {device: bytes}      dealt     names that shared in time
head, piece-N of an update that is not whole yet          ending    msgpack secure.Ending
update        msgpack speech.Contribution, as it came     passed    names that voted in time
vote, shares  as they came                                noise     seed of the noise: 32 bytes
measured      msgpack speech.Measured
"""

from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from shoal.controller.federated.gathering import Shelf


class Files(Protocol):
    """See shoal.controller.federated.io.round_files.RoundFiles."""

    def together(self) -> AbstractContextManager[None]: ...
    def put(self, ident: str, kind: str, device: str, data: bytes) -> None: ...
    def get(self, ident: str, kind: str, device: str = "") -> bytes | None: ...
    def has(self, ident: str, kind: str, device: str = "") -> bool: ...
    def size(self, ident: str, kind: str, device: str) -> int: ...
    def devices(self, ident: str, kind: str) -> list[str]: ...
    def drop(self, ident: str, kind: str, device: str) -> None: ...
    def rounds(self) -> list[str]: ...
    def forget(self, ident: str) -> None: ...
    def shelf(self, ident: str, size: int) -> AbstractContextManager[Shelf]: ...


def put_names(files: Files, ident: str, kind: str, names: list[str]) -> None:
    files.put(ident, kind, "", msgspec.msgpack.encode(sorted(names)))


def names(files: Files, ident: str, kind: str) -> list[str] | None:
    """None before they were written down."""
    data = files.get(ident, kind)
    return None if data is None else msgspec.msgpack.decode(data, type=list[str])


def named(files: Files, ident: str, kind: str, device: str) -> dict[str, bytes]:
    """What a device sent by name: boxes, shares."""
    data = files.get(ident, kind, device)
    return {} if data is None else msgspec.msgpack.decode(data, type=dict[str, bytes])
