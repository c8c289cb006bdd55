"""Session cache: models as onnxruntime optimised them, so that the next start is quick.

    cache/<model>-<key>.onnx    what onnxruntime wrote
    cache/<model>-<key>.sha256  its hash: a file without it, or with another, is deleted

The key is the hash of everything that the result depends on: the model's own hash, the version of
onnxruntime, the CPU's architecture and flags, the session's options. So a file is never used on
another board, by another onnxruntime or for another model; the hash shows damage by a power cut or
a bad card. The cache is optional: when anything fails, the release's own model is loaded.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from shoal.bundle import sha256_of
from shoal.durable import sync, write_durable
from shoal.errors import StorageError
from shoal.profile import SessionOptions

_log = logging.getLogger(__name__)

#: Models smaller than this (bytes) load in a few milliseconds. Larger ones than that would be held
#: twice while they are written, and take their disk twice. Entries kept, the newest.
SMALLEST, LARGEST, KEPT = 1 << 20, 16 << 20, 8
_FORMAT = 1
#: Digits of the model's own hash at the beginning of an entry's name.
_MODEL_DIGITS = 16


class SessionCache:
    """The cache in one folder.

    facts    of this machine: shoal.agent.host.io.facts
    present  sha256 of the models on the device: entries of other models are deleted
    """

    def __init__(
        self,
        folder: Path,
        facts: Callable[[], Mapping[str, Any]],
        present: Callable[[], Collection[str]] | None = None,
    ) -> None:
        self._folder, self._facts, self._present = folder, facts, present

    def key(self, sha256: str, runtime: str, options: SessionOptions) -> str:
        """Name of the entry for a model's hash, onnxruntime's version and session options."""
        facts = self._facts()
        cpu = [facts.get("arch"), facts.get("cpu"), sorted(facts.get("flags", ()))]
        whole = [_FORMAT, sha256, runtime, cpu, msgspec.structs.asdict(options)]
        digest = hashlib.sha256(msgspec.json.encode(whole)).hexdigest()
        return f"{sha256[:_MODEL_DIGITS]}-{digest[:32]}"

    def find(self, key: str) -> Path | None:
        """The entry's file; None when there is none. A damaged one is deleted."""
        path, wanted = self._folder / f"{key}.onnx", self._folder / f"{key}.sha256"
        try:
            if path.is_file() and sha256_of(path) == wanted.read_text().strip():
                os.utime(wanted)
                return path
        except (OSError, UnicodeDecodeError):
            pass
        self.delete(key)
        return None

    def begin(self, key: str) -> Path | None:
        """The path for onnxruntime to write the entry to; None when the disk refuses."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return self._folder / f"{key}.new.onnx"
        except OSError as error:
            _log.info("no cache of optimised models: %s", error)
            return None

    def commit(self, key: str) -> None:
        """Make the entry that `begin` started durable, then valid. Delete older ones."""
        new, path = self._folder / f"{key}.new.onnx", self._folder / f"{key}.onnx"
        try:
            sync(new)
            sha256 = sha256_of(new)
            new.replace(path)
            write_durable(path.with_suffix(".sha256"), sha256.encode())
            self._prune()
        except (OSError, StorageError) as error:
            _log.info("%s is not kept: %s", path, error)
            self.delete(key)

    def delete(self, key: str) -> None:
        """Delete an entry, complete or not."""
        for name in (f"{key}.onnx", f"{key}.sha256", f"{key}.new.onnx"):
            try:
                (self._folder / name).unlink(missing_ok=True)
            except OSError as error:
                _log.info("%s stays: %s", name, error)

    def _prune(self) -> None:
        used = sorted(self._folder.glob("*.sha256"), key=lambda path: path.stat().st_mtime)
        kept = {path.stem for path in used[-KEPT:]}
        if self._present is not None:
            models = {sha256[:_MODEL_DIGITS] for sha256 in self._present()}
            kept = {name for name in kept if name[:_MODEL_DIGITS] in models}
        for path in self._folder.iterdir():
            if path.name.partition(".")[0] not in kept:
                path.unlink(missing_ok=True)
