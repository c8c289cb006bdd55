"""Finds a plugin by its name in agent.toml, and not before: nothing unused is loaded."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import msgspec

from shoal.agent.io.feeds.feed import FeedSettings
from shoal.errors import SettingError
from shoal.misfit import unfit

SOURCES, SINKS = "shoal.sources", "shoal.sinks"
#: Libraries that an extra of ours installs.
_EXTRAS = {"pymodbus": "modbus", "asyncua": "opcua", "pyarrow": "parquet", "PIL": "images"}


def load(group: str, kind: str) -> Any:
    """The class of a plugin; SettingError says what there is, or what has to be installed."""
    found = importlib.metadata.entry_points(group=group)
    names = sorted({entry.name for entry in found})
    if kind not in names:
        raise SettingError(f"no {kind!r} among {group}", f"there are: {', '.join(names)}")
    try:
        return found[kind].load()
    except ImportError as error:
        raise SettingError(f"{kind}: {error}", mend_of(error)) from error


def settings_of(where: str, kind: type[FeedSettings], table: Mapping[str, Any]) -> FeedSettings:
    """A plugin's settings; SettingError names the one that is wrong.

    where   of agent.toml: "sources.pump"
    """
    try:
        return msgspec.convert(dict(table), kind)
    except msgspec.ValidationError as error:
        raise unfit("agent.toml", error, kind, where) from error


def needs(module: str) -> Any:
    """Import an optional library; SettingError says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingError(f"{module} is not installed", mend_of(error, module)) from error


def mend_of(error: ImportError, module: str = "") -> str:
    extra = _EXTRAS.get((error.name or module).partition(".")[0])
    return f"pip install 'shoal[agent-{extra}]'" if extra else "install what it needs"
