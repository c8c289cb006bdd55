"""Secret keys of masking policies: files of mode 0600 in a folder of the controller."""

import contextlib
import os
import re
import secrets
from pathlib import Path

from shoal.controller.host.io.files import private_folder, write_durable
from shoal.durable import SECRET
from shoal.errors import SettingError, StorageError

SIZE = 32
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class MaskingKeys:
    """Keys by name. Who deletes one makes it impossible to find out whose values were hashed with
    it, or by how much their dates were moved; a new key of that name is another one.
    """

    def __init__(self, folder: Path) -> None:
        """folder   the controller's"""
        self._folder = folder / "keys" / "masking"

    def __call__(self, name: str) -> bytes:
        """The key of that name, made if there is none; SettingError if its file is no key."""
        if not _NAME.fullmatch(name):
            raise SettingError(f"masking key {name!r:.80}", "lower-case letters, digits, hyphens")
        path = self._folder / f"{name}.key"
        if not path.exists():
            private_folder(self._folder.parent)
            private_folder(self._folder)
            _make(path)
        try:
            key = path.read_bytes()
        except OSError as error:
            raise StorageError(f"masking key {path}: {error.strerror}") from error
        if len(key) != SIZE:
            raise SettingError(f"masking key {path} has not {SIZE} bytes", "put the right one back")
        return key


def _make(path: Path) -> None:
    """Of two processes that make a key, the first one's is kept, by both."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_durable(draft, secrets.token_bytes(SIZE), SECRET)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
