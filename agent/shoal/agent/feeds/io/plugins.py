"""Loads a plugin by its name in agent.toml; nothing unused is imported."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import msgspec

from shoal.agent.feeds.io.interface import FeedSettings
from shoal.agent.host.optional_libraries import hint_of
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
