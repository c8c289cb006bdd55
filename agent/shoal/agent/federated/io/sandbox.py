"""Sandbox of a round's files: folders that serving and updates never read.

    learning/buffer.db                  the device's rows
    learning/rounds/<attempt>/          graph.onnx, theta, the contribution, and
    learning/rounds/<attempt>/next/     state for the task's next round, if this one succeeds
    learning/spent.json                 copy of the journal's privacy ledger
    learning/tasks/<task>/              state of earlier rounds: residual, control, personal, ditto

The name of a task's folder is a hash: text of a config is never part of a path.
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
from shoal.agent.federated.trainer import Run, Tensor
from shoal.agent.host.ports import RESERVE
from shoal.agent.serving.io.session import import_ort
from shoal.agent.serving.io.session import translated as session_error
from shoal.durable import sync, translated, write_durable
from shoal.errors import AbsentError, ModelError, RefusedError
from shoal.federated.config import Config, Content
from shoal.federated.spending import Ledger
from shoal.manifest import File
from shoal.params import F32, TrainSpec, spec_of

if TYPE_CHECKING:
    from shoal.agent.host.ports import Downloads

ROUNDS, TASKS, NEXT, SPENT = "rounds", "tasks", "next", "spent.json"
#: Bytes that a round may need on the disk, in lengths of theta.
_TIMES = 8
_OTHER_FILES = "session.model_external_initializers_file_folder_path"


class DiskSandbox:
    """See ports.Sandbox.

    downloads   its stage of an attempt (hex) is the attempt's folder here
    """

    def __init__(self, folder: Path, downloads: "Downloads") -> None:
        self._folder, self._downloads = folder, downloads

    def fetch(
        self, attempt: bytes, config: Config, urls: dict[str, str], cancelled: Callable[[], bool]
    ) -> None:
        """Fetch the config's contents, verified by hash, unless they are here.

        LinkError: try again; RefusedError without disk space; BundleError for other content.
        """
        here = self.path(attempt)
        self._check_space(config)
        with translated(here):
            make_folder(here)
        for name, content in config.contents().items():
            if not _is_here(here / name, content):
                file = File(name=name, size=content.length, sha256=content.sha256)
                self._downloads.file(_url(urls, content), attempt.hex(), file, cancelled)

    def path(self, attempt: bytes) -> Path:
        """Folder of one attempt."""
        return rounds_folder(self._folder, attempt.hex())

    def piece(self, attempt: bytes, start: int, length: int, name: str = CONTRIBUTION) -> bytes:
        """Part of a saved contribution: the device's own, or its site's."""
        path = self.path(attempt) / name
        with translated(path), path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    def end(self, attempt: bytes, task: str, *, keep: bool) -> None:
        """Delete the attempt's folder; keep: first move its `next` to the task. Repeatable."""
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
        """The saved ledger; an empty one when it cannot be read."""
        try:
            return msgspec.json.decode((self._folder / SPENT).read_bytes(), type=Ledger)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return Ledger()

    def spend(self, ledger: Ledger) -> None:
        """Save the ledger, durable when this returns."""
        with translated(self._folder):
            make_folder(self._folder)
            write_durable(self._folder / SPENT, msgspec.json.encode(ledger), 0o600)

    def clean(self, attempt: bytes) -> None:
        """Delete the folders of all other attempts."""
        for folder in sorted((self._folder / ROUNDS).glob("*")):
            if folder.name != attempt.hex():
                shutil.rmtree(folder, ignore_errors=True)

    def _check_space(self, config: Config) -> None:
        need = sum(content.length for content in config.contents().values())
        need += _TIMES * config.theta.length + RESERVE
        with translated(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            free = shutil.disk_usage(self._folder).free
        if need > free:
            detail = f"{need / 2**20:.0f} MB needed, {free / 2**20:.0f} MB free"
            raise RefusedError(detail, "disk-full", "make room on the disk")


def rounds_folder(folder: Path, name: str) -> Path:
    """Folder of an attempt, by its name in hex; also the stage of its downloads."""
    return folder / ROUNDS / name


def task_folder(folder: Path, task: str) -> Path:
    """Folder of a task, whatever characters its name has."""
    return folder / TASKS / hashlib.sha256(task.encode()).hexdigest()[:32]


def make_folder(folder: Path) -> None:
    """Make a folder that survives a power cut, with up to three of its parents."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for parent in folder.parents[:3]:
        sync(parent)


def read_vector(path: Path, size: int) -> F32 | None:
    """Read float32 (size,); None when the file is missing or has another size."""
    try:
        if path.stat().st_size != 4 * size:
            return None
        return np.fromfile(path, "<f4").astype(np.float32, copy=False)
    except OSError:
        return None


def write_vector(path: Path, values: F32) -> None:
    """Write float32 (P,) atomically."""
    with translated(path):
        make_folder(path.parent)
        write_durable(path, values.astype("<f4").tobytes(), 0o600)


def open_graph(path: Path) -> tuple[Run, TrainSpec, Tensor, Tensor]:
    """The graph's `run`, metadata, and inputs x and y; ModelError when it cannot run."""
    ort = import_ort()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # External data would be in a folder that cannot exist: a graph reads no other file.
    options.add_session_config_entry(_OTHER_FILES, str(path / "none"))
    try:
        data, where = path.read_bytes(), ["CPUExecutionProvider"]
        session = ort.InferenceSession(data, options, providers=where)
    except Exception as error:
        raise session_error(path.name, error) from error
    spec = spec_of(session.get_modelmeta().custom_metadata_map)
    inputs = {one.name: one for one in session.get_inputs()}

    def tensor(name: str) -> Tensor:
        if name not in inputs or not all(isinstance(n, int) for n in inputs[name].shape[1:]):
            raise ModelError(f"{path.name}: no input {name!r} of a fixed shape", "export it again")
        return Tensor(inputs[name].type, tuple(inputs[name].shape[1:]))

    return session.run, spec, tensor("x"), tensor("y")


def _is_here(path: Path, content: Content) -> bool:
    return (
        path.is_file()
        and path.stat().st_size == content.length
        and bundle.sha256_of(path) == content.sha256
    )


def _url(urls: dict[str, str], content: Content) -> str:
    try:
        return urls[content.sha256]
    except KeyError:
        raise AbsentError("address for", content.sha256, "the controller has to send it") from None
