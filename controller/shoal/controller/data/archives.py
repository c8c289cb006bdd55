"""Files in an uploaded archive: .zip, .tar and compressed .tar, read one by one and bounded.

Nothing is unpacked to disk. A member that could not be a file of a dataset (a link, a device, a
path that leaves the archive, one that is too large, encrypted or damaged) is left out by name.
"""

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from shoal.controller.data.records import LeftOut
from shoal.errors import DatasetError

#: Members of an archive, bytes of one of them, and of all of them once unpacked, at most.
MOST_MEMBERS, MEMBER_LIMIT, LIMIT = 300_000, 128 << 20, 8 << 30
#: Names that are listed of what was left out for one reason, and characters of a name.
LISTED, NAME_LENGTH = 20, 200
#: Files that systems leave in folders.
_SYSTEM = frozenset({"thumbs.db", "desktop.ini"})
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError,
    ValueError, struct.error, RuntimeError, NotImplementedError, IndexError, KeyError,
)  # fmt: skip


class Member(NamedTuple):
    """A file: its path with slashes, and its bytes."""

    path: str
    data: bytes


class Skipped:
    """What was left out, counted by reason; of each reason the first names are kept."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._names: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        self._counts[reason] += 1
        names = self._names.setdefault(reason, [])
        if len(names) < LISTED:
            shown = "".join(c if c.isprintable() else "?" for c in name[:NAME_LENGTH])
            names.append(shown or "?")

    def list(self) -> list[LeftOut]:
        """By reason, the most frequent first."""
        return [
            LeftOut(reason=reason, count=count, names=self._names[reason])
            for reason, count in self._counts.most_common()
        ]


def read_members(path: Path, source: str, skipped: Skipped) -> Iterator[Member]:
    """Files of the archive at `path`: of a zip by name, of a tar as they come.

    DatasetError, naming `source`, when it is no archive, has too many members or unpacks to too
    much; what is left out is added to `skipped`.
    """
    if zipfile.is_zipfile(path):
        yield from _of_zip(path, source, skipped)
    else:
        yield from _of_tar(path, source, skipped)


def names_in(path: Path, source: str) -> Iterator[str]:
    """Paths of the archive's files, whatever they are; stops where it is damaged."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from (one.filename for one in archive.infolist() if not one.is_dir())
            return
        with tarfile.open(path, "r|*") as tar:
            for count in range(MOST_MEMBERS):
                one = _next(tar, source, count, Skipped())
                if one is None:
                    return
                tar.members = []  # type: ignore[attr-defined]  # it would keep every one
                if one.isreg():
                    yield one.name
    except _DAMAGED as error:
        raise _unreadable(source, error) from error


def _of_zip(path: Path, source: str, skipped: Skipped) -> Iterator[Member]:
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGED as error:
        raise _unreadable(source, error) from error
    with archive:
        members = archive.infolist()
        _check_count(len(members), source)
        total, seen = 0, set[str]()
        for one in sorted(members, key=lambda one: one.filename):
            if one.is_dir():
                continue
            kind = one.external_attr >> 28
            why = "link or device" if kind not in (0, 8) else ""
            why = why or _why_not(one.filename, one.file_size, seen)
            if why:
                skipped.add(why, one.filename)
                continue
            try:
                data = archive.read(one)
            except _DAMAGED:
                encrypted = one.flag_bits & 1
                skipped.add("encrypted" if encrypted else "damaged in the archive", one.filename)
                continue
            total = _counted(total, len(data), source)
            yield Member(_normal(one.filename), data)


def _of_tar(path: Path, source: str, skipped: Skipped) -> Iterator[Member]:
    total, count, seen = 0, 0, set[str]()
    try:
        archive = tarfile.open(path, "r|*")  # noqa: SIM115 closed below
    except _DAMAGED as error:
        raise _unreadable(source, error) from error
    with archive:
        while (one := _next(archive, source, count, skipped)) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep every one
            count += 1
            _check_count(count, source)
            if one.isdir():
                continue
            total = _counted(total, one.size, source)
            why = "" if one.isreg() else "link or device"
            why = why or _why_not(one.name, one.size, seen)
            if why:
                skipped.add(why, one.name)
                continue
            try:
                file = archive.extractfile(one)
                data = file.read() if file else b""
            except _DAMAGED:
                skipped.add("damaged in the archive", one.name)
                return
            yield Member(_normal(one.name), data)


def _next(
    archive: tarfile.TarFile, source: str, count: int, skipped: Skipped
) -> tarfile.TarInfo | None:
    """The next member; None at the end, or where the rest of an archive is damaged."""
    try:
        return archive.next()
    except _DAMAGED as error:
        if not count:
            raise _unreadable(source, error) from error
        skipped.add("damaged in the archive", f"what follows member {count}")
        return None


def _why_not(name: str, size: int, seen: set[str]) -> str:
    """Why a member is left out; "" for one that is read, which is then seen."""
    path = PurePosixPath(_normal(name))
    if not name.isprintable() or not path.parts:
        return "name is no text"
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        return "path leaves the archive"
    if len(name) > 1024:
        return "path too long"
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    if hidden or path.name.lower() in _SYSTEM:
        return "system file"
    if size > MEMBER_LIMIT:
        return f"larger than {MEMBER_LIMIT >> 20} MiB"
    if str(path) in seen:
        return "same name as one before"
    seen.add(str(path))
    return ""


def _normal(name: str) -> str:
    """A member's path with slashes, without "./"."""
    return str(PurePosixPath(name.replace("\\", "/")))


def _counted(total: int, size: int, source: str) -> int:
    if total + size > LIMIT:
        raise DatasetError(
            f"{source} unpacks to more than {LIMIT >> 30} GiB", "add it as several datasets"
        )
    return total + size


def _check_count(count: int, source: str) -> None:
    if count > MOST_MEMBERS:
        raise DatasetError(
            f"{source} has more than {MOST_MEMBERS} members", "add it as several datasets"
        )


def _unreadable(source: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"{source} cannot be read as an archive: {error!s:.200}",
        "upload a .zip, .tar or .tar.gz",
    )
