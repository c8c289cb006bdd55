"""A file of steps as it is sent: with the lists of the files that it names."""

import io
import tomllib
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from shoal.errors import SettingError

#: Ending of a field that names a file, one entry in a line: labels_file, words_file.
SUFFIX = "_file"


def open_steps(path: Path) -> tuple[str, BinaryIO]:
    """Name and content of the file of steps at `path`: as it is, or as JSON with the entries of the
    files that it names in their place, which are found beside it.

    SettingError for a file that cannot be read.
    """
    content = _read(path)
    if f"{SUFFIX} " not in content and f"{SUFFIX}=" not in content:
        return path.name, io.BytesIO(content.encode())
    try:
        declared = tomllib.loads(content)
    except tomllib.TOMLDecodeError:  # the controller says what is wrong with it
        return path.name, io.BytesIO(content.encode())
    return path.name, io.BytesIO(msgspec.json.encode(_resolved(declared, path.parent)))


def _resolved(content: Any, folder: Path) -> Any:
    if isinstance(content, list):
        return [_resolved(one, folder) for one in content]
    if not isinstance(content, dict):
        return content
    found = {}
    for key, value in content.items():
        if key.endswith(SUFFIX) and isinstance(value, str):
            found[key.removesuffix(SUFFIX)] = _read(folder / value).splitlines()
        else:
            found[key] = _resolved(value, folder)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is not UTF-8: {error.reason}", "save it as UTF-8") from error
