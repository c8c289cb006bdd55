"""Backup and restore: a controller's folder, copied while it serves, and put back elsewhere.

A backup is a folder with the files below and `backup.json`, which is written last and names every
file with its size and SHA-256: without it a backup is incomplete.

    blobs/   first, so that nothing that the database names is missing; then what came meanwhile
    controller.db   as it was at one moment
    controller.windows/   windows that the copied database knows
    keys/, pki/, repository/, controller.toml

Not copied: the broker's state, logs, and updates of a round in progress, which is repeated.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
from sqlalchemy import make_url

from shoal.controller.host import settings
from shoal.controller.host.io.files import private_folder, write_durable
from shoal.controller.store.io.database import url_of
from shoal.controller.store.io.snapshots import copy_database, copy_windows
from shoal.controller.store.io.window_files import window_folder
from shoal.durable import sync, translated
from shoal.errors import ConflictError, SettingError, StorageError

MANIFEST, DATABASE, BLOBS, FORMAT = "backup.json", "controller.db", "blobs", 1
#: What is copied as it is, after the database: nothing there is named before it is written.
_COPIED = ("keys", "pki", "repository", "controller.toml")
_CHUNK = 1 << 20


class _Entry(msgspec.Struct, frozen=True):
    """A file of a backup. size in bytes."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of backup.json. files: path in the backup -> the file."""

    format: int
    made_at: float
    files: dict[str, _Entry]


class Result(NamedTuple):
    """files and bytes that were copied."""

    files: int
    bytes: int


def back_up(folder: Path, target: Path, now: float) -> Result:
    """Copy the controller in `folder`, served or not, into the new folder `target`.

    Raises ConflictError if the target has anything in it, SettingError if `folder` is of no
    controller, StorageError.
    """
    configured = settings.load(folder)
    source = _database(folder, configured)
    _refuse_used(target, "choose another folder for the backup, or delete that one")
    _check_space(folder, source, target)
    private_folder(target)
    with translated(target):
        _copy_tree(folder / BLOBS, target / BLOBS)
        copy_database(source, target / DATABASE)
        copy_windows(source, target / DATABASE)
        for name in _COPIED:
            _copy_tree(folder / name, target / name)
        _copy_tree(folder / BLOBS, target / BLOBS)
        files = {str(path.relative_to(target)): _entry(path) for path in _files(target)}
    manifest = Manifest(format=FORMAT, made_at=now, files=files)
    write_durable(target / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
    return Result(len(files), sum(one.size for one in files.values()))


def restore(source: Path, folder: Path) -> Result:
    """Make the controller of a backup in `folder`, which must not exist or be empty.

    Everything is checked before anything is written. Killed at any moment, there is either no
    controller in `folder` or a whole one. Raises ConflictError, SettingError if it is no complete
    backup, StorageError, also for a damaged one.
    """
    manifest = _verified(source)
    _refuse_used(folder, "nothing is overwritten: choose another --folder, or move that one away")
    configured = settings.load(source)
    target = _database(folder, configured)
    if target.exists():
        raise ConflictError(f"{target} exists already", "move it away: nothing is overwritten")
    draft = folder.parent / f".{folder.name}.restoring"
    with translated(folder):
        shutil.rmtree(draft, ignore_errors=True)
        private_folder(draft)
        for name in manifest.files:
            _copy_file(source / name, draft / name)
        if target.parent != folder:
            _place(draft / DATABASE, target)
        for path in sorted(draft.rglob("*"), reverse=True):
            if path.is_dir():
                sync(path)
        sync(draft)
        draft.replace(folder)
        sync(folder.parent)
    return Result(len(manifest.files), sum(one.size for one in manifest.files.values()))


def _database(folder: Path, configured: settings.Settings) -> Path:
    return Path(make_url(url_of(folder, configured)).database or "")


def _place(draft: Path, target: Path) -> None:
    """Move a database to where the settings want it, outside of the controller's folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if window_folder(draft).exists():
        shutil.move(window_folder(draft), window_folder(target))
    shutil.move(draft, target)
    sync(target.parent)


def _verified(source: Path) -> Manifest:
    """The manifest of a backup whose files all are as it says."""
    path = source / MANIFEST
    if not path.exists():
        raise SettingError(
            f"{source} is no complete backup: it has no {MANIFEST}",
            "name a folder that `shoal-controller backup` has finished",
        )
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (msgspec.MsgspecError, OSError) as error:
        raise StorageError(f"{path}: {error}", "use another backup") from error
    if manifest.format != FORMAT:
        raise SettingError(f"{path}: format {manifest.format}", "restore it with a newer Shoal")
    for name, entry in manifest.files.items():
        file = source / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise StorageError(f"{path} names {name!r:.200}", "use another backup")
        if not file.is_file() or _entry(file) != entry:
            raise StorageError(
                f"{file} is {'damaged' if file.is_file() else 'missing'}", "use another backup"
            )
    return manifest


def _refuse_used(folder: Path, hint: str) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConflictError(f"{folder} is not empty", hint)


def _check_space(folder: Path, source: Path, target: Path) -> None:
    """StorageError if the target's disk has too little room; a guess, files grow meanwhile."""
    copied = [folder / name for name in (*_COPIED, BLOBS)] + [source, window_folder(source)]
    needed = 0
    for path in copied:
        for file in _files(path) if path.is_dir() else [path]:
            with suppress(OSError):
                needed += file.stat().st_size
    there = next(path for path in (target, *target.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise StorageError(
            f"{target}: the backup needs {needed >> 20} MB, {free >> 20} MB are free",
            "choose a folder on another disk",
        )


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, without drafts and the locks of databases."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and not path.is_symlink():
            yield path


def _copy_tree(source: Path, target: Path) -> None:
    """Copy what is not there yet; a file that goes away meanwhile was not needed any more."""
    if source.is_file():
        _copy_file(source, target)
        return
    for path in _files(source) if source.is_dir() else ():
        copy = target / path.relative_to(source)
        if "staging" in path.relative_to(source).parts or copy.exists():
            continue
        with suppress(FileNotFoundError):
            _copy_file(path, copy)


def _copy_file(source: Path, target: Path) -> None:
    """Copy and sync a file, with its mode and that of new folders."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.draft")
    try:
        shutil.copy2(source, draft)
        sync(draft)
        draft.replace(target)
    except FileNotFoundError:
        draft.unlink(missing_ok=True)
        raise


def _entry(path: Path) -> _Entry:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return _Entry(path.stat().st_size, digest.hexdigest())
