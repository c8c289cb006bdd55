"""Where a round's files are: a folder of its own, which nothing that serves ever looks into.

    learning/buffer.db                  the device's rows
    learning/rounds/<attempt>/          graph.onnx, theta, what was made of them, and
    learning/rounds/<attempt>/next/     what holds for the task's next round if this one ends well
    learning/spent.json                 the ledger of epsilon, beside the journal's
    learning/tasks/<task>/              that, from rounds before: residual, control, personal, ditto

A task's folder has a name of its own making: what a config says is never part of a path.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from shoal import bundle
from shoal.agent.federated.ports import CONTRIBUTION
from shoal.durable import sync, translated, write_durable
from shoal.errors import AbsentError, RefusedError
from shoal.federated.config import Config, Content
from shoal.federated.spending import Ledger
from shoal.manifest import File
from shoal.params import F32

if TYPE_CHECKING:
    from shoal.agent.host.downloads import Downloads

#: Disk that a round leaves free, for the outbox and the next release.
RESERVE = 32 << 20
ROUNDS, TASKS, NEXT, SPENT = "rounds", "tasks", "next", "spent.json"
#: Times the length of theta that a round may take on the disk.
_TIMES = 8


class DiskSandbox:
    """Folders of rounds under one folder.

    downloads   whose stage for an attempt (hex) is its folder here
    """

    def __init__(self, folder: Path, downloads: "Downloads") -> None:
        self._folder, self._downloads = folder, downloads

    def fetch(
        self, attempt: bytes, config: Config, urls: dict[str, str], stop: Callable[[], bool]
    ) -> None:
        """All that the config names, verified by hash; what is here already is not fetched.

        LinkError: try again; RefusedError when there is no room; BundleError for other bytes.
        """
        here = self.path(attempt)
        self._check_room(config)
        with translated(here):
            make_folder(here)
        for name, content in config.contents().items():
            if not _is(here / name, content):
                file = File(name=name, size=content.length, sha256=content.sha256)
                self._downloads.file(_url(urls, content), attempt.hex(), file, stop)

    def path(self, attempt: bytes) -> Path:
        """Folder of one attempt."""
        return rounds_folder(self._folder, attempt.hex())

    def piece(self, attempt: bytes, start: int, length: int, name: str = CONTRIBUTION) -> bytes:
        """A part of a saved contribution: the device's own, or its site's."""
        path = self.path(attempt) / name
        with translated(path), path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    def end(self, attempt: bytes, task: str, *, keep: bool) -> None:
        """Delete the attempt's folder; keep: after its `next` has become the task's. Repeatable."""
        here = self.path(attempt)
        with translated(here):
            if keep:
                target = task_folder(self._folder, task)
                for file in sorted((here / NEXT).glob("*")):
                    make_folder(target)
                    file.replace(target / file.name)
                    sync(target)
            shutil.rmtree(here, ignore_errors=True)

    def spent(self) -> Ledger:
        """What the device has spent, as it was kept here; nothing where nothing can be read."""
        try:
            return msgspec.json.decode((self._folder / SPENT).read_bytes(), type=Ledger)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return Ledger()

    def spend(self, ledger: Ledger) -> None:
        """Keep it, durable when this returns."""
        with translated(self._folder):
            make_folder(self._folder)
            write_durable(self._folder / SPENT, msgspec.json.encode(ledger), 0o600)

    def clean(self, attempt: bytes) -> None:
        """Delete the folders of all other attempts."""
        for folder in sorted((self._folder / ROUNDS).glob("*")):
            if folder.name != attempt.hex():
                shutil.rmtree(folder, ignore_errors=True)

    def _check_room(self, config: Config) -> None:
        need = sum(content.length for content in config.contents().values())
        need += _TIMES * config.theta.length + RESERVE
        with translated(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            free = shutil.disk_usage(self._folder).free
        if need > free:
            detail = f"{need / 2**20:.0f} MB needed, {free / 2**20:.0f} MB free"
            raise RefusedError(detail, "disk-full", "make room on the disk")


def rounds_folder(folder: Path, name: str) -> Path:
    """Of one attempt, by its name in hex; also what its downloads call their stage."""
    return folder / ROUNDS / name


def task_folder(folder: Path, task: str) -> Path:
    """Of one task, whatever characters it has."""
    return folder / TASKS / hashlib.sha256(task.encode()).hexdigest()[:32]


def make_folder(folder: Path) -> None:
    """A folder whose name, and those of the three that it is in, survive a power cut."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for parent in folder.parents[:3]:
        sync(parent)


def vector(path: Path, size: int) -> F32 | None:
    """float32 (size,) from a file; None where there is none, or one of another size."""
    try:
        if path.stat().st_size != 4 * size:
            return None
        return np.fromfile(path, "<f4").astype(np.float32, copy=False)
    except OSError:
        return None


def keep_vector(path: Path, values: F32) -> None:
    """Write float32 (P,), whole or not at all."""
    with translated(path):
        make_folder(path.parent)
        write_durable(path, values.astype("<f4").tobytes(), 0o600)


def _is(path: Path, content: Content) -> bool:
    return (
        path.is_file()
        and path.stat().st_size == content.length
        and bundle.sha256_of(path) == content.sha256
    )


def _url(urls: dict[str, str], content: Content) -> str:
    try:
        return urls[content.sha256]
    except KeyError:
        raise AbsentError("address for", content.sha256, "the controller has to say") from None
