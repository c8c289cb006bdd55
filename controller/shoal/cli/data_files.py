"""Data files of an ONNX file, where it keeps weights: given, or found beside it."""

from collections.abc import Sequence
from pathlib import Path

from shoal.errors import ModelError, SettingError
from shoal.manifest import check_data_names
from shoal.onnx_outline import data_locations


def data_files(file: Path, given: Sequence[Path]) -> dict[str, Path]:
    """The files that `file` keeps weights in, by the names that it calls them; most have none.

    given   paths of some; the others are looked for beside `file`

    SettingError names one that is nowhere, one that no release can have, and one that `file` does
    not name: a large file is not sent in vain.
    """
    try:
        named = data_locations(file, file.name)
        check_data_names(named)
    except ModelError as error:
        raise SettingError(error.message, error.hint) from error
    by_name = {path.name: path for path in given}
    if spare := sorted(set(by_name) - set(named)):
        raise SettingError(
            f"{file.name} has no weights in {spare[0]!r}; the data files that it names: "
            f"{', '.join(named) or 'none'}",
            "leave --data out, or rename the file to what the model calls it",
        )
    found = {name: by_name.get(name, file.parent / name) for name in named}
    if missing := [name for name, path in found.items() if not path.is_file()]:
        raise SettingError(
            f"{file.name} keeps weights in {missing[0]!r}, which is not beside it",
            f"add --data PATH/{missing[0]}, or put it into {file.parent}",
        )
    return found
