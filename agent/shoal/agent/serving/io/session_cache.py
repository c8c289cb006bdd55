"""Models as onnxruntime has optimised them, kept so that the next start need not do it again.

    cache/<model>-<key>.onnx    what onnxruntime wrote
    cache/<model>-<key>.sha256  its hash: without it, or with another, the file does not count

The key is the hash of everything that the result depends on: the model's own hash, the version of
onnxruntime, the CPU's architecture and flags, the session's options. So another board, an update
of onnxruntime or another model never meet a file that is not theirs; what a power cut or a bad
card did to a file shows in its hash. Nothing here is needed: whatever fails, the model of the
release is loaded, as if there were no cache.
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

#: Models smaller than this (bytes) load in a few milliseconds; entries kept, the newest.
SMALLEST, KEPT = 1 << 20, 8
_FORMAT = 1
#: Digits of the model's own hash that an entry's name begins with.
_OF = 16


class SessionCache:
    """The cache in one folder.

    facts    of this machine: shoal.agent.host.io.facts
    present  sha256 of the models on the device: entries of any other go
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
        return f"{sha256[:_OF]}-{hashlib.sha256(msgspec.json.encode(whole)).hexdigest()[:32]}"

    def find(self, key: str) -> Path | None:
        """The entry, whole; None when there is none. A damaged one is deleted."""
        path, wanted = self._folder / f"{key}.onnx", self._folder / f"{key}.sha256"
        try:
            if path.is_file() and sha256_of(path) == wanted.read_text().strip():
                os.utime(wanted)
                return path
        except (OSError, UnicodeDecodeError):
            pass
        self.drop(key)
        return None

    def begin(self, key: str) -> Path | None:
        """Where onnxruntime shall write the entry; None when the disk refuses."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return self._folder / f"{key}.new.onnx"
        except OSError as error:
            _log.info("no cache of optimised models: %s", error)
            return None

    def keep(self, key: str) -> None:
        """What was begun is whole now: durable, then counted. Older entries go."""
        new, path = self._folder / f"{key}.new.onnx", self._folder / f"{key}.onnx"
        try:
            sync(new)
            sha256 = sha256_of(new)
            new.replace(path)
            write_durable(path.with_suffix(".sha256"), sha256.encode())
            self._prune()
        except (OSError, StorageError) as error:
            _log.info("%s is not kept: %s", path, error)
            self.drop(key)

    def drop(self, key: str) -> None:
        """Forget an entry, whole or not."""
        for name in (f"{key}.onnx", f"{key}.sha256", f"{key}.new.onnx"):
            try:
                (self._folder / name).unlink(missing_ok=True)
            except OSError as error:
                _log.info("%s stays: %s", name, error)

    def _prune(self) -> None:
        used = sorted(self._folder.glob("*.sha256"), key=lambda path: path.stat().st_mtime)
        kept = {path.stem for path in used[-KEPT:]}
        if self._present is not None:
            models = {sha256[:_OF] for sha256 in self._present()}
            kept = {name for name in kept if name[:_OF] in models}
        for path in self._folder.iterdir():
            if path.name.partition(".")[0] not in kept:
                path.unlink(missing_ok=True)
