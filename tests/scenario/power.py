"""A disk that loses unsynced data, and a power supply that fails at a chosen point.

The folder in use stands for the kernel's page cache. Durable state is tracked apart from it: a
file's bytes at its last fsync, a folder's names at its last fsync. A power cut leaves the durable
state plus the part of the rest that the kernel had already written (`How`).

>>> supply = Supply(Disk(folder), cut=17, how=How.LOST, after=other)     # doctest: +SKIP
>>> with supply.patched(monkeypatch): device.start(supply)                 # doctest: +SKIP
"""

import contextlib
import enum
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supply import Power, PowerCut

#: Calls recorded in order by the disk; the power may fail before and after each.
CALLS = ("rename", "replace", "unlink", "mkdir", "rmdir", "symlink")
_FOLDERS = (*CALLS, "fsync", "rmtree")
_DATABASE = (".db", ".db-wal")


class How(enum.Enum):
    """Which part of the unsynced data the kernel had written.

    KEPT   everything: the process died, the machine did not
    LOST   nothing
    TORN   some: for each folder one of its past states, for each file a part
    """

    KEPT, LOST, TORN = "kept", "lost", "torn"


class Disk:
    """Durable state of the folder `live`; all that is there at construction is durable.

    live   on a tmpfs: other file systems reuse the inode number of a deleted file
    """

    def __init__(self, live: Path) -> None:
        self.live = live
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, list[dict[str, int]]] = {}
        self._targets: dict[int, str] = {}
        self._paths: dict[int, str] = {}
        self._folders: set[int] = set()
        self.record_names()
        for inode in self._folders:
            self._names[inode] = self._names[inode][-1:]
        for inode, path in self._paths.items():
            if inode not in self._folders and inode not in self._targets:
                self._bytes[inode] = Path(path).read_bytes()

    def record_names(self) -> None:
        """Record the names in every folder: a TORN cut may restore any recorded state."""
        self._paths = {}
        self._walk(str(self.live), self.live.stat().st_ino)

    def synced(self, descriptor: int) -> None:
        """fsync: a file's bytes, or a folder's names, become durable."""
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self.record_names()
            self._names[found.st_ino] = self._names[found.st_ino][-1:]
        else:
            self._bytes[found.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def committed(self) -> None:
        """SQLite commit: its files and their names are durable (SQLite syncs them itself)."""
        self.record_names()
        root = self.live.stat().st_ino
        for name, inode in self._names[root][-1].items():
            if name.endswith(_DATABASE):
                self._bytes[inode] = (self.live / name).read_bytes()
                for names in self._names[root]:
                    names[name] = inode

    def crash(self, target: Path, how: How, chance: random.Random) -> None:
        """Write the state after a power cut into the new folder `target`."""
        self.record_names()
        torn = how is How.TORN
        kept = {
            inode: names[-1] if how is How.KEPT else chance.choice(names) if torn else names[0]
            for inode, names in self._names.items()
        }
        whole = self._whole_databases(how, chance)
        self._put(self.live.stat().st_ino, target, kept, how, chance, whole)

    def _put(
        self,
        inode: int,
        target: Path,
        kept: dict[int, dict[str, int]],
        how: How,
        chance: random.Random,
        whole: dict[int, bytes],
    ) -> None:
        if inode in self._folders:
            target.mkdir()
            for name, inner in kept[inode].items():
                self._put(inner, target / name, kept, how, chance, whole)
        elif inode in self._targets:
            target.symlink_to(self._targets[inode])
        elif not target.name.endswith(".db-shm"):  # SQLite recreates it
            found = whole.get(inode)
            target.write_bytes(self._content(inode, how, chance) if found is None else found)

    def _content(self, inode: int, how: How, chance: random.Random) -> bytes:
        safe = self._bytes.get(inode, b"")
        cached = self._cached(inode, safe)
        if how is not How.TORN or cached == safe:
            return cached if how is How.KEPT else safe
        part = cached[: chance.randrange(len(cached) + 1)]
        hole = bytes(len(cached) - len(part))  # its length was written, its bytes were not
        return chance.choice([safe, cached, part, part + hole])

    def _whole_databases(self, how: How, chance: random.Random) -> dict[int, bytes]:
        """Tear a WAL that grew at any byte; after a checkpoint keep both files or neither.

        SQLite guarantees that order: WAL synced, database synced, WAL restarted.
        """
        found, torn = {}, how is How.TORN
        for path in self.live.glob("*.db"):
            log = path.with_name(f"{path.name}-wal")
            pair = [p.stat().st_ino for p in (path, log) if p.exists()]
            safe = [self._bytes.get(inode, b"") for inode in pair]
            cached = [self._cached(inode, b"") for inode in pair]
            grown = cached[0] == safe[0] and cached[-1].startswith(safe[-1])
            if grown and torn:
                end = chance.randint(len(safe[-1]), len(cached[-1]))
                cached[-1] = cached[-1][: chance.choice([end, None])]
            keep = how is How.KEPT or (torn and (grown or chance.random() < 0.5))
            found |= dict(zip(pair, cached if keep else safe, strict=True))
        return found

    def _cached(self, inode: int, otherwise: bytes) -> bytes:
        path = self._paths.get(inode)
        return Path(path).read_bytes() if path else otherwise

    def _walk(self, folder: str, inode: int) -> None:
        """By names and not by Path: it runs before and after every call of every story."""
        names = {}
        self._folders.add(inode)
        with os.scandir(folder) as entries:
            for entry in entries:
                found = entry.inode()
                names[entry.name], self._paths[found] = found, entry.path
                if entry.is_symlink():
                    self._targets[found] = os.readlink(entry.path)  # noqa: PTH115
                elif entry.is_dir():
                    self._walk(entry.path, found)
        history = self._names.setdefault(inode, [{}])
        if history[-1] != names:
            history.append(names)


class Supply(Power):
    """Power supply that fails at point `cut` and writes the disk's state into `after`.

    cut   -1: it does not fail; `trace` lists all points
    """

    def __init__(
        self,
        disk: Disk,
        *,
        cut: int = -1,
        how: How = How.LOST,
        after: Path | None = None,
        chance: random.Random | None = None,
    ) -> None:
        super().__init__(cut)
        self.disk, self._how, self._after = disk, how, after
        self._chance = chance or random.Random(cut)
        self.dead = self._busy = False

    def point(self, name: str) -> None:
        if self.dead or self._busy:  # code that runs while PowerCut propagates changes nothing
            return
        if name.endswith(_FOLDERS):
            self.disk.record_names()
        self.trace.append(name)
        if len(self.trace) - 1 == self.cut:
            if self._after is not None:
                self._busy = True
                self.disk.crash(self._after, self._how, self._chance)
            self.dead = True
            raise PowerCut(name)

    def written(self, thing: Any, name: str) -> None:
        """Add a point within a commit, after which the commit is durable.

        Exception: an acknowledgement becomes durable with the next commit.
        """
        if type(thing).__module__.endswith((".journal", ".outbox_store")):
            self.point(f"during {name}")
            if name != "ack":
                self.disk.committed()

    @contextlib.contextmanager
    def patched(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Add a point before and after each call that changes folders or syncs."""
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", self._call("fsync", self.disk.synced))
            for name in CALLS:
                patch.setattr(os, name, self._call(name, getattr(os, name)))
            patch.setattr(shutil, "rmtree", self._call("rmtree", _removed))
            yield

    def _call(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            self.point(f"before {name}")
            result = None if self.dead else real(*args, **kwargs)
            self.point(f"after {name}")
            return result

        return called


def run_until_cut(
    device: Any,
    work: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    how: How = How.KEPT,
    cut: int = -1,
) -> Supply:
    """Start a device, run `work` until its end or the power cut, and stop the device.

    After a cut the device's folder holds the state that survived.
    """
    after = device.folder.with_name(f"{device.folder.name}.after")
    supply = Supply(Disk(device.folder), cut=cut, how=how, after=after)
    try:
        with supply.patched(monkeypatch):
            device.start(supply)
            work()
    except PowerCut:
        pass
    device.stop()
    if supply.dead:
        shutil.rmtree(device.folder)
        after.rename(device.folder)
    return supply


def _removed(folder: Path, ignore_errors: bool = False) -> None:
    """shutil.rmtree by paths: the original uses descriptors and so bypasses the points."""
    if not Path(folder).exists():
        return
    for entry in sorted(Path(folder).iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            _removed(entry)
        else:
            entry.unlink()
    Path(folder).rmdir()
