"""Plugins by their name in agent.toml, and the paths that they use; nothing unused is imported."""

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from shoal.agent.feeds.io.interface import FeedSettings
from shoal.agent.host.io import config
from shoal.agent.host.io.folder import SETTINGS
from shoal.agent.host.optional_libraries import hint_of
from shoal.agent.host.unit import Outside
from shoal.errors import SettingError
from shoal.validation_errors import setting_error

SOURCES, SINKS = "shoal.sources", "shoal.sinks"


def load(group: str, kind: str) -> Any:
    """The class of a plugin; SettingError lists the plugins, or names the missing library."""
    found = importlib.metadata.entry_points(group=group)
    names = sorted({entry.name for entry in found})
    if kind not in names:
        raise SettingError(f"no {kind!r} among {group}", f"there are: {', '.join(names)}")
    try:
        return found[kind].load()
    except ImportError as error:
        raise SettingError(f"{kind}: {error}", hint_of(error)) from error


def settings_of(where: str, kind: type[FeedSettings], table: Mapping[str, Any]) -> FeedSettings:
    """A plugin's settings from its table; SettingError names a wrong one.

    where   the table in agent.toml: "sources.pump"
    """
    try:
        return msgspec.convert(dict(table), kind)
    except msgspec.ValidationError as error:
        raise setting_error("agent.toml", error, kind, where) from error


def outside(folder: Path) -> Outside:
    """Paths outside of the agent's `folder` (absolute) that its sources and sinks use.

    Raises SettingError for a source or sink with impossible settings.
    """
    if not (folder / SETTINGS).exists():
        return Outside()
    settings = config.load(folder)
    reads, writes = set[str](), set[str]()
    for group, tables in ((SOURCES, settings.all_sources()), (SINKS, settings.sinks)):
        for name, table in tables.items():
            touched = _touched(group, name, table)
            reads |= _absolute(folder, touched.reads)
            writes |= _absolute(folder, touched.writes)
    return Outside(tuple(sorted(reads - writes)), tuple(sorted(writes)))


def _touched(group: str, name: str, table: Mapping[str, Any]) -> Any:
    kind = str(table.get("kind", "replay"))
    where = f"{group.partition('.')[2]}.{name}"
    return settings_of(where, load(group, kind).Settings, table).touches()


def _absolute(folder: Path, paths: tuple[str, ...]) -> set[str]:
    """Absolute forms of `paths`, without those in `folder`."""
    found = {os.path.normpath(folder / path) for path in paths if path}
    return {path for path in found if not Path(path).is_relative_to(folder)}
